"""haiku_matrix_axes: every leaf of Haiku's models, by a table of what it computes."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_muon
from optax_muon import MatrixAxes, haiku_matrix_axes, stacked
from tests.routing_cases import (
    adamw,
    complaints,
    muon,
    probe,
    random_like,
    shaped,
    table_of,
    under,
)

WIDTH, HEADS, KEY, HIDDEN, LAYERS, VOCABULARY, TIME = 8, 2, 3, 20, 4, 11, 5
QKV = HEADS * KEY


def shapes_of(function, *inputs):
    init = hk.transform_with_state(function).init
    return jax.eval_shape(init, jax.random.key(0), *inputs)[0]


def block(x):
    norm = hk.LayerNorm(-1, create_scale=True, create_offset=True)
    attention = hk.MultiHeadAttention(
        HEADS, KEY, model_size=WIDTH, w_init=hk.initializers.VarianceScaling()
    )
    x = norm(x)
    x = x + attention(x, x, x)
    return x + hk.nets.MLP([HIDDEN, WIDTH])(x)


def transformer(tokens, stack=None):
    x = hk.Embed(VOCABULARY, WIDTH)(tokens)
    x = x + hk.get_parameter("pos_embs", (TIME, WIDTH), init=jnp.zeros)
    if stack is None:
        x = block(x)
    else:
        x = hk.experimental.layer_stack(LAYERS, name=stack)(block)(x)
    return hk.Linear(VOCABULARY, name="lm_head")(x)


TOKENS = jnp.zeros((1, TIME), jnp.int32)
ENDS = adamw("embed/embeddings", "~/pos_embs", "lm_head/w", "lm_head/b")


def blocks():
    attention = "multi_head_attention"
    return {
        **muon(WIDTH, QKV, *(f"{attention}/{x}/w" for x in ("query", "key", "value"))),
        **adamw(*(f"{attention}/{x}/b" for x in ("query", "key", "value", "linear"))),
        **muon(QKV, WIDTH, f"{attention}/linear/w"),
        **muon(WIDTH, HIDDEN, "mlp/~/linear_0/w"),
        **muon(HIDDEN, WIDTH, "mlp/~/linear_1/w"),
        **adamw("mlp/~/linear_0/b", "mlp/~/linear_1/b"),
        **adamw("layer_norm/scale", "layer_norm/offset"),
    }


def in_stack(table):
    return {
        path: (optimizer, matrix, LAYERS if optimizer == "muon" else None)
        for path, (optimizer, matrix, _) in table.items()
    }


def test_transformer():
    params = shapes_of(transformer, TOKENS)
    assert table_of(optax_muon.plan(params, haiku_matrix_axes)) == ENDS | blocks()


@pytest.mark.parametrize(
    ("name", "pattern"), [("layers", "layers"), ("", ".*layer_stack.*")]
)
def test_stacked_transformer(name, pattern):
    params = shapes_of(lambda x: transformer(x, name), TOKENS)
    rule = stacked(pattern, inner=haiku_matrix_axes)
    found = table_of(optax_muon.plan(params, rule))
    prefix = name or "__layer_stack_no_per_layer"
    assert found == ENDS | under(prefix, in_stack(blocks()))


def convolutions(image, data_format):
    x = hk.Conv2D(4, (3, 2), data_format=data_format)(image)
    norm = hk.BatchNorm(True, True, 0.9, data_format=f"N{data_format[1:]}")
    x = jax.nn.relu(norm(x, is_training=True))
    x = hk.Conv2D(6, 3, feature_group_count=2, data_format=data_format)(x)
    x = hk.DepthwiseConv2D(2, 3, data_format=data_format)(x)
    x = hk.Conv2DTranspose(
        5, (2, 3), data_format=data_format, name="up_transpose_conv"
    )(x)
    x = hk.Conv2DTranspose(7, 1, data_format=data_format)(x)
    return hk.Linear(10, name="logits")(hk.Flatten()(x))


CONVOLUTIONS = {
    **muon(3 * 2 * 3, 4, "conv2_d/w"),
    **muon(3 * 3 * 2, 6, "conv2_d_1/w"),
    **adamw("depthwise_conv2_d/w", "depthwise_conv2_d/b"),
    **muon(2 * 3 * 12, 5, "up_transpose_conv/w"),
    **muon(5, 7, "conv2_d_transpose/w"),
    **adamw("conv2_d/b", "conv2_d_1/b", "conv2_d_transpose/b", "up_transpose_conv/b"),
    **adamw("batch_norm/scale", "batch_norm/offset", "logits/w", "logits/b"),
}


@pytest.mark.parametrize(
    ("data_format", "shape"), [("NHWC", (1, 6, 6, 3)), ("NCHW", (1, 3, 6, 6))]
)
def test_convolutions(data_format, shape):
    params = shapes_of(lambda x: convolutions(x, data_format), jnp.zeros(shape))
    found = table_of(optax_muon.plan(params, haiku_matrix_axes))
    assert found == CONVOLUTIONS


def test_convolutions_of_one_channel_are_input_layers():
    def model(image):
        return hk.Conv2DTranspose(4, 3)(image), hk.Conv2D(4, 3)(image)

    params = shapes_of(model, jnp.zeros((1, 6, 6, 1)))
    found = table_of(optax_muon.plan(params, haiku_matrix_axes))
    kernels = [f"{name}/{x}" for name in ("conv2_d", "conv2_d_transpose") for x in "wb"]
    assert found == adamw(*kernels)


def recurrent(x):
    for core in (hk.VanillaRNN(6), hk.LSTM(7), hk.GRU(5), hk.LSTM(3, name="top_lstm")):
        x, _ = hk.dynamic_unroll(core, x, core.initial_state(1), time_major=False)
    core = hk.Conv1DLSTM((4,), 2, 3)
    image, _ = core(jnp.zeros((1, 4, 3)), core.initial_state(1))
    return x, image


RECURRENT = {
    **muon(4, 6, "vanilla_rnn/linear/w"),
    **muon(6, 6, "vanilla_rnn/linear_1/w"),
    **muon(6 + 7, 4 * 7, "lstm/linear/w"),
    **muon(7, 3 * 5, "gru/w_i"),
    **muon(5, 3 * 5, "gru/w_h"),
    **muon(5 + 3, 4 * 3, "top_lstm/linear/w"),
    **muon(3 * 3, 4 * 2, "conv1_dlstm/input_to_hidden/w"),
    **muon(3 * 2, 4 * 2, "conv1_dlstm/hidden_to_hidden/w"),
}


def test_gates_are_matrices_of_their_own():
    params = shapes_of(recurrent, jnp.zeros((1, TIME, 4)))
    plan = optax_muon.plan(params, haiku_matrix_axes)
    muons = {x.path: (x.optimizer, x.matrix, x.batch) for x in plan.leaves if x.matrix}
    assert muons == RECURRENT
    parts = {x.path: len(x.parts) for x in plan.leaves if x.parts}
    assert parts == {
        "lstm/linear/w": 4,
        "top_lstm/linear/w": 4,
        "gru/w_i": 3,
        "gru/w_h": 3,
        "conv1_dlstm/input_to_hidden/w": 4,
        "conv1_dlstm/hidden_to_hidden/w": 4,
    }


def test_each_gate_moves_as_a_kernel_of_its_own():
    params = random_like(shapes_of(recurrent, jnp.zeros((1, TIME, 4))))
    leaf = params["lstm/linear"]["w"]
    gates = {"lstm/linear": {f"w{i}": x for i, x in enumerate(jnp.split(leaf, 4, 1))}}
    updates = []
    for tree in (params, gates):
        tx = optax_muon.muon(0.1, orthogonalizer=probe, matrix_axes=haiku_matrix_axes)
        updates.append(tx.update(tree, tx.init(tree), tree)[0]["lstm/linear"])
    ours, expected = updates
    joined = jnp.concatenate([expected[f"w{i}"] for i in range(4)], axis=1)
    # Both add float32 numbers of one size, in another order.
    np.testing.assert_allclose(ours["w"], joined, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("lstm/linear/w", (7, 28)),  # no input beside the hidden state
        ("lstm/linear/w", (9, 30)),  # not four gates
        ("lstm/out/w", (15, 28)),
        ("lstmish/linear/w", (15, 28)),
        ("mlp/linear/w_i", (5, 15)),
    ],
)
def test_what_only_looks_like_gates(path, shape):
    module, _, name = path.rpartition("/")
    axes = jax.tree_util.tree_map_with_path(
        haiku_matrix_axes, {module: {name: shaped(*shape)}}
    )
    assert axes == {module: {name: MatrixAxes(0, 1)}}


def test_leaves_that_names_do_not_decide_are_listed():
    params = {
        "mlp/linear": {"w": shaped(4, 3, 5), "b": shaped(4, 1, 5)},
        "attention/~/query": {"w": shaped(4, 3, 5)},
        "linear": {"weight": shaped(3, 5), "w": shaped(3, 5)},
    }
    found = complaints(params, haiku_matrix_axes)
    assert found == {
        "mlp/linear/w": "rank 3: no convolution by its names",
        "attention/~/query/w": "rank 3: no convolution by its names",
        "linear/weight": "'weight' may be [fan_out, fan_in], as in PyTorch",
    }
