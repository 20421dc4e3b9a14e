"""Real Flax models, each with the whole table of what must happen to its leaves.

A table is path -> (optimizer, (fan_in, fan_out), batch), written down from what each
layer computes, not from what the library says.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_muon
from tests.flax_models import (
    HIDDEN,
    INPUTS,
    LAYERS,
    NNXCNN,
    NNXGPT,
    NNXMLP,
    NNXRNN,
    QKV,
    TIME,
    UNITS,
    WIDTH,
    LinenCNN,
    LinenGPT,
    LinenMLP,
    LinenRNN,
)

Table = dict[str, tuple[str, tuple[int, int] | None, int | None]]


class Case(NamedTuple):
    build: Callable[[], Any]  # -> parameters as shapes
    expected: Table
    matrix_axes: Any = None


def adamw(*paths: str) -> Table:
    return {path: ("adamw", None, None) for path in paths}


def muon(fan_in: int, fan_out: int, *paths: str, batch: int = 1) -> Table:
    return {path: ("muon", (fan_in, fan_out), batch) for path in paths}


def under(prefix: str, table: Table) -> Table:
    return {f"{prefix}/{path}": row for path, row in table.items()}


def table_of(plan: Any) -> Table:
    """A plan as such a table."""
    return {x.path: (x.optimizer, x.matrix, x.batch) for x in plan.leaves}


def named(tree: Any) -> dict[str, Any]:
    """Leaves by name, masked ones too; a variable's own `.value` is no name."""
    flat, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in flat]
    return {
        re.sub("/value$", "", name) or "(root)": leaf
        for name, (_, leaf) in zip(names, flat, strict=True)
    }


def linen(module: nn.Module, *shape: int, dtype: Any = jnp.float32) -> Callable:
    """The parameters of a Linen module that reads an array of `shape`."""
    return lambda: jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros(shape, dtype)
    )["params"]


def nnx_params(model: Callable[[nnx.Rngs], nnx.Module]) -> Callable[[], Any]:
    return lambda: nnx.state(nnx.eval_shape(lambda: model(nnx.Rngs(0))), nnx.Param)


