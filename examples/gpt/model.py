"""A small GPT over bytes, in Flax NNX.

Bytes need no tokenizer: the vocabulary is the 256 values of a byte, and a loss in nats
per byte compares across models whatever their size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from usage import UsageError

VOCABULARY = 256


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The shape of the model; the defaults train in under a minute on two cores."""

    width: int = 64
    layers: int = 4
    heads: int = 4
    context: int = 128

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise UsageError(
                "--width",
                self.width,
                f"{self.heads} heads do not share it evenly, each with an even part "
                "(rotary attention turns pairs of features)",
                f"Choose a multiple of {2 * self.heads}, or other --heads",
            )


class GPT(nnx.Module):
    """Embedding, a stack of blocks, and a head: tokens in, logits of the next out."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        # Unit variance, so that the branches added to a token do not drown it.
        self.embed = nnx.Embed(
            VOCABULARY,
            config.width,
            embedding_init=nnx.initializers.normal(1.0),
            rngs=rngs,
        )
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        # A head of zeros begins with every byte equally likely: a loss of log 256.
        self.lm_head = nnx.Linear(
            config.width,
            VOCABULARY,
            use_bias=False,
            kernel_init=nnx.initializers.zeros_init(),
            rngs=rngs,
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


class Block(nnx.Module):
    """Attention, then an MLP; each reads a normed copy and adds to the stream."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nnx.Module):
    """Causal attention with rotary positions.

    The kernels keep their heads apart, (width, heads, head) and (heads, head, width):
    the shapes an optimizer for matrices has to be told how to read.
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        heads = (config.heads, config.width // config.heads)

        def project():
            return nnx.LinearGeneral(config.width, heads, use_bias=False, rngs=rngs)

        self.query = project()
        self.key = project()
        self.value = project()
        self.out = nnx.LinearGeneral(
            heads,
            config.width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=_branch_end(config),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = rotate(self.query(x)), rotate(self.key(x)), self.value(x)
        return self.out(jax.nn.dot_product_attention(query, key, value, is_causal=True))


class MLP(nnx.Module):
    """Two layers with a GELU between, four times as wide inside."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        hidden = 4 * config.width
        self.up = nnx.Linear(config.width, hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(
            hidden,
            config.width,
            use_bias=False,
            kernel_init=_branch_end(config),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x)))


def rotate(x: jax.Array) -> jax.Array:
    """Turn feature pairs of x[batch, time, head, feature] by angles that grow in time.

    The product of a query and a key turned so depends on the distance between them
    alone, which gives attention its sense of position without any parameter.
    """
    time, features = x.shape[1], x.shape[-1]
    rates = 10_000.0 ** (-jnp.arange(0, features, 2) / features)
    angles = jnp.arange(time)[:, None, None] * rates
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, first * sin + second * cos], axis=-1
    )


def _branch_end(config: GPTConfig) -> nnx.initializers.Initializer:
    """So small that the 2 * layers branches start with unit variance in sum."""
    return nnx.initializers.variance_scaling(
        1 / (2 * config.layers), "fan_in", "normal"
    )
