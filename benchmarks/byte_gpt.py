"""The GPT of `make train` as a task, at any width and batch.

Model, text and batches are the example's. Its linear layers are told to see one long
row of tokens, which changes their numbers by rounding alone.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import optax_muon
from gpt_example import corpus, loop, model
from tasks import Task

# Windows of validation text read at once. Their activations stay in the cache: 64 at a
# time, as in the example, took twice the processor time.
VALIDATION_BATCH = 8


def byte_gpt(
    name: str,
    config: model.GPTConfig,
    *,
    batch: int,
    trials: int,
    steps: int = loop.TrainConfig.steps,
    text: corpus.Corpus | None = None,
) -> Task:
    """The task; `text` is the standard library's sources unless given."""
    text = text or standard_library()
    graphdef = quick_graphdef(config)
    validation = text.validation_windows(loop.VALIDATION_WINDOWS, config.context)
    return Task(
        name=name,
        about=f"byte-level GPT of width {config.width}, batch {batch}",
        unit="nats per byte",
        config={
            "text": f"{text.name} ({text.fingerprint()})",
            "model": dataclasses.asdict(config),
            "batch": batch,
            "windows": loop.VALIDATION_WINDOWS,
        },
        steps=steps,
        trials=trials,
        start=lambda seed: loop.initial_params(config, seed)[1],
        batch=lambda seed, step: text.batch(seed, step, batch, config.context),
        loss=functools.partial(loop.mean_loss, graphdef),
        max_logits=functools.partial(largest_logits, graphdef),
        validation=validation.reshape(-1, VALIDATION_BATCH, config.context + 1),
    )


def largest_logits(graphdef: nnx.GraphDef, params: Any, windows: jax.Array) -> Any:
    """Of each head of each block, at the paths of their attentions."""
    gpt = nnx.merge(graphdef, params)
    x, found = gpt.embed(windows[:, :-1]), {}
    for number, block in enumerate(gpt.blocks):
        attention, read = block.attention, block.attention_norm(x)
        mixed, logits = optax_muon.dot_product_attention_with_max_logits(
            model.rotate(attention.query(read)),
            model.rotate(attention.key(read)),
            attention.value(read),
            mask=jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool)),
        )
        found[number] = {"attention": {"max_logits": logits}}
        x = x + attention.out(mixed)
        x = x + block.mlp(block.mlp_norm(x))
    return {"blocks": found}


standard_library = functools.cache(corpus.load)


def quick_graphdef(config: model.GPTConfig) -> nnx.GraphDef:
    """The model's structure, with `rows_first` in all its linear layers."""
    gpt = model.GPT(config, rngs=nnx.Rngs(0))
    for _, module in nnx.iter_modules(gpt):
        if isinstance(module, nnx.Linear | nnx.LinearGeneral):
            module.dot_general = rows_first
    return nnx.split(gpt)[0]


def rows_first(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any):
    """x[..., k] kernel[k, ...] with all leading axes of x as one.

    With batch and time apart, XLA's CPU compiler transposes activations to sum over
    both in a kernel's gradient: a step took 1.25 times the processor time.
    """
    (summed, _), _ = dimension_numbers
    leading, after = x.shape[: -len(summed)], kernel.shape[len(summed) :]
    inputs = math.prod(kernel.shape[: len(summed)])
    product = x.reshape(-1, inputs) @ kernel.reshape(inputs, -1)
    return product.reshape(leading + after)
