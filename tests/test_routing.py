"""Routing has the right effect: each leaf moves by the polar factor of the matrix that
its layer applies, or as plain AdamW moves it.

Where the numbers are integers, `probe` stands in for the polar factor and results are
exact; where they are polar factors, the reference is NumPy's SVD in float64.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_muon
from optax_muon import MatrixAxes
from tests import flax_models, oracles, routing_cases
from tests.flax_models import LAYERS
from tests.routing_cases import CASES, OTHER_AXES, named, probe

EPS = float(np.finfo(np.float32).eps)
PLAIN = {"momentum": 0.0, "nesterov": False, "scale": None}


def integers_like(shapes, seed=0):
    """Leaves of integers from 1 to 4 with signs: sums and products stay exact."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        signs = rng.choice([-1.0, 1.0], leaf.shape)
        return jnp.asarray(signs * rng.integers(1, 5, leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes)


# --- every leaf of every model ------------------------------------------------------


def probed(gradient, fans, batch, stacked_axis=0):
    """By hand: Flax's kernels list inputs before outputs, in row-major order."""
    stack_first = np.moveaxis(gradient, stacked_axis, 0) if batch > 1 else gradient
    matrices = stack_first.reshape(batch, *fans)
    result = np.asarray(probe(jnp.asarray(matrices))).reshape(stack_first.shape)
    return np.moveaxis(result, 0, stacked_axis) if batch > 1 else result


ALL = CASES | OTHER_AXES


@pytest.mark.parametrize("name", ALL)
def test_every_leaf_of_a_model_gets_its_update(name):
    case = ALL[name]
    stacked_axis = int(name.rpartition(" ")[-1]) if name in OTHER_AXES else 0
    gradients = integers_like(case.build())
    tx = optax_muon.muon(
        1.0, orthogonalizer=probe, matrix_axes=case.matrix_axes, **PLAIN
    )
    step = jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])
    updates = named(step(gradients))
    assert updates.keys() == case.expected.keys()
    for path, gradient in named(gradients).items():
        gradient = np.asarray(gradient)
        optimizer, fans, batch = case.expected[path]
        if optimizer == "muon":
            expected = -probed(gradient, fans, batch, stacked_axis)
            np.testing.assert_array_equal(updates[path], expected, err_msg=path)
        else:
            # Adam's first step is the sign. Its bias corrections 1 - 0.9 and (under a
            # root) 1 - 0.95 are differences in float32: up to 1/2 eps (10 + 20 / 2),
            # and a handful of operations.
            np.testing.assert_allclose(
                updates[path], -np.sign(gradient), rtol=16 * EPS, err_msg=path
            )


# --- every kind of leaf: polar factors ----------------------------------------------

# Flax's names and shapes, and the matrices [fan_in, fan_out] in an array of that shape.
KINDS = {
    "dense/kernel": ((8, 5), lambda x: [x]),
    "attention/query/kernel": ((8, 2, 6), lambda x: [x.reshape(8, 12)]),
    "attention/key/kernel": ((8, 2, 6), lambda x: [x.reshape(8, 12)]),
    "attention/value/kernel": ((8, 2, 6), lambda x: [x.reshape(8, 12)]),
    "attention/out/kernel": ((2, 6, 8), lambda x: [x.reshape(12, 8)]),
    "conv1d/kernel": ((3, 4, 7), lambda x: [x.reshape(12, 7)]),
    "conv2d/kernel": ((3, 2, 3, 5), lambda x: [x.reshape(18, 5)]),
    "conv3d/kernel": ((1, 2, 2, 3, 4), lambda x: [x.reshape(12, 4)]),
    "layers/up/kernel": ((3, 8, 9), list),
    "layers/query/kernel": ((3, 7, 2, 5), lambda x: [q.reshape(7, 10) for q in x]),
    "layers/conv/kernel": ((3, 2, 4, 6), lambda x: [c.reshape(8, 6) for c in x]),
    "columns/up/kernel": ((8, 3, 10), lambda x: [x[:, i] for i in range(3)]),
    "columns/out/kernel": (
        (2, 3, 4, 9),
        lambda x: [x[:, i].reshape(8, 9) for i in range(3)],
    ),
}
ADAM_KINDS = {
    "depthwise_conv/kernel": (3, 1, 6),
    "one_channel_conv/kernel": (3, 3, 1, 6),
    "embed/embedding": (11, 8),
    "lm_head/kernel": (8, 11),
    "pos_embed": (5, 8),
    "attention/query/bias": (2, 6),
    "layers/norm/scale": (3, 8),
    "layers/query/bias": (3, 2, 5),
    "columns/up/bias": (10, 3),
}
RULE = optax_muon.stacked(
    "layers", inner=optax_muon.stacked("columns", axis=1)
)  # one rule for two stacks: along the first axis, and along the second


