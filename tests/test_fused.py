"""Matrices side by side in one leaf: as if each were a leaf of its own."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_muon
from optax_muon import MatrixAxes, fused, muon, normalize_neurons, stacked
from tests.followed import train
from tests.recipes import assert_close

# Grouped queries (four heads of queries, two of keys and values), gate beside up, and
# the outputs of attention and MLP merged along the fan-in.
KINDS = {
    "qkv": ((6, 16), MatrixAxes(0, 1, fan_out_parts=(8, 4, 4))),
    "gate_up": ((6, 24), MatrixAxes(0, 1, fan_out_parts=(12, 12))),
    "tall": ((16, 6), MatrixAxes(0, 1, fan_out_parts=(4, 2))),
    "outputs": ((12, 6), MatrixAxes(0, 1, fan_in_parts=(8, 4))),
    "heads": ((6, 8, 2), MatrixAxes(0, (1, 2), fan_out_parts=(8, 4, 4))),
    "interleaved": ((6, 2, 4, 2), MatrixAxes(0, (2, 1, 3), fan_out_parts=(8, 4, 4))),
    "layers": ((3, 6, 16), MatrixAxes(1, 2, fan_out_parts=(8, 4, 4))),
}


def params_of(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, (shape, _) in shapes.items()
    }


def parts_of(leaf, axes):
    """The leaf's parts, each [batch, fan_in, fan_out]."""
    view = axes.view(leaf.shape)
    order = view.batch_axes + view.fan_in_axes + view.fan_out_axes
    matrices = np.asarray(leaf).transpose(order).reshape(view.matrices)
    side = 1 if view.fan_in_parts else 2
    return np.split(matrices, np.cumsum(view.parts)[:-1], side)


def apart(tree):
    """The tree with a leaf for every part."""
    return {
        f"{name}_{k}": jnp.asarray(part)
        for name, leaf in tree.items()
        for k, part in enumerate(parts_of(leaf, KINDS[name][1]))
    }


def optimizer(axes, **arguments):
    return muon(
        0.1,
        scale="width",
        weight_decay=0.1,
        normalizer=normalize_neurons(0.9, matrix_axes=axes),
        matrix_axes=axes,
        **arguments,
    )


@pytest.mark.parametrize(
    "orthogonalizer", [optax_muon.NewtonSchulz(), optax_muon.Svd()]
)
def test_parts_train_as_separate_leaves(orthogonalizer):
    """Momentum, polar factors, neuron statistics, scales and decay, over four steps."""
    params = params_of(KINDS)
    gradients = [params_of(KINDS, seed) for seed in range(1, 5)]
    axes = {name: declared for name, (_, declared) in KINDS.items()}
    together = train(optimizer(axes, orthogonalizer=orthogonalizer), params, gradients)
    alone = train(
        optimizer(lambda path, leaf: MatrixAxes(-2, -1), orthogonalizer=orthogonalizer),
        apart(params),
        list(map(apart, gradients)),
    )
    assert_close(apart(together), alone)


def test_a_part_that_is_spoiled_leaves_the_others():
    axes = MatrixAxes(0, 1, fan_out_parts=(4, 2))
    gradient = jnp.ones((6, 6)).at[0, 5].set(jnp.nan)
    tx = optimizer(axes)
    update, _ = tx.update(gradient, tx.init(gradient), jnp.ones((6, 6)))
    assert np.isfinite(update[:, :4]).all()
    assert np.isnan(update[:, 4:]).all()


class TestRule:
    def test_by_name_inside_stacks(self):
        rule = stacked("layers", inner=fused("qkv", (8, 4, 4)))
        params = {"layers": {"qkv": {"kernel": jnp.ones((3, 6, 16))}}}
        plan = optax_muon.plan(params, rule)
        [leaf] = plan.leaves
        assert leaf.parts == ((6, 8), (6, 4), (6, 4))
        assert leaf.batch == 3
        assert "6 x (8 + 4 + 4)" in str(plan)
        assert "0.566, 0.49, 0.49" in str(plan)  # 0.2 sqrt(8), 0.2 sqrt(6) twice

    def test_biases_and_other_leaves_stay_what_they_are(self):
        rule = fused("qkv", (8, 4, 4))
        params = {"qkv": {"bias": jnp.ones(16)}, "up": {"kernel": jnp.ones((6, 8))}}
        assert [leaf.parts for leaf in optax_muon.plan(params, rule).leaves] == [(), ()]

    def test_balls_of_biases_have_no_inputs(self):
        rule = fused("out", (8, 4), "fan_in", optax_muon.flax_norm_balls())
        params = {"out": {"kernel": jnp.ones((12, 6)), "bias": jnp.ones(6)}}
        tx = optax_muon.scale_by_lmo(rule)
        steps, _ = tx.update(params, tx.init(params))
        np.testing.assert_allclose(steps["out"]["bias"], 1)

    def test_parts_along_the_fan_in(self):
        rule = fused("out", (8, 4), "fan_in")
        plan = optax_muon.plan({"out": jnp.ones((12, 6))}, rule)
        assert "(8 + 4) x 6" in str(plan)

    def test_parts_that_do_not_add_up(self):
        params = {"qkv": {"kernel": jnp.ones((6, 15))}}
        with pytest.raises(ValueError, match=r"(?s)qkv/kernel.*add up to 16.*15 long"):
            muon(0.1, matrix_axes=fused("qkv", (8, 4, 4))).init(params)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((("qkv"), 3), TypeError, "fan_out_parts=3"),
            (("qkv", (8, "4")), TypeError, "must be a tuple of ints"),
            (("qkv", (8,)), ValueError, "two or more"),
            (("qkv", (8, 0)), ValueError, "two or more"),
            (("qkv", (8, 4), "out"), ValueError, "side='out'"),
            (("(", (8, 4)), ValueError, "no regular expression"),
            (("qkv", (8, 4), "fan_in", MatrixAxes()), TypeError, "is no rule"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            fused(*arguments)

    def test_parts_along_both_sides(self):
        with pytest.raises(ValueError, match="along both sides"):
            MatrixAxes(0, 1, fan_in_parts=(2, 2), fan_out_parts=(2, 2))

    def test_shampoo_refuses_parts(self):
        tx = optax_muon.scale_by_shampoo(matrix_axes=fused("qkv", (2, 2)))
        with pytest.raises(ValueError, match=r"(?s)scale_by_shampoo.*qkv"):
            tx.init({"qkv": jnp.ones((3, 4))})