def random_model(model: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """A model with random parameters, without the time to compile initializers."""
    made = nnx.eval_shape(lambda: model(nnx.Rngs(0)))
    nnx.update(made, random_like(nnx.state(made, nnx.Param)))
    return made


def random_like(shapes: Any, seed: int = 0) -> Any:
    """Standard normal float32 leaves in the place of shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )


def probe(x: jax.Array) -> jax.Array:
    """In the place of a polar factor: it shows what became a matrix, and compiles fast.

    Each entry times 1 + its number in its matrix, plus the sum of its matrix: so the
    place of an entry shows, and the company it keeps. Exact on small integers.
    """
    m, n = x.shape[-2:]
    number = 1 + jnp.arange(m * n, dtype=x.dtype).reshape(m, n)
    return x * number + x.sum((-2, -1), keepdims=True)


def complaints(params: Any, matrix_axes: Any = None) -> dict[str, str]:
    """Path -> reason of every leaf in the error that `params` must raise."""
    with pytest.raises(ValueError, match=r"\Aoptax_muon cannot decide") as caught:
        optax_muon.plan(params, matrix_axes)
    _, *lines, remedy = str(caught.value).splitlines()
    assert remedy.startswith("Where the dtype is no reason, pass matrix_axes=")
    if "These were decided; are they what they seem?" in lines:
        lines = lines[: lines.index("These were decided; are they what they seem?")]
    listed = [re.fullmatch(r"  (\S+)  (\(.*?\)) (\S+): (.+)", line) for line in lines]
    leaves = jax.tree.leaves(params)
    known = {(str(np.shape(x)), str(jnp.result_type(x))) for x in leaves}
    assert {(match[2], match[3]) for match in listed} <= known
    assert len({match[1] for match in listed}) == len(listed)
    with pytest.raises(ValueError, match=r".") as at_init:
        optax_muon.muon(0.1, matrix_axes=matrix_axes).init(params)
    assert str(at_init.value) == str(caught.value)
    return {match[1]: match[4] for match in listed}


# --- MLPs ---------------------------------------------------------------------------

LINEN_MLP = {
    **muon(6, 9, "Dense_0/kernel"),
    **muon(9, 10, "Dense_1/kernel"),
    **adamw("Dense_0/bias", "LayerNorm_0/scale", "LayerNorm_0/bias"),
    **adamw("classifier/kernel", "classifier/bias"),
}
PARTITIONED_MLP = LinenMLP(
    nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
)

NNX_MLP = {
    **muon(6, 9, "layers/0/kernel"),
    **muon(9, 10, "layers/1/kernel"),
    **muon(10, 7, "mlp/layers/0/kernel"),
    **muon(7, 5, "value"),
    **adamw("layers/0/bias", "norm/scale", "mlp/layers/0/bias"),
    **adamw("head/kernel", "head/bias"),
}

# --- convolutions -------------------------------------------------------------------

LINEN_CNN = {
    **adamw("Conv_0/kernel", "Conv_0/bias"),  # reads one channel: an input layer
    **adamw("BatchNorm_0/scale", "BatchNorm_0/bias"),
    **muon(3 * 2 * 4, 6, "Conv_1/kernel"),
    **adamw("depthwise_conv/kernel", "depthwise_conv/bias"),
    **muon(3 * 3 * 3, 8, "grouped_conv/kernel"),  # 6 channels in, 3 a group
    **muon(2 * 2 * 8, 5, "ConvTranspose_0/kernel"),
    **muon(3 * 5, 7, "Conv_2/kernel"),
    **adamw("conv1d/kernel", "conv1d/bias"),  # depthwise, with a multiplier of 2
    **muon(1 * 2 * 3 * 14, 9, "Conv_3/kernel"),
    **adamw("Conv_1/bias", "grouped_conv/bias", "ConvTranspose_0/bias"),
    **adamw("Conv_2/bias", "Conv_3/bias", "logits/kernel", "logits/bias"),
}

NNX_CNN = {
    **adamw("convs/0/kernel", "convs/2/kernel"),
    **muon(3 * 2 * 4, 6, "convs/1/kernel"),
    **muon(3 * 6, 7, "conv1d/kernel"),
    **muon(1 * 2 * 3 * 7, 9, "conv3d/kernel"),
    **muon(9, 5, "linear/kernel"),
    **adamw("convs/0/bias", "convs/1/bias", "convs/2/bias", "conv1d/bias"),
    **adamw("conv3d/bias", "linear/bias", "bn/scale", "bn/bias"),
    **adamw("classifier/kernel", "classifier/bias"),
}

# --- transformers -------------------------------------------------------------------


def block(batch: int = 1) -> Table:
    attention = {
        **muon(WIDTH, QKV, "query/kernel", "key/kernel", "value/kernel", batch=batch),
        **muon(QKV, WIDTH, "out/kernel", batch=batch),
        **adamw("query/bias", "key/bias", "value/bias", "out/bias"),
    }
    return {
        **under("attention", attention),
        **muon(WIDTH, HIDDEN, "up/kernel", batch=batch),
        **muon(HIDDEN, WIDTH, "down/kernel", batch=batch),
        **adamw("norm/scale", "norm/bias", "up/bias", "down/bias"),
    }


ENDS = adamw("embed/embedding", "pos_embed", "lm_head/kernel", "lm_head/bias")
STACKED_GPT = {**ENDS, **under("layers", block(batch=LAYERS))}


def linen_gpt(scan_axis: int | None) -> Callable[[], Any]:
    return linen(LinenGPT(scan_axis), 1, TIME, dtype=jnp.int32)


def nnx_gpt(scan_axis: int | None) -> Callable[[], Any]:
    return nnx_params(lambda rngs: NNXGPT(rngs, scan_axis))


def layers(name: str) -> Table:
    found: Table = {}
    for i in range(LAYERS):
        found |= under(f"{name}{i}", block())
    return found


# --- recurrent cells: hidden matrices, each gate its own where Flax keeps them apart --

LSTM = {
    **muon(INPUTS, UNITS, "ii/kernel", "ig/kernel", "io/kernel"),
    **muon(UNITS, UNITS, "hi/kernel", "hf/kernel", "hg/kernel", "ho/kernel"),
    **adamw("hi/bias", "hf/bias", "hg/bias", "ho/bias"),
}
LINEN_RNN = {
    **under("LSTMCell_0", {**LSTM, **muon(INPUTS, UNITS, "if/kernel")}),
    **muon(UNITS, UNITS, *(f"GRUCell_0/{g}/kernel" for g in ("ir", "iz", "in"))),
    **muon(UNITS, UNITS, *(f"GRUCell_0/{g}/kernel" for g in ("hr", "hz", "hn"))),
    **adamw(*(f"GRUCell_0/{g}/bias" for g in ("ir", "iz", "in", "hn"))),
}
NNX_RNN = {
    **under("lstm", {**LSTM, **muon(INPUTS, UNITS, "if_/kernel")}),
    **muon(INPUTS, 3 * UNITS, "gru/dense_i/kernel"),  # three gates side by side
    **muon(UNITS, 3 * UNITS, "gru/dense_h/kernel"),
    **adamw("gru/dense_i/bias"),
}


# --- the cases ----------------------------------------------------------------------


def shaped(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


STACKED = optax_muon.stacked("layers")
CASES = {
    "linen mlp": Case(linen(LinenMLP(), 1, 6), LINEN_MLP),
    "linen mlp, partitioned": Case(linen(PARTITIONED_MLP, 1, 6), LINEN_MLP),
    "linen mlp, frozen": Case(
        lambda: flax.core.freeze(linen(LinenMLP(), 1, 6)()), LINEN_MLP
    ),
    "nnx mlp": Case(nnx_params(NNXMLP), NNX_MLP),
    "linen cnn": Case(linen(LinenCNN(), 1, 8, 8, 1), LINEN_CNN),
    "nnx cnn": Case(nnx_params(NNXCNN), NNX_CNN),
    "linen gpt": Case(linen_gpt(None), {**ENDS, **layers("block_")}),
    "nnx gpt": Case(nnx_gpt(None), {**ENDS, **layers("blocks/")}),
    "linen gpt, scan": Case(linen_gpt(0), STACKED_GPT, STACKED),
    "nnx gpt, scan": Case(nnx_gpt(0), STACKED_GPT, STACKED),
    "linen rnn": Case(linen(LinenRNN(), 1, TIME, INPUTS), LINEN_RNN),
    "nnx rnn": Case(nnx_params(NNXRNN), NNX_RNN),
    "dict": Case(
        lambda: {"w": shaped(3, 4), "b": shaped(4)}, {**muon(3, 4, "w"), **adamw("b")}
    ),
    "list of layers": Case(
        lambda: [(shaped(3, 4), shaped(4)), (shaped(4, 5), shaped(5))],
        {**muon(3, 4, "0/0"), **muon(4, 5, "1/0"), **adamw("0/1", "1/1")},
    ),
    "matrix": Case(lambda: shaped(3, 4), muon(3, 4, "(root)")),
    "vector": Case(lambda: shaped(4), adamw("(root)")),
    "empty": Case(lambda: {}, {}),
}
# The same layers along other axes of the leaves: stacked(axis=...) has to say which.
OTHER_AXES = {
    f"{flax} gpt, scan along {axis}": Case(
        build(axis), STACKED_GPT, optax_muon.stacked("layers", axis=axis)
    )
    for flax, build, axis in [
        ("linen", linen_gpt, 1),
        ("linen", linen_gpt, -1),
        ("nnx", nnx_gpt, 1),
        ("nnx", nnx_gpt, -1),
    ]
}
