"""Coefficient tables: their bands as published, their margin, how steps read them."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_muon import (
    COEFFICIENTS,
    NewtonSchulz,
    orthogonalize,
    polar_express_coefficients,
)
from optax_muon._polynomials import check_rows, deflate, margin
from tests import oracles

LARGEST_INPUT = 1 + 2.0**-8  # what rounding to bfloat16 may make of 1


def test_every_name_of_the_library():
    assert set(COEFFICIENTS) == {
        "polar_express",
        "polar_express_modded",
        "keller_jordan",
        "you_jiacheng",
        "modula",
        "deepseek_v4",
        "cubic",
        "quintic",
        "quintic_sqrt_half",
    }


def iterate(s, rows):
    """The values of s after every step."""
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
        yield s


# The float64 band after all steps for singular values in [1e-3, 1], and the slope
# at zero, as published or computed from the published numbers.
@pytest.mark.parametrize(
    ("name", "low", "high", "slope"),
    [
        ("keller_jordan", 0.471, 1.202, 485),
        ("you_jiacheng", 0.475, 1.145, 493),
        ("polar_express", 0.729, 1.124, 804),
        ("polar_express_modded", 0.847, 1.141, 970),  # 0.859, 990 before the 1.02
        ("modula", 0.866, 0.999, 1138),
        ("deepseek_v4", 1.0, 1.001, 79263),
    ],
)
def test_band_and_slope(name, low, high, slope):
    rows = COEFFICIENTS[name].schedule()
    *_, s = iterate(np.geomspace(1e-3, 1, 20001), rows)
    # Printed to three digits; modula and deepseek_v4 to one unit of the last.
    assert s.min() == pytest.approx(low, abs=1.1e-3)
    assert s.max() == pytest.approx(high, abs=1.1e-3)
    assert np.prod([a for a, _, _ in rows]) == pytest.approx(slope, rel=2e-3)


def test_polar_express_pays_for_its_margin_what_its_source_says():
    """From safety 1.05, the shipped one, back to the 1.01 of the paper's code."""
    rows = [deflate(row, 1.01 / 1.05) for row in COEFFICIENTS["polar_express"][:5]]
    *_, s = iterate(np.geomspace(1e-3, 1, 20001), rows)
    assert s.min() == pytest.approx(0.846, abs=1e-3)  # printed to three digits
    assert margin(tuple(rows)) == pytest.approx(1.011, abs=6e-4)


def test_quintic_sqrt_half_is_the_classical_quintic_with_another_fixed_point():
    ((a, b, c),) = COEFFICIENTS["quintic"]
    assert COEFFICIENTS["quintic_sqrt_half"].rows == ((a, 2 * b, 4 * c),)
    rows = COEFFICIENTS["quintic_sqrt_half"].schedule()
    *_, s = iterate(np.linspace(0.03, 1, 1001), rows)
    # Cubic convergence: eight steps leave 1e-7 of 0.03, and less of the larger ones.
    np.testing.assert_allclose(s, 0.5**0.5, atol=2e-6)


def brute_margin(rows):
    """min over k of D_k / M_k by a dense grid: no roots, no recursion over bounds."""
    grid = np.linspace(0, 4, 400001)[1:]
    inputs = np.linspace(0, 1, 40001)[1:]
    largest = [1.0, *(s.max() for s in iterate(inputs, rows))]
    margins = []
    for k in range(len(rows)):
        with np.errstate(all="ignore"):  # what explodes may overflow
            values = list(iterate(grid, rows[k:]))
            safe = np.all([s > 0 for s in values], axis=0) & (values[-1] <= 2)
        margins.append((grid[np.argmin(safe)] - 5e-6) / largest[k])
    return margins[0] if margins[0] < 1 else min(margins)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("polar_express", 1.055),
        ("polar_express_modded", 1.022),
        ("keller_jordan", 1.051),
        ("you_jiacheng", 1.039),
        ("modula", 1.070),
        ("deepseek_v4", 1.051),
        ("cubic", 3**0.5),  # where 1.5 s - 0.5 s^3 turns negative
        ("quintic", 1.528),
        ("quintic_sqrt_half", 1.080),
    ],
)
def test_margin_of_every_table(name, expected):
    rows = COEFFICIENTS[name].schedule()
    assert margin(rows) == pytest.approx(expected, abs=6e-4)  # printed to 3 digits
    assert margin(rows) == pytest.approx(brute_margin(rows), abs=3e-5)  # grid: 1e-5


