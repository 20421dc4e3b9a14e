"""Seed 003_7cc2b9ebda8bed39: the lecture on Muon, Shampoo and norms, in float64.

Tolerances of 1e-12 leave a factor of about 100 for what a few float64 products and
a decomposition of matrices with condition numbers below 100 round.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from tests import oracles

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = [(8, 5), (5, 8), (6, 6)]
EXACT = {"svd": optax_muon.Svd(), "qdwh": optax_muon.Qdwh()}
ATOL = 1e-12


def one_update(tx, gradient):
    """The first update of `tx` for a single matrix."""
    gradient = jnp.asarray(gradient)
    return np.asarray(tx.update(gradient, tx.init(gradient))[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EXACT)
def test_exact_polar_factor(rng, name, shape):
    g = rng.normal(size=shape)
    o = np.asarray(optax_muon.orthogonalize(jnp.asarray(g), EXACT[name]))
    np.testing.assert_allclose(o, oracles.polar(g), atol=ATOL)
    short = o if shape[0] <= shape[1] else o.T
    np.testing.assert_allclose(short @ short.T, np.eye(len(short)), atol=ATOL)


def test_svd_gives_the_directions_of_the_range_alone(rng):
    g = rng.normal(size=(8, 2)) @ rng.normal(size=(2, 5))
    o = np.asarray(optax_muon.orthogonalize(jnp.asarray(g), optax_muon.Svd()))
    np.testing.assert_allclose(o, oracles.polar(g), atol=ATOL)
    np.testing.assert_allclose(
        np.linalg.svd(o, compute_uv=False), [1, 1, 0, 0, 0], atol=ATOL
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("scale", ["spectral", "rms_to_rms"])
def test_heavy_ball_steps_of_spectral_and_rms_to_rms_norm(rng, scale, name, shape):
    """W <- W - eta s O, with s = 1 or sqrt(d_out / d_in); ours is [d_in, d_out]."""
    lr, mu = 0.1, 0.9
    rule = {"spectral": None, "rms_to_rms": "mup"}[scale]
    factor = {"spectral": 1, "rms_to_rms": np.sqrt(shape[1] / shape[0])}[scale]
    tx = optax.chain(
        optax_muon.scale_by_muon(
            mu,
            momentum_form="heavy_ball",
            nesterov=False,
            orthogonalizer=EXACT[name],
            scale=rule,
        ),
        optax.scale_by_learning_rate(lr),
    )
    w = rng.normal(size=shape)
    params, trace = jnp.asarray(w), np.zeros(shape)
    state = tx.init(params)
    for _ in range(4):
        g = rng.normal(size=shape)
        trace = mu * trace + g
        w = w - lr * factor * oracles.polar(trace)
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, w, atol=ATOL)


@pytest.mark.parametrize("coefficients", ["cubic", "keller_jordan"])
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_polynomials_commute_with_the_svd(rng, coefficients, shape):
    """p(U S V^T) = U p(S) V^T, from G / ||G||_F, singular vectors unchanged."""
    g = rng.normal(size=shape)
    table = optax_muon.COEFFICIENTS[coefficients]
    for steps in (1, 2, 5):
        method = optax_muon.NewtonSchulz(coefficients, steps)
        o = optax_muon.orthogonalize(jnp.asarray(g), method)
        expected = oracles.chain(g, table.schedule(steps))
        np.testing.assert_allclose(o, expected, atol=ATOL)


def test_cubic_converges_to_the_polar_factor_and_nanogpt_does_not(rng):
    """p^n(sigma) -> 1 for the cubic; the speedrun's polynomial has f(1) != 1."""
    g = rng.normal(size=(6, 4))
    errors = {
        name: oracles.relative_error(
            optax_muon.orthogonalize(jnp.asarray(g), optax_muon.NewtonSchulz(name, 40)),
            oracles.polar(g),
        )
        for name in ("cubic", "keller_jordan")
    }
    assert errors["cubic"] < ATOL
    assert 0.05 < errors["keller_jordan"] < 0.35  # values in [0.68, 1.20]
    assert sum(optax_muon.COEFFICIENTS["keller_jordan"][0]) == pytest.approx(0.701)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 4, 4, 2)])
def test_shampoo_without_accumulation_is_exact_muon(rng, shape):
    """(G G^T)^-1/4 G (G^T G)^-1/4 = U V^T."""
    axes = optax_muon.MatrixAxes(-2, -1)
    g = rng.normal(size=shape)
    shampoo = optax_muon.scale_by_shampoo(accumulate=False, matrix_axes=axes)
    exact = optax_muon.scale_by_muon(
        0.0, orthogonalizer=optax_muon.Svd(), scale=None, matrix_axes=axes
    )
    # Forming G G^T squares the condition number, here below 1e3: 1e-16 * 1e6.
    np.testing.assert_allclose(one_update(shampoo, g), oracles.polar(g), atol=1e-10)
    np.testing.assert_allclose(one_update(shampoo, g), one_update(exact, g), atol=1e-10)


