"""Polar Express rows: the paper's table, optimality of each step, safety, errors."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from optax_muon import (
    COEFFICIENTS,
    NewtonSchulz,
    orthogonalize,
    polar_express_coefficients,
)
from optax_muon._polynomials import margin
from tests import oracles

CUSHION = 0.02407327424182761  # of the paper's table, l = 1e-3
LIMIT = (1.875, -1.25, 0.375)
LOWERS = (1e-10, 1e-6, 1e-3, 0.024, 0.1, 0.5, 0.9, 0.99)


def value(row, s):
    a, b, c = row
    return a * s + b * s**3 + c * s**5


def intervals(rows, lower):
    """(row, l, u) of every step: l <- p(l), u <- 2 - l."""
    upper = 1.0
    for row in rows:
        yield row, lower, upper
        lower = value(row, lower)
        upper = 2 - lower


def extremes(row, lower, upper):
    """l, q, r, u: the ends, and the roots of p' in between."""
    a, b, c = row
    roots = np.sqrt(np.roots([5 * c, 3 * b, a]))
    return np.array([lower, *np.sort(roots), upper])


@pytest.mark.parametrize("safety", [1.0, 1.01, 1.05])
def test_the_table_that_the_paper_prints(safety):
    """COEFFICIENTS holds its printed digits at safety 1.05, all but the limit's row."""
    mine = polar_express_coefficients(8, lower=1e-3, cushion=CUSHION, safety=safety)
    powers = (1.05 / safety) ** np.array([1, 3, 5])
    printed = np.array(COEFFICIENTS["polar_express"].rows)
    printed[:-1] *= powers
    # Measured 5e-9, in the last row: the paper prints the limit for u = 1, which is
    # 1 + 2e-9 here. Rows 1 to 6 agree to 2e-15.
    np.testing.assert_allclose(mine, printed, rtol=1e-8)
    np.testing.assert_allclose(mine[:6], printed[:6], rtol=1e-13)


def test_fewer_steps_are_the_first_rows_and_more_repeat_the_limit():
    """So the five rows of a five-step table are all deflated."""
    arguments = {"lower": 1e-3, "cushion": CUSHION, "safety": 1.05}
    table = polar_express_coefficients(12, **arguments)
    for steps in (1, 5, 8):
        fewer = polar_express_coefficients(steps, **arguments)
        assert fewer.rows == table.rows[:steps]
        assert fewer.steps == len(fewer) == steps
    np.testing.assert_allclose(table[8:], [LIMIT] * 4, rtol=1e-15)  # float64's rounding


def test_the_first_row_of_modded_nanogpt():
    """Cushion and safety .02; the normaliser 1.02 is a second safety factor."""
    (row,) = polar_express_coefficients(1, cushion=0.02, safety=1.02**2)
    # Both are float64 computations of the same number.
    np.testing.assert_allclose(row, COEFFICIENTS["polar_express_modded"][0], rtol=1e-13)


def test_the_bare_minimax_composition_is_the_cans_table():
    """Of arXiv 2506.10935, found by others with their own Remez code."""
    printed = [
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ]
    mine = polar_express_coefficients(5, lower=1e-3, cushion=0, safety=1)
    np.testing.assert_allclose(mine, printed, atol=5.1e-5)  # printed to four decimals


@pytest.mark.parametrize("lower", LOWERS)
def test_every_step_equioscillates(lower):
    """1 - p is +E, -E, +E, -E at l < q < r < u, which makes p the minimax quintic."""
    rows = polar_express_coefficients(30, lower=lower, cushion=0, safety=1)
    steps = [i for i in intervals(rows, lower) if i[1] < (1 - 5e-6) * i[2]]
    for row, low, high in steps:
        points = extremes(row, low, high)
        assert (np.diff(points) > 0).all()
        error = 1 - value(row, points)
        # Float64's rounding of the terms of p, whose sum of sizes is at most 53.
        np.testing.assert_allclose(
            error * [1, -1, 1, -1], error[0], rtol=1e-12, atol=2e-14
        )
        grid = np.linspace(low, high, 20001)
        assert np.abs(1 - value(row, grid)).max() <= abs(error[0]) + 2e-14
    assert len(steps) >= (1 if lower > 0.5 else 3)
    np.testing.assert_allclose(rows[-1], LIMIT, rtol=1e-15)


@pytest.mark.parametrize("lower", [1e-10, 1e-3, 0.1, 0.9])
def test_no_other_quintic_is_better_on_the_interval(rng, lower):
    for row, low, high in intervals(
        polar_express_coefficients(3, lower=lower, cushion=0, safety=1), lower
    ):
        if low > 0.999:  # E is below 1e-10: converged but for a few digits
            continue
        points = extremes(row, low, high)
        best = np.abs(1 - value(row, points)).max()
        for size in np.geomspace(1e-6, 1, 30):
            other = np.array(row) * (1 + size * rng.normal(size=3))
            # De la Vallee Poussin: the four points alone tell any other one from it.
            assert np.abs(1 - value(other, points)).max() > best


