"""What must become of every leaf of the architectures, written down by hand.

A table is path -> None for AdamW, or (axes, (fan_in, fan_out), batch), from what each
layer computes, not from what the library says.
"""

from typing import Any

import jax

from optax_muon import MatrixAxes, plan
from optax_muon._matrix_axes import path_names

DENSE = MatrixAxes(0, 1)
TO_HEADS = MatrixAxes(0, (1, 2))
FROM_HEADS = MatrixAxes((0, 1), 2)
CONV = MatrixAxes((0, 1, 2), 3)

# --- shared by both libraries: same names --------------------------------------------

LLAMA: dict[str, Any] = {
    "embed_tokens/embedding": None,
    "layers/attention_norm/scale": None,
    "layers/q_proj/kernel": (MatrixAxes(1, (2, 3)), (8, 12), 3),
    "layers/k_proj/kernel": (MatrixAxes(1, (2, 3)), (8, 6), 3),
    "layers/v_proj/kernel": (MatrixAxes(1, (2, 3)), (8, 6), 3),
    "layers/o_proj/kernel": (MatrixAxes((1, 2), 3), (12, 8), 3),
    "layers/mlp_norm/scale": None,
    "layers/gate_proj/kernel": (MatrixAxes(1, 2), (8, 20), 3),
    "layers/up_proj/kernel": (MatrixAxes(1, 2), (8, 20), 3),
    "layers/down_proj/kernel": (MatrixAxes(1, 2), (20, 8), 3),
    "norm/scale": None,
    "lm_head/kernel": None,
}
LLAMA_ALONG_1 = LLAMA | {
    "layers/q_proj/kernel": (MatrixAxes(0, (2, 3)), (8, 12), 3),
    "layers/k_proj/kernel": (MatrixAxes(0, (2, 3)), (8, 6), 3),
    "layers/v_proj/kernel": (MatrixAxes(0, (2, 3)), (8, 6), 3),
    "layers/o_proj/kernel": (MatrixAxes((0, 2), 3), (12, 8), 3),
    "layers/gate_proj/kernel": (MatrixAxes(0, 2), (8, 20), 3),
    "layers/up_proj/kernel": (MatrixAxes(0, 2), (8, 20), 3),
    "layers/down_proj/kernel": (MatrixAxes(0, 2), (20, 8), 3),
}
MOE = {
    "embed/embedding": None,
    "layers/router/kernel": (MatrixAxes(1, 2), (8, 5), 3),
    "layers/experts/up/kernel": (MatrixAxes(2, 3), (8, 20), 15),
    "layers/experts/up/bias": None,
    "layers/experts/down/kernel": (MatrixAxes(2, 3), (20, 8), 15),
    "layers/experts/down/bias": None,
}


def _t5_attention(name: str) -> dict[str, Any]:
    return {
        f"{name}/query/kernel": (TO_HEADS, (8, 12), 1),
        f"{name}/key/kernel": (TO_HEADS, (8, 12), 1),
        f"{name}/value/kernel": (TO_HEADS, (8, 12), 1),
        f"{name}/out/kernel": (FROM_HEADS, (12, 8), 1),
    }


def _t5_layer(name: str, *, crosses: bool) -> dict[str, Any]:
    cross = {f"{name}/norm_cross/scale": None} | _t5_attention(
        f"{name}/cross_attention"
    )
    return {
        f"{name}/norm_self/scale": None,
        **_t5_attention(f"{name}/self_attention"),
        **(cross if crosses else {}),
        f"{name}/norm_ff/scale": None,
        f"{name}/wi/kernel": (DENSE, (8, 20), 1),
        f"{name}/wo/kernel": (DENSE, (20, 8), 1),
    }


T5 = {
    "shared/embedding": None,
    "encoder/relative_bias/embedding": None,
    **_t5_layer("encoder/layer_0", crosses=False),
    **_t5_layer("encoder/layer_1", crosses=False),
    "encoder/norm/scale": None,
    "decoder/relative_bias/embedding": None,
    **_t5_layer("decoder/layer_0", crosses=True),
    **_t5_layer("decoder/layer_1", crosses=True),
    "decoder/norm/scale": None,
}

# --- other names in each library ------------------------------------------------------


def _vit_block(norms: tuple[str, str], attention: str, up: str, down: str) -> Any:
    return {
        f"{norms[0]}/scale": None,
        f"{norms[0]}/bias": None,
        f"{attention}/query/kernel": (TO_HEADS, (8, 12), 1),
        f"{attention}/query/bias": None,
        f"{attention}/key/kernel": (TO_HEADS, (8, 12), 1),
        f"{attention}/key/bias": None,
        f"{attention}/value/kernel": (TO_HEADS, (8, 12), 1),
        f"{attention}/value/bias": None,
        f"{attention}/out/kernel": (FROM_HEADS, (12, 8), 1),
        f"{attention}/out/bias": None,
        f"{norms[1]}/scale": None,
        f"{norms[1]}/bias": None,
        f"{up}/kernel": (DENSE, (8, 20), 1),
        f"{up}/bias": None,
        f"{down}/kernel": (DENSE, (20, 8), 1),
        f"{down}/bias": None,
    }