def test_shampoo_without_accumulation_on_a_matrix_without_full_rank(rng):
    """U_r V_r^T, by roots on the range of G G^T and G^T G."""
    g = rng.normal(size=(7, 2)) @ rng.normal(size=(2, 5))
    shampoo = optax_muon.scale_by_shampoo(accumulate=False)
    np.testing.assert_allclose(one_update(shampoo, g), oracles.polar(g), atol=1e-10)


def test_shampoo_of_tiny_and_huge_gradients(rng):
    """In float32, whose squares underflow and overflow."""
    g = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    shampoo = optax_muon.scale_by_shampoo(accumulate=False)
    for size in (1e-30, 1e30):
        # float32, and the fourth root of squares.
        np.testing.assert_allclose(
            one_update(shampoo, g * size), oracles.polar(g), atol=1e-3
        )
    # Accumulated squares overflow. A diagonal has eigenvectors all the same, which
    # would make a silent step of zeros of it.
    for huge in (g * 1e30, jnp.diag(jnp.array([3e30, -5e29], jnp.float32))):
        assert np.isnan(one_update(optax_muon.scale_by_shampoo(), huge)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_accumulated_shampoo(rng, shape):
    """L <- L + G G^T, R <- R + G^T G, step L^-1/4 G R^-1/4, over ten steps."""

    def inverse_fourth_root(a):
        values, vectors = np.linalg.eigh(a)
        keep = values > len(a) * np.finfo(np.float64).eps * values[-1]
        return (vectors[:, keep] * values[keep] ** -0.25) @ vectors[:, keep].T

    left, right = np.zeros((shape[0],) * 2), np.zeros((shape[1],) * 2)
    tx = optax_muon.scale_by_shampoo()
    state = tx.init(jnp.zeros(shape))
    for _ in range(10):
        g = rng.normal(size=shape)
        left, right = left + g @ g.T, right + g.T @ g
        expected = inverse_fourth_root(left) @ g @ inverse_fourth_root(right)
        update, state = tx.update(jnp.asarray(g), state)
        np.testing.assert_allclose(update, expected, atol=1e-10)  # as above
        np.testing.assert_allclose(state.left[0], left, rtol=1e-12)
        np.testing.assert_allclose(state.right[0], right, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_factor_solves_the_argmin_over_the_spectral_ball(rng, shape):
    """No feasible step has a smaller <G, W> than -eta U V^T, whose is -eta ||G||_*."""
    eta, g = 0.3, rng.normal(size=shape)
    polar = optax_muon.orthogonalize(jnp.asarray(g), optax_muon.Svd())
    best = -eta * np.asarray(polar)
    value = np.sum(g * best)
    assert value == pytest.approx(-eta * np.linalg.norm(g, "nuc"), rel=1e-12)
    for _ in range(200):
        # On the sphere, half of them close to the optimum, where a flaw would show.
        step = rng.normal(size=shape) * rng.choice([1e-2, 1]) + best
        step *= eta / np.linalg.norm(step, 2)
        assert np.sum(g * step) > value


@pytest.mark.parametrize("shape", SHAPES)
def test_mup_step_solves_the_argmin_over_the_rms_to_rms_ball(rng, shape):
    """||W||_RMS->RMS = sqrt(d_in / d_out) ||W||_2 <= eta."""
    d_in, d_out = shape
    eta, g = 0.3, rng.normal(size=shape)
    tx = optax_muon.scale_by_muon(0.0, orthogonalizer=optax_muon.Svd(), scale="mup")
    best = -eta * one_update(tx, g)

    def norm(w):
        return np.sqrt(d_in / d_out) * np.linalg.norm(w, 2)

    assert norm(best) == pytest.approx(eta, rel=1e-12)
    for _ in range(200):
        step = rng.normal(size=shape) * rng.choice([1e-2, 1]) + best
        step *= eta / norm(step)
        assert np.sum(g * step) > np.sum(g * best)


def test_the_step_is_uniform_in_all_directions(rng):
    """Condition number 1 whatever the gradient's: not dominated by sigma_1."""
    g = oracles.with_spectrum(rng, 8, 5, np.logspace(0, -2, 5))
    o = optax_muon.orthogonalize(jnp.asarray(g), optax_muon.Svd())
    assert np.linalg.cond(np.asarray(o)) == pytest.approx(1, abs=ATOL)


def test_scale_by_shampoo_lists_leaves_that_are_no_matrices():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"scale_by_shampoo takes matrices[\s\S]*bias"):
        optax_muon.scale_by_shampoo().init(params)
    assert (
        jax.tree.leaves(
            optax_muon.scale_by_shampoo(accumulate=False).init(params["kernel"])
        )
        == []
    )