@pytest.mark.parametrize("cushion", [0.01, 0.1, 0.5])
def test_a_cushion_fits_a_part_and_recentres_on_the_whole(cushion):
    """p is the best of [cushion, 1] up to a factor, with p(l) and p(1) around 1."""
    (row,) = polar_express_coefficients(1, lower=1e-3, cushion=cushion, safety=1)
    (best,) = polar_express_coefficients(1, lower=cushion, cushion=0, safety=1)
    ratio = np.array(row) / best
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-13)  # float64
    assert value(row, 1e-3) + value(row, 1.0) == pytest.approx(2, rel=1e-14)


@pytest.mark.parametrize("lower", LOWERS)
def test_the_band_shrinks_with_every_step(lower):
    """[l, u] goes into [p(l), 2 - p(l)], and l only grows, until it is 1."""
    rows = polar_express_coefficients(25, lower=lower, safety=1)
    steps = list(intervals(rows, lower))
    for (row, low, high), (_, next_low, next_high) in itertools.pairwise(steps):
        assert next_low > low or low > 1 - 1e-15  # up to float64's last digit
        s = value(row, np.append(np.geomspace(low, high, 5001), high))
        # Float64's rounding of terms whose sizes sum to 53.
        assert s.min() >= next_low - 2e-14
        assert s.max() <= next_high + 2e-14
    assert low == pytest.approx(1, abs=1e-15)


def test_a_smaller_lower_reaches_smaller_singular_values():
    """After ten steps: what starts at `lower` has arrived."""
    for lower in (1e-2, 1e-3, 1e-4, 1e-5):
        s = np.geomspace(lower, 1, 1001)
        for row in polar_express_coefficients(10, lower=lower):
            s = value(row, s)
        # 1.01 costs each unconverged step; the last two are the limit's.
        np.testing.assert_allclose(s, 1, atol=0.03)


@pytest.mark.parametrize("lower", [1e-13, *LOWERS, 1 - 1e-7])
@pytest.mark.parametrize("cushion", [0, 1e-3, 0.024, 0.5, 0.999999999])
def test_the_margin_is_at_least_the_safety_factor(lower, cushion):
    """p_k(s / safety) is within u_{k+1} up to s = safety u_k; the limit bears 1.5."""
    for safety in (1.01, 1.05, 1.2):
        table = polar_express_coefficients(
            12, lower=lower, cushion=cushion, safety=safety
        )
        for steps in (1, 2, 3, 5, 8, 12, 20):
            rows = NewtonSchulz(table, steps).rows
            assert margin(rows) >= safety * (1 - 1e-12)  # float64's rounding


def test_rows_without_safety_are_computed_and_refused_where_they_run():
    table = polar_express_coefficients(5, safety=1)
    with pytest.raises(ValueError, match="it explodes"):
        NewtonSchulz(table)
    NewtonSchulz(polar_express_coefficients(5))


def test_an_iteration_with_them_finds_the_polar_factor(rng):
    x = oracles.with_spectrum(rng, 12, 20, np.geomspace(1e-4, 1, 12))
    table = polar_express_coefficients(12, lower=5e-5)
    found = orthogonalize(jnp.asarray(x, jnp.float32), NewtonSchulz(table))
    # Float32's rounding, 6e-8, against the smallest singular value, 1e-4: 1e-3.
    np.testing.assert_allclose(found, oracles.polar(x), atol=2e-3)


def test_the_source_names_the_paper_and_the_arguments():
    table = polar_express_coefficients(
        np.int64(4), lower=np.float32(0.5), cushion=0, safety=1.25
    )
    for text in ("2505.16932", "lower=0.5", "cushion=0", "safety=1.25"):
        assert text in table.source
    assert all(type(number) is float for row in table for number in row)
    assert type(table.steps) is int
    hash(dataclasses.replace(table))  # selects a compiled program


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        *((ValueError, {"steps": steps}) for steps in (0, -1, 2.0, True, None, "5")),
        *((ValueError, {"lower": x}) for x in (0, 1, 1.5, -1e-3, float("nan"))),
        *((ValueError, {"cushion": x}) for x in (-0.1, 1, float("inf"))),
        *((ValueError, {"safety": x}) for x in (0.99, float("inf"), float("nan"))),
        *((TypeError, {"lower": x}) for x in ("1e-3", None, True, np.ones(1))),
        (TypeError, {"cushion": jnp.float32(0.1)}),
        (TypeError, {"safety": lambda step: 1.01}),
    ],
)
def test_arguments_out_of_range_are_named(error, wrong):
    ((name, given),) = wrong.items()
    with pytest.raises(error) as found:
        polar_express_coefficients(**{"steps": 5} | wrong)
    assert f"{name}={given!r}" in str(found.value)
    assert "must be" in str(found.value) or "pass a float" in str(found.value)
