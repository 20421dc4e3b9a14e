"""scale_by_muon: momentum against float64, odd trees and values, errors, programs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_muon
from optax_muon import MatrixAxes, MuonState, NewtonSchulz, Svd, scale_by_muon
from tests import oracles


def two_steps(tx, params, gradients):
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
    return updates, state


# How momentum is given -> what it is at each of four steps.
MOMENTUM_KINDS = {
    "float": (0.9, [0.9] * 4),
    "array": (np.asarray(0.9, np.float32), [0.9] * 4),
    "numpy": (np.float64(0.9), [0.9] * 4),
    "schedule": (lambda count: 0.5 + 0.1 * count, [0.5, 0.6, 0.7, 0.8]),
    "zero": (0.0, [0.0] * 4),
}


class TestMomentum:
    @staticmethod
    def reference(gradients, mus, form, nesterov):
        """Trace and direction after all gradients, in float64."""
        weight = (lambda mu: 1 - mu) if form == "ema" else (lambda mu: 1.0)
        trace = np.zeros_like(gradients[0])
        for gradient, mu in zip(gradients, mus, strict=True):
            trace = mu * trace + weight(mu) * gradient
            ahead = mu * trace + weight(mu) * gradient
        return trace, ahead if nesterov else trace

    @pytest.mark.parametrize("kind", MOMENTUM_KINDS)
    @pytest.mark.parametrize("nesterov", [True, False])
    @pytest.mark.parametrize("form", ["ema", "heavy_ball"])
    def test_trace_and_direction(self, rng, form, nesterov, kind):
        momentum, mus = MOMENTUM_KINDS[kind]
        gradients = rng.normal(size=(4, 3, 5))
        trace, direction = self.reference(gradients, mus, form, nesterov)
        # A function as orthogonalizer shows the direction itself.
        tx = scale_by_muon(
            momentum,
            nesterov=nesterov,
            momentum_form=form,
            orthogonalizer=jnp.positive,
            scale=None,
        )
        params = jnp.zeros((3, 5))
        update, state = two_steps(tx, params, jnp.asarray(gradients, jnp.float32))
        # float32 rounds values of size 3 a few times.
        np.testing.assert_allclose(state.momentum, trace, atol=2e-6)
        np.testing.assert_allclose(update, direction, atol=2e-6)
        assert state.count == 4
        assert state.count.dtype == jnp.int32

    def test_momentum_dtype(self, rng):
        """The trace is stored in it; the arithmetic and the update are not."""
        gradients = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
        tx = scale_by_muon(
            0.9, momentum_dtype=jnp.bfloat16, orthogonalizer=jnp.positive, scale=None
        )
        update, state = two_steps(tx, gradients[0], gradients)
        assert state.momentum.dtype == jnp.bfloat16
        assert update.dtype == jnp.float32
        stored = (0.1 * gradients[0]).astype(jnp.bfloat16).astype(jnp.float32)
        trace = 0.9 * stored + 0.1 * gradients[1]
        expected = 0.9 * trace + 0.1 * gradients[1]
        np.testing.assert_allclose(update, expected, atol=1e-6)  # float32


@pytest.mark.parametrize("scale", ["width", "mup", "adam_rms", "sqrt_max", None, "own"])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_scale(rng, scale, shape):
    fan_in, fan_out = shape
    rules = {
        "width": max(1, fan_out / fan_in) ** 0.5,
        "mup": (fan_out / fan_in) ** 0.5,
        "adam_rms": 0.2 * max(shape) ** 0.5,
        "sqrt_max": max(shape) ** 0.5,
        None: 1.0,
        "own": fan_in + 100 * fan_out,
    }
    rule = (lambda i, o: i + 100 * o) if scale == "own" else scale
    tx = scale_by_muon(orthogonalizer=Svd(), scale=rule)
    gradient = jnp.asarray(rng.normal(size=shape), jnp.float32)
    update, _ = tx.update(gradient, tx.init(gradient))
    expected = rules[scale] * oracles.polar(gradient)
    np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-4)  # float32 SVD
    # scale_by_shape is the same factor as a transformation of its own.
    bare = scale_by_muon(orthogonalizer=Svd(), scale=None)
    chained = optax.chain(bare, optax_muon.scale_by_shape(rule))
    again, _ = chained.update(gradient, chained.init(gradient))
    np.testing.assert_allclose(again, update, rtol=1e-6)


class TestOddTrees:
    def test_empty_tree(self):
        for tree in ({}, [], None, {"a": {}}):
            tx = scale_by_muon()
            updates, state = tx.update(tree, tx.init(tree))
            assert updates == tree
            assert state.momentum == tree

    def test_none_and_masked_leaves_stay(self, rng):
        g = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
        tree = {"a": g, "none": None, "masked": optax.MaskedNode()}
        tx = scale_by_muon()
        updates, state = tx.update(tree, tx.init(tree))
        assert updates["none"] is None
        assert state.momentum["masked"] == optax.MaskedNode()
        alone, _ = tx.update(g, tx.init(g))
        np.testing.assert_array_equal(updates["a"], alone)

    @pytest.mark.parametrize("orthogonalizer", [NewtonSchulz(), Svd(), jnp.sign])
    def test_empty_matrices_stay_on_a_mesh(self, orthogonalizer):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        where = NamedSharding(mesh, P(None, "x"))
        tree = {"a": jnp.ones((0, 32)), "b": jnp.ones((8, 32))}
        tx = scale_by_muon(orthogonalizer=orthogonalizer, sharding=where)
        updates, _ = jax.jit(lambda g: tx.update(g, tx.init(g)))(tree)
        assert updates["a"].shape == (0, 32)
        assert np.isfinite(updates["b"]).all()

    def test_a_zero_matrix_has_a_gradient(self):
        tx = scale_by_muon()

        def loss(g):
            return tx.update(g, tx.init(g))[0].sum()

        assert np.isfinite(jax.grad(loss)(jnp.zeros((4, 8)))).all()

    @pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
    def test_single_rows_and_columns_become_unit_vectors(self, rng, shape):
        g = rng.normal(size=shape)
        tx = scale_by_muon(orthogonalizer=Svd(), scale=None)
        update, _ = tx.update(jnp.asarray(g, jnp.float32), tx.init(jnp.zeros(shape)))
        np.testing.assert_allclose(update, g / np.linalg.norm(g), atol=1e-6)

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 3, 4), (2, 0, 4)])
    @pytest.mark.parametrize("scale", ["width", "mup", "adam_rms"])
    def test_axes_of_size_zero(self, shape, scale):
        empty = jnp.zeros(shape)
        tx = scale_by_muon(matrix_axes=MatrixAxes(-2, -1), scale=scale)
        update, _ = tx.update(empty, tx.init(empty))
        assert update.shape == shape

    def test_leaves_that_share_a_stack_equal_leaves_alone(self, rng):
        shapes = {"a": (3, 4), "b": (2, 3, 4), "c": (3, 2, 2), "d": (4, 3)}
        axes = {
            "a": MatrixAxes(0, 1),
            "b": MatrixAxes(1, 2),
            "c": MatrixAxes(0, (1, 2)),
            "d": MatrixAxes(0, 1),
        }
        tree = {
            k: jnp.asarray(rng.normal(size=s), "float32") for k, s in shapes.items()
        }
        tx = scale_by_muon(matrix_axes=axes)
        together, _ = tx.update(tree, tx.init(tree))
        for name, leaf in tree.items():
            tx = scale_by_muon(matrix_axes=axes[name])
            alone, _ = tx.update(leaf, tx.init(leaf))
            # One program or two: float32 norms may be summed in another order.
            np.testing.assert_allclose(together[name], alone, atol=2e-5)


class TestOddValues:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_zero_gradients_give_zero_updates(self, dtype):
        zeros = jnp.zeros((3, 4), dtype)
        tx = scale_by_muon()
        update, state = tx.update(zeros, tx.init(zeros))
        np.testing.assert_array_equal(update, zeros)
        assert update.dtype == dtype
        assert state.momentum.dtype == dtype

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_bad_values_stay_in_their_matrix(self, rng, bad):
        g = rng.normal(size=(2, 3, 4)).astype(np.float32)
        tree = {"layers": g, "other": g[0] + 1}
        tx = scale_by_muon(matrix_axes=MatrixAxes(-2, -1))
        clean, _ = tx.update(tree, tx.init(tree))
        spoilt = g.copy()
        spoilt[1, 0, 0] = bad
        update, state = tx.update({**tree, "layers": spoilt}, tx.init(tree))
        assert np.isnan(update["layers"][1]).all()
        np.testing.assert_array_equal(update["layers"][0], clean["layers"][0])
        np.testing.assert_array_equal(update["other"], clean["other"])
        assert np.isfinite(state.momentum["other"]).all()

    def test_apply_if_finite_leaves_the_state_untouched(self, rng):
        g = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
        tx = optax.apply_if_finite(scale_by_muon(), max_consecutive_errors=3)
        _, state = tx.update(g, tx.init(g), g)
        update, after = tx.update(g.at[0, 0].set(jnp.nan), state, g)
        np.testing.assert_array_equal(update, 0)
        before, after = map(optax_muon.find_state, (state, after))
        np.testing.assert_array_equal(before.momentum, after.momentum)
        assert before.count == after.count

    @pytest.mark.parametrize("size", [1e-30, 1e30])
    def test_tiny_and_huge_gradients(self, rng, size):
        g = rng.normal(size=(3, 4)).astype(np.float32)
        tx = scale_by_muon(orthogonalizer=Svd(), scale=None)
        update, _ = tx.update(g * np.float32(size), tx.init(g))
        np.testing.assert_allclose(update, oracles.polar(g), atol=1e-5)  # float32

    @pytest.mark.usefixtures("x64")
    def test_float64_is_computed_in_float64(self, rng):
        g = rng.normal(size=(6, 4))
        tx = scale_by_muon(orthogonalizer=optax_muon.NewtonSchulz("keller_jordan"))
        update, state = tx.update(jnp.asarray(g), tx.init(jnp.asarray(g)))
        assert update.dtype == state.momentum.dtype == jnp.float64
        rows = optax_muon.COEFFICIENTS["keller_jordan"].schedule()
        np.testing.assert_allclose(update, oracles.chain(g, rows), atol=1e-12)

    @pytest.mark.parametrize("dtype", ["complex64", "int32", "bool"])
    def test_dtypes_that_are_refused(self, dtype):
        params = {"fine": jnp.ones((2, 2)), "bad": jnp.ones((2, 2), dtype)}
        with pytest.raises(ValueError, match=rf"bad  \(2, 2\) {dtype}: "):
            scale_by_muon().init(params)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"momentum": "0.9"}, TypeError, "pass a float, a scalar array, or"),
            ({"momentum": None}, TypeError, "momentum=None has type NoneType"),
            ({"momentum": True}, TypeError, "momentum=True has type bool"),
            ({"momentum": 1.0}, ValueError, r"must be in \[0.0, 1.0\)"),
            ({"momentum": Svd}, TypeError, "pass a float, a scalar array, or"),
            ({"momentum": 1.5}, ValueError, r"must be in \[0.0, 1.0\)"),
            ({"momentum": -0.1}, ValueError, r"must be in \[0.0, 1.0\)"),
            ({"momentum": jnp.ones(2)}, ValueError, r"has shape \(2,\)"),
            ({"nesterov": 1}, TypeError, "nesterov=1 is no bool"),
            ({"momentum_form": "polyak"}, ValueError, "'ema', 'heavy_ball'"),
            ({"momentum_dtype": "int8"}, ValueError, "valid dtypes: float16"),
            ({"orthogonalizer": "svd"}, TypeError, r"Svd\(\), Qdwh\(\)"),
            ({"orthogonalizer": Svd}, TypeError, "with the parentheses"),
            ({"scale": "moonlight"}, ValueError, "'width', 'mup', 'adam_rms'"),
            ({"scale": 2.0}, ValueError, "'width', 'mup', 'adam_rms'"),
            ({"momentun": 0.9}, TypeError, "momentun"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            scale_by_muon(**arguments)

    def test_leaves_that_are_no_matrices_are_listed(self):
        params = {"w": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(2)}
        with pytest.raises(ValueError, match=r"bias  \(3,\)\n  scale  \(2,\)\nUse opt"):
            scale_by_muon().init(params)

    @pytest.mark.parametrize(
        ("gradients", "message"),
        [
            ({"a": jnp.ones((2, 3))}, "differ in b"),
            ({"a": jnp.ones((2, 3)), "c": jnp.ones((2, 3))}, "differ in b, c"),
            (
                {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))},
                r"b: \(3, 2\) against \(2, 3\)",
            ),
        ],
    )
    def test_gradients_unlike_the_state(self, gradients, message):
        tx = scale_by_muon()
        state = tx.init({"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))})
        with pytest.raises(ValueError, match=message):
            tx.update(gradients, state)


def test_gradients_in_another_order():
    """Leaves are paired by position: "10" comes before "2", but 10 after 2."""
    tx = scale_by_muon()
    state = tx.init({str(i): jnp.full((2, 3), float(i)) for i in range(12)})
    with pytest.raises(ValueError, match="differ in the order of their leaves"):
        tx.update({i: jnp.full((2, 3), float(i)) for i in range(12)}, state)


def test_a_scale_rule_may_use_jax_numpy(rng):
    g = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    tx = scale_by_muon(scale=lambda i, o: jnp.sqrt(max(i, o)))
    update, _ = jax.jit(tx.update)(g, tx.init(g))
    named = scale_by_muon(scale="sqrt_max")
    expected, _ = named.update(g, named.init(g))
    np.testing.assert_allclose(update, expected, rtol=1e-6)
    with pytest.raises(TypeError, match=r"gave None for \(3, 4\)"):
        scale_by_muon(scale=lambda i, o: None).update(g, tx.init(g))
    for number in (np.nan, np.inf):
        bad = scale_by_muon(scale=lambda i, o, number=number: number)
        with pytest.raises(ValueError, match=rf"gave {number} for \(3, 4\).*finite"):
            bad.update(g, tx.init(g))


class TestState:
    def test_it_is_frozen_and_no_mapping(self):
        state = scale_by_muon().init(jnp.ones((2, 3)))
        with pytest.raises(AttributeError):
            state.count = 3
        with pytest.raises(TypeError):
            _ = [*state]
        assert isinstance(state, MuonState)

    def test_find_state_needs_exactly_one(self):
        params = jnp.ones((2, 3))
        one = scale_by_muon().init(params)
        assert optax_muon.find_state((optax.EmptyState(), {"x": [one]})) is one
        for count, state in [(0, optax.adam(1.0).init(params)), (2, (one, one))]:
            with pytest.raises(ValueError, match=f"holds {count} MuonState"):
                optax_muon.find_state(state)


def test_the_program_grows_with_shapes_not_with_layers():
    """48 layers, half of them transposed, compile to the products of one."""

    def dots(layers):
        params = {
            f"layer_{i}": jax.ShapeDtypeStruct((8, 16)[:: (-1) ** i], jnp.float32)
            for i in range(layers)
        }
        tx = scale_by_muon()
        state = jax.eval_shape(tx.init, params)
        return jax.jit(tx.update).lower(params, state).as_text().count("dot_general")

    # Two cycles of the Gram form: one restart, 7 products each (test_orthogonalize.py).
    assert dots(48) == dots(2) == 14
