"""Singular values by products with vectors, against NumPy's SVD in float64.

No estimate may lie outside the true band, but for rounding: largest values by 1e-5 of
themselves, for sums of a few hundred float32 terms; smallest by 1e-3 of the largest, as
their squares are what float32's eps = 1.2e-7 is added to (its root: 3.5e-4). How far
inside it may lie depends on the spectrum, and is said at each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_muon import COEFFICIENTS, MatrixAxes
from optax_muon._bidiagonal import extremes
from optax_muon._linear_maps import per_matrix
from optax_muon._singular_values import PROBES, orthogonality_error, spectrum_of
from optax_muon._statistics import matrices_of
from tests import followed, oracles

FULL = MatrixAxes(0, 1)


def estimated(x, axes=FULL):
    [matrices] = matrices_of(x, axes, None, "test")[1]

    @jax.jit
    def both(x):
        spectrum = spectrum_of(x, matrices)
        return spectrum, orthogonality_error(x, matrices, spectrum)

    spectrum, error = both(x)
    return *map(np.asarray, spectrum), np.asarray(error)


def exact(x):
    """RMS of the singular values, smallest, largest and the error."""
    s = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    rms = np.sqrt((s**2).mean())
    s = s / rms
    return rms, s.min(), s.max(), np.sqrt(((s**2 - 1) ** 2).mean())


def assert_inside(smallest, largest, true):
    assert largest <= true[2] * (1 + 1e-5)
    assert smallest >= true[1] - 1e-3 * true[2]


def polar(rng, n, m):
    [row] = COEFFICIENTS["keller_jordan"].rows
    return oracles.chain(rng.normal(size=(n, m)), 5 * [row])


def decaying(rng, n, m):
    return oracles.with_spectrum(rng, n, m, np.arange(1, min(n, m) + 1.0) ** -1)


# Relative errors of the largest value, and absolute ones of the smallest over the RMS:
# about twice the worst of 20 draws.
CASES = {
    "gaussian": (lambda rng, n, m: rng.normal(size=(n, m)), 0.02, 0.3),
    "decaying": (decaying, 1e-3, 0.15),
    "polar factor": (polar, 0.02, 0.03),
}


@pytest.mark.parametrize("shape", [(64, 64), (96, 384), (384, 96), (256, 256)])
@pytest.mark.parametrize("name", CASES)
def test_the_band(name, shape, rng):
    make, of_largest, of_smallest = CASES[name]
    x = make(rng, *shape)
    true = exact(x)
    rms, smallest, largest, error = estimated(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(rms, true[0], rtol=1e-5)
    assert_inside(smallest, largest, true)
    assert largest >= true[2] * (1 - of_largest)
    assert smallest <= true[1] + of_smallest
    # Four standard deviations of Hutchinson's estimate: of the squared error, var <=
    # 2 sum (sigma^2 - 1)^4 / PROBES.
    s = np.linalg.svd(x / true[0], compute_uv=False)
    e = (s**2 - 1) ** 2
    deviation = np.sqrt(2 * (e**2).sum() / PROBES) / e.sum()
    assert abs(error**2 / true[3] ** 2 - 1) <= 4 * deviation


def test_a_few_directions_that_newton_schulz_left_behind(rng):
    """What the band is for: one small value, and the error that it makes alone.

    Random signs alone would miss half of it in some of eight draws.
    """
    s = np.append(np.ones(127), 0.05)
    x = np.stack([oracles.with_spectrum(rng, 128, 256, s) for _ in range(8)])
    true = exact(x[0])
    _, *band, error = estimated(jnp.asarray(x, jnp.float32), MatrixAxes(1, 2))
    for smallest, largest in zip(*band, strict=True):
        assert_inside(smallest, largest, true)
        assert smallest <= true[1] + 1e-3
        np.testing.assert_allclose(largest, true[2], rtol=1e-3)
    assert (error >= 0.99 * true[3]).all()


@pytest.mark.parametrize("name", followed.LEAVES)
def test_every_matrix_of_a_leaf(name):
    """Batches, merged axes and parts, some of them wider than tall and some not.

    Of these small matrices all Ritz values have converged: what is left is rounding.
    """
    shape, axes = followed.LEAVES[name]
    x = np.random.default_rng(5).normal(size=shape)
    rms, smallest, largest, error = estimated(jnp.asarray(x, jnp.float32), axes)
    count = len(axes.view(shape).parts) or 1
    batch = axes.view(shape).matrices[0]
    order = np.arange(rms.size).reshape(batch, count).T.ravel()  # parts first
    for place, matrix in zip(
        order, followed.matrices_of(jnp.asarray(x, jnp.float32), axes), strict=True
    ):
        true = exact(matrix)
        found = [each.ravel()[place] for each in (rms, smallest, largest)]
        np.testing.assert_allclose(found, true[:3], rtol=1e-3, atol=1e-3)
        farthest = max(true[2] ** 2 - 1, 1 - true[1] ** 2)
        least = farthest / np.sqrt(min(matrix.shape))
        assert error.ravel()[place] >= least * (1 - 1e-3)


EYE = {"rms": 1, "smallest": 1, "largest": 1, "error": 0}
ODD = {
    "identity": (np.eye(6), EYE),
    "one entry": (np.array([[-3.0]]), EYE | {"rms": 3}),
    "row": (np.ones((1, 9)), EYE | {"rms": 3}),
    "orthogonal": (
        np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0],
        EYE,
    ),
    "zeros": (np.zeros((4, 6)), {"rms": 1, "smallest": 0, "largest": 0, "error": 1}),
    "rank one": (
        np.ones((16, 25)),
        {"rms": 5, "smallest": 0, "largest": 4},
    ),
    "tiny": (np.eye(6) * 1e-30, EYE | {"rms": 1e-30}),
    "huge": (np.eye(6) * 1e30, EYE | {"rms": 1e30}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_matrices(name):
    """To 1e-3, see above; the Krylov space of most of them ends after one step."""
    x, expected = ODD[name]
    found = estimated(jnp.asarray(x, jnp.float32))
    names = ("rms", "smallest", "largest", "error")
    for value, key in zip(found, names, strict=True):
        if key in expected:
            np.testing.assert_allclose(value, expected[key], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_matrix(bad, rng):
    x = rng.normal(size=(3, 8, 12))
    x[1, 2, 3] = bad
    values = estimated(jnp.asarray(x, jnp.float32), MatrixAxes(1, 2))
    for value in values:
        np.testing.assert_array_equal(np.isnan(value), [False, True, False])


def test_narrow_leaves_are_summed_wide(rng):
    x = jnp.asarray(rng.normal(size=(32, 48)), jnp.bfloat16)
    for a, b in zip(estimated(x), estimated(x.astype(jnp.float32)), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_float64_is_float64():
    x = np.diag(np.linspace(1, 2, 8))
    rms, smallest, largest, _ = estimated(jnp.asarray(x))
    np.testing.assert_allclose(rms * [smallest, largest], [1, 2], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_extremes_of_bidiagonal_matrices(rng):
    """Bisection ends when float64 has no more digits; Sturm counts are backward stable,
    to a few eps of the largest value."""
    alpha, beta = rng.uniform(0.1, 2, size=(2, 7, 3))
    found = extremes(jnp.asarray(alpha), jnp.asarray(beta))
    for i in range(3):
        b = np.diag(alpha[:, i]) + np.diag(beta[:-1, i], 1)
        s = np.linalg.svd(b, compute_uv=False)
        np.testing.assert_allclose(found[:, i], [s[-1], s[0]], atol=1e-14)


def test_per_matrix():
    axes = MatrixAxes(0, 1, fan_out_parts=(2, 3))
    [matrices] = matrices_of(jnp.zeros((4, 5)), axes, None, "test")[1]
    np.testing.assert_array_equal(per_matrix(matrices, min), [2, 3])