def polar_tolerance(matrix):
    """Bound on the relative error of a polar factor that comes from a float32 SVD.

    The SVD is exact for X + E with ||E||_F <= p eps ||X||_F, p a small multiple of the
    longer side, and a polar factor moves by about ||E||_F / sigma_min (Higham,
    Functions of Matrices, 2008, chapter 8): hence p eps kappa, here p = 2 max(m, n).
    A matrix read along wrong axes is off by about 1.
    """
    return 2 * max(matrix.shape) * EPS * np.linalg.cond(matrix)


def flat_tree(shapes, seed):
    """{"a/b": shape} as nested dicts of normal random leaves, and as they are."""
    rng = np.random.default_rng(seed)
    flat = {k: rng.standard_normal(s, dtype=np.float32) for k, s in shapes.items()}
    return flat, unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def one_step_of_muon():
    """Gradients and updates of all kinds by the polar factor alone."""
    flat, gradients = flat_tree({k: shape for k, (shape, _) in KINDS.items()}, seed=0)
    tx = optax_muon.scale_by_muon(
        orthogonalizer=optax_muon.Svd(), matrix_axes=RULE, **PLAIN
    )
    updates, _ = tx.update(gradients, tx.init(gradients))
    return flat, flatten_dict(updates, sep="/")


@pytest.mark.parametrize("path", KINDS)
def test_polar_factor_of_the_matrix_that_the_layer_applies(path, one_step_of_muon):
    gradients, updates = one_step_of_muon
    _, matrices = KINDS[path]
    assert updates[path].shape == gradients[path].shape
    for x, o in zip(
        matrices(gradients[path]), matrices(np.asarray(updates[path])), strict=True
    ):
        assert oracles.relative_error(o, oracles.polar(x)) < polar_tolerance(x)


@pytest.fixture(scope="module")
def two_steps_of_everything():
    """Two steps of `muon` on leaves of all kinds, and of AdamW on its own kinds."""
    shapes = {k: shape for k, (shape, _) in KINDS.items()} | ADAM_KINDS
    params = flat_tree(shapes, seed=1)
    tx = optax_muon.muon(
        0.1,
        momentum=0.0,
        nesterov=False,
        orthogonalizer=optax_muon.Svd(),
        scale="mup",
        matrix_axes=RULE,
        adam_weight_decay=0.01,
    )
    adamw = optax.adamw(0.1, b1=0.9, b2=0.95, weight_decay=0.01)
    only = {k: params[0][k] for k in ADAM_KINDS}
    state, adamw_state = tx.init(params[1]), adamw.init(only)
    for seed in (2, 3):
        flat, gradients = flat_tree(shapes, seed)
        updates, state = tx.update(gradients, state, params[1])
        expected, adamw_state = adamw.update(
            {k: flat[k] for k in ADAM_KINDS}, adamw_state, only
        )
    return flat, flatten_dict(updates, sep="/"), expected


@pytest.mark.parametrize("path", KINDS)
def test_muon_scales_by_the_declared_fans(path, two_steps_of_everything):
    """ "mup": sqrt(fan_out / fan_in) of the matrix, whatever the axes' own lengths."""
    gradients, updates, _ = two_steps_of_everything
    _, matrices = KINDS[path]
    for x, u in zip(
        matrices(gradients[path]), matrices(np.asarray(updates[path])), strict=True
    ):
        fan_in, fan_out = x.shape
        expected = -0.1 * math.sqrt(fan_out / fan_in) * oracles.polar(x)
        assert oracles.relative_error(u, expected) < polar_tolerance(x)