def _vit(block: str, norm: str, inside: Any) -> dict[str, Any]:
    return {
        "patches/kernel": (CONV, (2 * 2 * 3, 8), 1),  # three channels: as a hidden one
        "patches/bias": None,
        "cls": None,
        "pos_embedding": None,
        **{f"{block}0/{name}": row for name, row in inside.items()},
        **{f"{block}1/{name}": row for name, row in inside.items()},
        f"{norm}/scale": None,
        f"{norm}/bias": None,
        "head/kernel": None,
        "head/bias": None,
    }


VIT_LINEN = _vit(
    "ViTBlock_",
    "LayerNorm_0",
    _vit_block(
        ("LayerNorm_0", "LayerNorm_1"),
        "MultiHeadDotProductAttention_0",
        "Dense_0",
        "Dense_1",
    ),
)
VIT_NNX = _vit(
    "blocks/",
    "norm",
    _vit_block(("norm_1", "norm_2"), "attention", "mlp/layers/0", "mlp/layers/3"),
)

# Of two groups, each is a matrix of its own: 6 of the 12 outputs, of 6 inputs.
GROUPED = MatrixAxes((0, 1, 2), 3, fan_out_parts=(6, 6))


def _resnet(norm: str, blocks: tuple[str, str], names: tuple[str, ...]) -> Any:
    conv_1, norm_1, conv_2, norm_2 = names
    table: dict[str, Any] = {"stem/kernel": (CONV, (5 * 5 * 3, 4), 1)}
    for one in (norm, *(f"{b}/{n}" for b in blocks for n in (norm_1, norm_2))):
        table |= {f"{one}/scale": None, f"{one}/bias": None}
    return table | {
        f"{blocks[0]}/{conv_1}/kernel": (CONV, (3 * 3 * 4, 6), 1),
        f"{blocks[0]}/{conv_2}/kernel": (CONV, (3 * 3 * 6, 6), 1),
        f"{blocks[0]}/shortcut/kernel": (CONV, (4, 6), 1),
        f"{blocks[1]}/{conv_1}/kernel": (CONV, (3 * 3 * 6, 12), 1),
        f"{blocks[1]}/{conv_2}/kernel": (GROUPED, (3 * 3 * 6, 12), 1),
        f"{blocks[1]}/shortcut/kernel": (CONV, (6, 12), 1),
        "classifier/kernel": None,
        "classifier/bias": None,
    }


RESNET_LINEN = _resnet(
    "BatchNorm_0",
    ("ResNetBlock_0", "ResNetBlock_1"),
    ("Conv_0", "BatchNorm_0", "Conv_1", "BatchNorm_1"),
)
RESNET_NNX = _resnet(
    "norm", ("block_0", "block_1"), ("conv_1", "norm_1", "conv_2", "norm_2")
)

# Gates in leaves of their own, and in one leaf: the same matrices.
RECURRENT_LINEN = {
    **{f"OptimizedLSTMCell_0/i{g}/kernel": (DENSE, (5, 7), 1) for g in "ifgo"},
    **{f"OptimizedLSTMCell_0/h{g}/kernel": (DENSE, (7, 7), 1) for g in "ifgo"},
    **{f"OptimizedLSTMCell_0/h{g}/bias": None for g in "ifgo"},
    **{f"GRUCell_0/i{g}/kernel": (DENSE, (7, 9), 1) for g in "rzn"},
    **{f"GRUCell_0/h{g}/kernel": (DENSE, (9, 9), 1) for g in "rzn"},
    **{f"GRUCell_0/i{g}/bias": None for g in "rzn"},
    "GRUCell_0/hn/bias": None,
    "logits/kernel": None,
    "logits/bias": None,
}
FOUR = MatrixAxes(0, 1, fan_out_parts=(7, 7, 7, 7))
THREE = MatrixAxes(0, 1, fan_out_parts=(9, 9, 9))
RECURRENT_NNX = {
    "lstm/cell/dense_i/kernel": (FOUR, (5, 28), 1),
    "lstm/cell/dense_h/kernel": (FOUR, (7, 28), 1),
    "lstm/cell/dense_h/bias": None,
    **{
        f"plain/cell/{name}/kernel": (DENSE, (7, 7), 1)
        for name in ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho")
    },
    **{f"plain/cell/h{g}/bias": None for g in "ifgo"},
    "gru/cell/dense_i/kernel": (THREE, (7, 27), 1),
    "gru/cell/dense_i/bias": None,
    "gru/cell/dense_h/kernel": (THREE, (9, 27), 1),
    "logits/kernel": None,
    "logits/bias": None,
}


def check(params: Any, axes: Any, table: dict[str, Any]) -> None:
    """The axes are those of the table, and so is the plan that is made of them."""
    assert flat(axes) == {path: row and row[0] for path, row in table.items()}
    planned = {
        x.path: x.matrix and (x.matrix, x.batch) for x in plan(params, axes).leaves
    }
    assert planned == {path: row and row[1:] for path, row in table.items()}


def flat(axes: Any) -> dict[str, MatrixAxes | None]:
    """A tree of axes by names."""
    found, _ = jax.tree_util.tree_flatten_with_path(axes, is_leaf=lambda x: x is None)
    return {"/".join(path_names(path)): entry for path, entry in found}