def test_margin_of_random_rows(rng):
    """Monotone, humped and sign-turning steps, cubic and linear ones among them."""
    for trial in range(30):
        a = rng.uniform(1, 3, size=3)
        b = rng.uniform(-4, 0, size=3) * (trial % 5 > 0)
        c = rng.uniform(0, 2.5, size=3) * (trial % 3 > 0)
        rows = tuple(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
        assert margin(rows) == pytest.approx(brute_margin(rows), abs=5e-5)


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("steps", [*range(1, 21), 40])
def test_every_table_bears_the_rounding_of_bfloat16(name, steps):
    """Positive, so that no direction flips its sign, and within 2, to 1 + 2^-8."""
    rows = COEFFICIENTS[name].schedule(steps)
    check_rows(rows, name)
    values = list(iterate(np.append(np.geomspace(1e-6, 1, 2001), LARGEST_INPUT), rows))
    assert all((s > 0).all() for s in values)
    assert values[-1].max() <= 2


# The published numbers of tables that are not offered: NVIDIA's Emerging-Optimizers,
# "aol" and "cans", and five cubics of the CANS paper's method (arXiv 2506.10935).
AOL = (
    (4.0098, -7.0585, 2.4635),
    (3.4585, -5.5479, 2.5959),
    (2.7573, -3.2939, 1.4254),
    (2.7215, -3.0494, 1.3169),
)
CANS = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)
CANS_CUBIC = (
    (3.3656576, -3.3420992, 0.0),
    (2.5744352, -1.4957376, 0.0),
    (2.5368962, -1.4312570, 0.0),
    (2.4418906, -1.2764040, 0.0),
    (2.2230472, -0.9630650, 0.0),
)
PAPER = polar_express_coefficients(
    8, lower=1e-3, cushion=0.02407327424182761, safety=1
).rows


@pytest.mark.parametrize(
    ("rows", "safe", "failure"),
    [
        (AOL, 0.883698, "not positive"),
        (CANS, 1.000008, "beyond 2"),
        (CANS_CUBIC, 1.003518, "not positive"),
        (PAPER, 1.000004, "beyond 2"),
        # 10/3 (t - 0.5) (t - 0.6) s, t = s^2: negative inside, positive at both ends.
        (((1.0, -1.1 / 0.3, 1 / 0.3),), 0.5**0.5, "not positive"),
        (((1.0, -2.0, 1.0),), 1.0, "not positive"),  # s (1 - s^2)^2 loses s = 1
        (((-1.0, 0.0, 0.0),), 0.0, "not positive"),
        (((0.0, 0.0, 0.0),), 0.0, "not positive"),
        (((3.0, 0.0, 0.0),), 2 / 3, "beyond 2"),
        # Overflows on the way, and infinity times zero is no number.
        (((3.0, 0.0, 1.0),) * 40 + ((1.5, -0.5, 0.0),), 0.0, "beyond 2"),
    ],
)
def test_rows_without_margin_for_rounding_are_refused(rows, safe, failure):
    with pytest.raises(ValueError, match=r"coefficients=.*cannot be iterated") as error:
        NewtonSchulz(rows)
    message = str(error.value)
    assert failure in message
    assert "nan" not in message
    assert "safety factor" in message  # the remedy
    found = float(re.search(r"up to (\S+) are safe", message)[1])
    assert found == pytest.approx(safe, abs=6e-7)  # listed to six digits
    claim = re.search(
        r"value (\S+) is mapped to (\S+?)(?:,| after step (\d+))", message
    )
    with np.errstate(all="ignore"):  # what explodes may overflow
        values = list(iterate(np.float64(claim[1]), rows))
    value = values[int(claim[3] or len(rows)) - 1]
    # The claim is true; 1e-6: the singular value is printed to seven digits.
    assert value <= 1e-6 if failure == "not positive" else not value <= 2 - 1e-6
    assert float(claim[1]) <= LARGEST_INPUT + 1e-6