@pytest.mark.parametrize("path", ADAM_KINDS)
def test_adamw_leaves_move_as_in_optax(path, two_steps_of_everything):
    _, updates, expected = two_steps_of_everything
    # The same operations one by one on the same numbers: not a bit may differ.
    np.testing.assert_array_equal(updates[path], expected[path])


# --- any axes -----------------------------------------------------------------------


@st.composite
def shapes_and_axes(draw):
    """A shape, and its axes dealt out to fan-in, fan-out and batch in any order."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    order = draw(st.permutations(range(len(shape))))
    first, second = sorted(draw(st.tuples(*[st.integers(0, len(shape))] * 2)))
    fan_in, fan_out = tuple(order[:first]), tuple(order[first:second])
    negative = draw(st.booleans())
    given_in, given_out = (
        tuple(a - len(shape) * negative for a in side) for side in (fan_in, fan_out)
    )
    return shape, fan_in, fan_out, MatrixAxes(given_in, given_out)


@settings(max_examples=40, deadline=None)  # each shape compiles anew
@given(shapes_and_axes())
def test_any_axes_are_read_entry_by_entry(drawn):
    shape, fan_in, fan_out, axes = drawn
    gradient = np.asarray(integers_like(routing_cases.shaped(*shape)))

    def at(index, side):
        """The row or column of an entry: its place on the merged axes, in order."""
        place = 0
        for axis in side:
            place = place * shape[axis] + index[axis]
        return place

    matrices = {}
    rest = [a for a in range(len(shape)) if a not in fan_in + fan_out]
    for index in np.ndindex(shape):
        which = tuple(index[a] for a in rest)
        matrices.setdefault(which, []).append(gradient[index])
    columns = math.prod(shape[a] for a in fan_out)
    expected = np.empty(shape)
    for index in np.ndindex(shape):
        company = sum(matrices[tuple(index[a] for a in rest)])
        number = 1 + at(index, fan_in) * columns + at(index, fan_out)
        expected[index] = gradient[index] * number + company

    tx = optax_muon.scale_by_muon(orthogonalizer=probe, matrix_axes=axes, **PLAIN)
    update, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_array_equal(update, expected)
    rows = math.prod(shape[a] for a in fan_in)
    leaf = optax_muon.plan(gradient, axes).leaves[0]
    assert (leaf.matrix, leaf.batch) == ((rows, columns), len(matrices))


# --- stacked layers are separate layers ---------------------------------------------


def test_training_a_stack_is_training_its_layers_one_by_one():
    """The scanned GPT against the same layers as leaves of their own, three steps."""
    model = routing_cases.random_model(lambda rngs: flax_models.NNXGPT(rngs, 0))
    tokens = jnp.arange(2 * flax_models.TIME).reshape(2, -1)
    graph, params = nnx.split(model, nnx.Param)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = nnx.merge(graph, params)(tokens)
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, tokens
        ).mean()

    def apart(tree):
        tree = nnx.to_pure_dict(tree)
        layers = tree.pop("layers")
        return tree | {
            f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], layers)
            for i in range(LAYERS)
        }

    stacked = optax_muon.muon(
        0.02, matrix_axes=optax_muon.stacked("layers"), weight_decay=0.1
    )
    separate = optax_muon.muon(0.02, weight_decay=0.1)
    step, separate_step = jax.jit(stacked.update), jax.jit(separate.update)
    others = apart(params)
    state, separate_state = stacked.init(params), separate.init(others)
    for _ in range(3):
        gradients = gradient(params)
        updates, state = step(gradients, state, params)
        expected, separate_state = separate_step(
            apart(gradients), separate_state, others
        )
        params = optax.apply_updates(params, updates)
        others = optax.apply_updates(others, expected)
        # The gradients are the same numbers. Two programs may round a sum of products
        # differently (fused or not): a few eps in the trace, which the iteration
        # amplifies at most by its slope at 0, the product of the coefficients a.
        table = optax_muon.COEFFICIENTS["polar_express"].schedule()
        slope = math.prod(a for a, _, _ in table)
        both = named(apart(updates)), named(expected)
        assert both[0].keys() == both[1].keys()
        for path, update in both[0].items():
            error = oracles.relative_error(update, both[1][path])
            assert error < 4 * EPS * slope, path
