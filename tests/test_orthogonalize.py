"""orthogonalize against its float64 polynomial, its identities, and odd input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_muon
from optax_muon import COEFFICIENTS, NewtonSchulz, Qdwh, Svd, orthogonalize
from tests import oracles
from tests.wide import wide_unless

METHODS = {
    **{name: NewtonSchulz(name) for name in COEFFICIENTS},
    "svd": Svd(),
    "qdwh": Qdwh(),
}
DEFAULT = NewtonSchulz().coefficients
every_method = pytest.mark.parametrize(
    "name", wide_unless({DEFAULT, "keller_jordan", "svd", "qdwh"}.__contains__, METHODS)
)


def reference(x, method):
    if isinstance(method, NewtonSchulz):
        table = COEFFICIENTS[method.coefficients]
        return oracles.chain(x, table.schedule(method.steps))
    return oracles.polar(x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "shape", [(5, 9), (9, 5), (6, 6), (2, 3, 4, 7), (1, 5), (5, 1)]
)
@every_method
def test_float64_equals_the_polynomial(rng, name, shape):
    x = rng.normal(size=shape)
    # Ten steps of deepseek_v4 have slope 8e4 at zero: 1e-16 of rounding times that.
    np.testing.assert_allclose(
        orthogonalize(jnp.asarray(x), METHODS[name]),
        reference(x, METHODS[name]),
        atol=1e-10,
    )


# Relative Frobenius error of the direct form on Gaussian matrices 64 x 256: the worst
# of 20 seeds over all tables was 3.5e-6, 4.2e-3 and 3.4e-2; asserted with about twice
# that. Other spectra and the Gram form: test_numerics.py.
WORST = {"float32": 1e-5, "float16": 8e-3, "bfloat16": 7e-2}


@pytest.mark.parametrize("dtype", WORST)
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_low_precision_is_close_to_the_polynomial(rng, name, dtype):
    x = jnp.asarray(rng.normal(size=(64, 256)), jnp.float32)
    method = NewtonSchulz(name, method="direct", dtype=dtype)
    error = oracles.relative_error(orthogonalize(x, method), reference(x, method))
    assert error < WORST[dtype]


@pytest.mark.usefixtures("x64")
@every_method
class TestIdentities:
    """Exact in real arithmetic; 1e-10 as for the polynomial above."""

    def test_rotations_pass_through(self, rng, name):
        x = rng.normal(size=(5, 8))
        q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
        r, _ = np.linalg.qr(rng.normal(size=(8, 8)))
        left = orthogonalize(jnp.asarray(q @ x @ r), METHODS[name])
        right = q @ np.asarray(orthogonalize(jnp.asarray(x), METHODS[name])) @ r
        np.testing.assert_allclose(left, right, atol=1e-10)

    def test_transpose_scale_and_sign(self, rng, name):
        x = jnp.asarray(rng.normal(size=(5, 8)))
        y = np.asarray(orthogonalize(x, METHODS[name]))
        for other, expected in [(x.T, y.T), (7.3 * x, y), (-x, -y)]:
            np.testing.assert_allclose(
                orthogonalize(other, METHODS[name]), expected, atol=1e-10
            )

    def test_a_stack_is_its_matrices(self, rng, name):
        x = jnp.asarray(rng.normal(size=(2, 3, 5, 4)))
        y = orthogonalize(x, METHODS[name])
        for i in np.ndindex(2, 3):
            np.testing.assert_allclose(
                y[i], orthogonalize(x[i], METHODS[name]), atol=1e-10
            )


@every_method
class TestOddValues:
    def test_zeros_give_zeros(self, name):
        for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
            y = orthogonalize(jnp.zeros((3, 4, 2), dtype), METHODS[name])
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, 0)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_nan_and_inf_spoil_their_own_matrix_only(self, rng, name, bad):
        x = rng.normal(size=(3, 4, 6)).astype(np.float32)
        clean = np.asarray(orthogonalize(jnp.asarray(x), METHODS[name]))
        x[1, 2, 3] = bad
        y = np.asarray(orthogonalize(jnp.asarray(x), METHODS[name]))
        assert np.isnan(y[1]).all()
        # The neighbours run the same program on the same numbers.
        np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])

    @pytest.mark.parametrize("factor", [1e-30, 1e-36, 1e30, 1e37])
    def test_any_magnitude(self, rng, name, factor):
        x = rng.normal(size=(4, 6)).astype(np.float32)
        error = oracles.relative_error(
            orthogonalize(jnp.asarray(x * np.float32(factor)), METHODS[name]),
            orthogonalize(jnp.asarray(x), METHODS[name]),
        )
        # Scaling by no power of two rounds every entry (6e-8); the steepest table's
        # slope over its value, deepseek_v4's, amplifies that at most 100-fold here.
        assert error < 1e-5

    @pytest.mark.parametrize(("dtype", "value"), [("float16", 6e4), ("float16", 1e-7)])
    def test_ends_of_float16(self, name, dtype, value):
        x = jnp.eye(3, 5, dtype=jnp.float32).astype(dtype) * jnp.asarray(value, dtype)
        one = orthogonalize(jnp.eye(3, 5, dtype=jnp.float32), METHODS[name])
        y = orthogonalize(x, METHODS[name])
        assert y.dtype == jnp.float16
        np.testing.assert_allclose(y, one, atol=1e-3)  # float16 rounds 1 at 5e-4

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 2, 3), (2, 0, 3)])
    def test_empty_matrices(self, name, shape):
        assert orthogonalize(jnp.zeros(shape), METHODS[name]).shape == shape


@settings(max_examples=25, deadline=None)
@given(
    batch=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_batch_and_dtype(batch, m, n, dtype, seed):
    x = np.random.default_rng(seed).normal(size=(*batch, m, n))
    y = orthogonalize(jnp.asarray(x, dtype), NewtonSchulz("cubic", 3))
    assert y.shape == x.shape
    assert y.dtype == dtype
    s = np.linalg.svd(np.asarray(y, np.float64), compute_uv=False)
    # The cubic maps [0, 1] into itself, and the output is rounded once, in `dtype`.
    assert s.max() <= 1 + 8 * float(jnp.finfo(dtype).eps)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("jordan",), "valid names: .*keller_jordan.*cubic"),
            (([],), "non-empty sequence"),
            (([(1.0, 2.0)],), r"rows \(a, b, c\)"),
            (([(1.0, 2.0, np.inf)],), "not finite"),
            ((3.5,), r"rows \(a, b, c\)"),
            (([("a", "b", "c")],), r"rows \(a, b, c\)"),
            (("cubic", 0), "steps=0 must be a positive int"),
            (("cubic", 2.0), "steps=2.0 must be a positive int"),
            (("cubic", True), "steps=True must be a positive int"),
        ],
    )
    def test_newton_schulz_refuses(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            NewtonSchulz(*arguments)

    def test_dtype_is_checked(self):
        with pytest.raises(ValueError, match="valid dtypes: float16, bfloat16"):
            NewtonSchulz(dtype=jnp.int32)
        with pytest.raises(TypeError, match="is no dtype"):
            NewtonSchulz(dtype="half-ish")
        with pytest.raises(ValueError, match="64-bit mode, which is off"):
            NewtonSchulz(dtype=jnp.float64)

    @pytest.mark.parametrize("bad", ["svd", Svd, None, 3])
    def test_orthogonalizer_of_another_type(self, bad):
        with pytest.raises(TypeError, match=r"pass NewtonSchulz\(\.\.\.\)"):
            orthogonalize(jnp.eye(2), bad)

    def test_a_users_own_function_serves(self, rng):
        x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.bfloat16)
        y = orthogonalize(x, jnp.sign)
        np.testing.assert_array_equal(y, jnp.sign(x))
        assert y.dtype == jnp.bfloat16
        with pytest.raises(ValueError, match=r"returned shape \(2, 4, 3\)"):
            orthogonalize(x, lambda x: x.mT)

    def test_a_function_that_cannot_be_hashed(self):
        class Unhashable:
            __hash__ = None

            def __call__(self, x):
                return x

        with pytest.raises(TypeError, match="cannot be hashed"):
            orthogonalize(jnp.eye(2), Unhashable())

    @pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
    def test_input_that_is_not_real_floating(self, dtype):
        with pytest.raises(TypeError, match="takes real floating matrices"):
            orthogonalize(jnp.ones((2, 2), dtype))

    def test_vectors(self):
        with pytest.raises(ValueError, match=r"got shape \(3,\)"):
            orthogonalize(jnp.ones(3))


class TestPrograms:
    """What is compiled, read off the program itself."""

    @staticmethod
    def dots(orthogonalizer, platform):
        x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
        traced = jax.jit(lambda x: orthogonalize(x, orthogonalizer)).trace(x)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    @pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
    def test_one_loop_whatever_the_number_of_steps(self, platform):
        identity = [(1.0, 0.0, 0.0)]  # noise does not grow: always one cycle
        for method, dots in [
            ("direct", 3),  # X X^T, R R, P X, in the body of one loop
            ("gram", 7),  # X X^T, R R, Q X, and in the loop P R, (P R) P, R R, Q P
        ]:
            counts = {
                len(self.dots(NewtonSchulz(identity, steps, method=method), platform))
                for steps in (2, 5, 50)
            }
            assert counts == {dots}

    @pytest.mark.parametrize(
        ("platform", "dtype", "operand"),
        [
            ("cpu", None, "f32"),
            ("tpu", None, "bf16"),
            ("cuda", None, "bf16"),
            ("tpu", "float32", "f32"),
            ("cpu", "float16", "f16"),
        ],
    )
    def test_operands_follow_platform_and_dtype(self, platform, dtype, operand):
        for line in self.dots(NewtonSchulz(dtype=dtype), platform):
            assert line.count(f"x{operand}>") >= 2, line
            assert line.rstrip().endswith("f32>"), line  # float32 sums

    def test_float32_is_asked_for_in_full_precision(self):
        for method in ("direct", "gram"):
            dots = self.dots(NewtonSchulz(dtype="float32", method=method), "tpu")
            assert all("precision = [HIGHEST, HIGHEST]" in line for line in dots)

    def test_exact_methods_too(self):
        """By default, a TPU rounds float32 operands to bfloat16."""
        update = optax_muon.scale_by_shampoo(accumulate=False).update
        x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
        for function in (
            lambda x: orthogonalize(x, Svd()),
            lambda x: update(x, optax.EmptyState())[0],
        ):
            traced = jax.jit(function).trace(x)
            text = traced.lower(lowering_platforms=("tpu",)).as_text()
            last = [line for line in text.splitlines() if "dot_general" in line][-1]
            assert "HIGHEST, HIGHEST" in last


def test_configurations_are_not_callable():
    """optax.inject_hyperparams would take a callable argument for a schedule."""
    assert not any(
        map(callable, [NewtonSchulz(), Svd(), Qdwh(), optax_muon.MatrixAxes()])
    )