def test_the_bound_is_1_plus_2_to_the_minus_8_and_2():
    check_rows(((2 / LARGEST_INPUT, 0.0, 0.0),))
    with pytest.raises(ValueError, match=r"1\.003906 is mapped to 2\.002, beyond 2"):
        check_rows(((2.002 / LARGEST_INPUT, 0.0, 0.0),))


def test_only_the_steps_that_run_are_checked():
    """Two rows explode together, and the first alone does not."""
    rows = [(2.0, -1.5, 0.5), (2.5, 0.0, 0.0)]
    NewtonSchulz(rows, 1)
    with pytest.raises(ValueError, match="beyond 2"):
        NewtonSchulz(rows)


def test_the_safety_factor_that_the_error_names_helps():
    NewtonSchulz([deflate(row, 1.01) for row in PAPER])
    NewtonSchulz([deflate(row, 1.01) for row in CANS])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("aol", "sign of the leading singular direction"),
        ("turbo_muon", "changes the polar factor itself"),
        ("cans", "polar_express_coefficients"),
        ("no_such_table", "no table of optax_muon"),
    ],
)
def test_names_that_are_not_offered_say_why(name, reason):
    with pytest.raises(ValueError, match=reason) as error:
        NewtonSchulz(name)
    assert f"coefficients={name!r}" in str(error.value)
    assert all(known in str(error.value) for known in COEFFICIENTS)


@pytest.mark.parametrize(
    "rows", [[], [(1.5, -0.5)], 3, None, [(1.5, "x", 0)], [(1.5, float("nan"), 0.0)]]
)
def test_malformed_rows_are_refused(rows):
    with pytest.raises(ValueError, match=r"coefficients.*(is no table|not finite)"):
        NewtonSchulz(rows)


@pytest.mark.parametrize(
    ("name", "preset"),
    [("keller_jordan", {}), ("you_jiacheng", {"ns_coeffs": "dion"})],
)
def test_optax_has_the_same_numbers(rng, name, preset):
    """With fan_out <= fan_in, its update is minus the bare iteration's result."""
    x = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    tx = optax.contrib.muon(1.0, beta=0.0, nesterov=False, **preset)
    update, _ = tx.update(x, tx.init(x), x)
    mine = orthogonalize(x, NewtonSchulz(name))
    np.testing.assert_allclose(-update, mine, atol=2e-5)  # float32, twice


def test_the_last_row_repeats_and_fewer_steps_take_the_first():
    rows = COEFFICIENTS["you_jiacheng"].rows
    table = COEFFICIENTS["you_jiacheng"]
    assert table.schedule(7) == (*rows, rows[-1], rows[-1])
    assert table.schedule(2) == rows[:2]
    assert table.schedule() == rows


def test_steps_and_custom_rows_reach_the_iteration(rng):
    x = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    rows = [(2.0, -1.5, 0.5), (1.5, -0.5, 0.0)]
    for steps in (None, 1, 2, 4):
        count = 2 if steps is None else steps
        expected = oracles.chain(x, (rows + [rows[-1]] * 2)[:count])
        np.testing.assert_allclose(
            orthogonalize(x, NewtonSchulz(rows, steps)), expected, atol=1e-5
        )  # float32


def test_tables_are_sequences_of_rows_with_a_source():
    for table in COEFFICIENTS.values():
        assert np.asarray(table).shape == (len(table), 3)
        assert list(table) == [table[k] for k in range(len(table))]
        assert table.source
