"""Coefficient tables: their bands as published, their margin, how steps read them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_muon import COEFFICIENTS, NewtonSchulz, orthogonalize
from tests import oracles


def test_every_name_of_the_library():
    assert set(COEFFICIENTS) == {
        "keller_jordan",
        "you_jiacheng",
        "polar_express",
        "modula",
        "deepseek_v4",
        "cubic",
        "quintic",
    }


# The float64 band after all steps for singular values in [1e-3, 1], and the slope
# at zero, as published or computed from the published numbers.
@pytest.mark.parametrize(
    ("name", "low", "high", "slope"),
    [
        ("keller_jordan", 0.471, 1.202, 485),
        ("you_jiacheng", 0.475, 1.145, 493),
        ("polar_express", 0.846, 1.124, 976),
        ("modula", 0.866, 0.999, 1138),
        ("deepseek_v4", 1.0, 1.001, 79263),
    ],
)
def test_band_and_slope(name, low, high, slope):
    s = np.geomspace(1e-3, 1, 20001)
    gain = 1.0
    for a, b, c in COEFFICIENTS[name].schedule():
        s, gain = a * s + b * s**3 + c * s**5, gain * a
    # Printed to three digits; modula and deepseek_v4 to one unit of the last.
    assert s.min() == pytest.approx(low, abs=1.1e-3)
    assert s.max() == pytest.approx(high, abs=1.1e-3)
    assert gain == pytest.approx(slope, rel=2e-3)


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


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_every_table_bears_the_rounding_of_bfloat16(name):
    """Positive, so that no direction flips its sign, and finite up to 1 + 2^-8."""
    s = np.append(np.geomspace(1e-6, 1, 20001), 1 + 2.0**-8)
    for a, b, c in COEFFICIENTS[name].schedule():
        s = a * s + b * s**3 + c * s**5
        assert (s > 0).all()
    assert s.max() < 1.25  # the largest is keller_jordan's, 1.21
