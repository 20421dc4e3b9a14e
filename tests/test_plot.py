"""Figures hold the numbers they are of; pixels are matplotlib's."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import optax_muon.plot
from optax_muon import COEFFICIENTS, NewtonSchulz, Qdwh, orthogonalize
from optax_muon._cli import main
from optax_muon._polynomials import image
from tests import cli_models, oracles


def own_axes():
    return Figure().subplots()


def test_maps_are_the_float64_polynomials():
    figure = optax_muon.plot.singular_values()
    lines = figure.axes[0].lines
    assert len(lines) == len(COEFFICIENTS)
    for (name, table), line in zip(COEFFICIENTS.items(), lines, strict=True):
        s = line.get_xdata()
        assert (s[0], s[-1]) == pytest.approx((1e-4, 1))
        assert line.get_label() == f"{name}, {table.steps} steps"
        expected = oracles.quintics(s, table.schedule())
        # Two orders of summation, float64, grown by slopes of up to 1e5.
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-9)


def test_maps_of_what_is_asked_for():
    rows = [(1.5, -0.5, 0.0), (1.875, -1.25, 0.375)]
    asked = "cubic", NewtonSchulz("modula", 1), rows
    figure = optax_muon.plot.singular_values(*asked, smallest=0.5)
    lines = figure.axes[0].lines
    labels = [line.get_label() for line in lines]
    assert labels == ["cubic, 5 steps", "modula, 1 step", "rows, 2 steps"]
    assert lines[0].get_xdata()[0] == pytest.approx(0.5)
    values = oracles.quintics(lines[2].get_xdata(), rows)
    np.testing.assert_allclose(lines[2].get_ydata(), values, rtol=1e-12)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_bands_are_those_of_a_fine_grid(name):
    rows = COEFFICIENTS[name].schedule()
    values = oracles.quintics(np.geomspace(1e-3, 1, 200_001), rows)
    low, high = image(rows, 1e-3)
    # A grid never reaches further, and misses an extremum by its spacing squared.
    assert low <= values.min() * (1 + 1e-12)
    assert high >= values.max() * (1 - 1e-12)
    assert (low, high) == pytest.approx((values.min(), values.max()), abs=1e-3)


def test_spectra(rng):
    before = rng.normal(size=(2, 3, 5))
    after = orthogonalize(jnp.asarray(before, jnp.bfloat16))
    figure = optax_muon.plot.spectra(before, after)
    lines = figure.axes[0].lines
    norms = np.linalg.norm(before, axis=(1, 2), keepdims=True)
    stacks = before / norms, np.asarray(after).astype(np.float64)
    expected = [matrix for stack in stacks for matrix in stack]
    assert len(lines) == len(expected)
    for line, matrix in zip(lines, expected, strict=True):
        s = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(line.get_ydata(), s, rtol=1e-12)
        assert list(line.get_xdata()) == [1, 2, 3]
    texts = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["before", "after"]


def test_a_zero_matrix_has_a_spectrum_of_zeros():
    line, _ = optax_muon.plot.spectra(np.zeros((2, 2)), np.eye(2)).axes[0].lines
    assert line.get_ydata().tolist() == [0, 0]


def bars(axes):
    """Names from top to bottom, with widths in percent."""
    widths = {round(bar.get_y() + 0.4): bar.get_width() for bar in axes.patches}
    names = [text.get_text() for text in axes.get_yticklabels()]
    return [(name, widths[i]) for i, name in enumerate(names)]


def test_plan_shows_the_shares():
    params, axes = cli_models.stacked_parameters(), cli_models.STACKED_AXES
    found = optax_muon.plan(params, axes)
    panel = optax_muon.plot.plan(found).axes[0]
    shares = {leaf.path: 100 * leaf.share for leaf in found.leaves}
    expected = sorted(shares.items(), key=lambda item: -item[1])
    assert bars(panel) == expected
    assert panel.yaxis_inverted()  # the first is on top
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["muon, 97.3%", "adamw, 2.7%"]  # 144 and 4 of 148


def test_plan_sums_the_rest():
    params, axes = cli_models.stacked_parameters(), cli_models.STACKED_AXES
    panel = optax_muon.plot.plan(optax_muon.plan(params, axes), most=1).axes[0]
    assert [name for name, _ in bars(panel)] == [
        "layers",
        "1 others, muon",
        "1 others, adamw",
    ]
    assert [width for _, width in bars(panel)] == pytest.approx(
        [9600 / 148, 4800 / 148, 400 / 148]
    )


def test_records_are_lines_and_bands():
    history = [
        (0, {"a/rms": 1.0, "b/rms": jnp.array([1.0, 2.0, 6.0]), "a/rank": 3}),
        (10, {"a/rms": np.float32(2.0), "b/rms": jnp.array([2.0, 3.0, 4.0])}),
        (20, {"a/rms": 4.0, "a/rank": 5}),
    ]
    panels = optax_muon.plot.records(history).axes
    assert [panel.get_ylabel() for panel in panels] == ["rms", "rank"]
    drawn = {
        (panel.get_ylabel(), line.get_label()): (
            list(line.get_xdata()),
            list(line.get_ydata()),
        )
        for panel in panels
        for line in panel.lines
    }
    assert drawn == {
        ("rms", "a"): ([0, 10, 20], [1, 2, 4]),
        ("rms", "b"): ([0, 10], [2, 3]),
        ("rank", "a"): ([0, 20], [3, 5]),
    }
    (band,) = panels[0].collections  # of b alone
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert corners == {(0, 1), (0, 6), (10, 2), (10, 4)}


DRAWN = {
    "singular_values": lambda axes: optax_muon.plot.singular_values("cubic", axes=axes),
    "spectra": lambda axes: optax_muon.plot.spectra(np.eye(2), np.eye(2), axes=axes),
    "plan": lambda axes: optax_muon.plot.plan(
        optax_muon.plan(cli_models.vectors()), axes=axes
    ),
    "records": lambda axes: optax_muon.plot.records([(0, {"loss": 1.0})], axes=axes),
}


@pytest.mark.parametrize("name", DRAWN)
def test_axes_may_be_given(name):
    axes = own_axes()
    assert DRAWN[name](axes) is axes.figure
    assert axes.has_data()
    assert name in optax_muon.plot.__all__
    assert len(DRAWN) == len(optax_muon.plot.__all__)


WRONG = {
    "smallest": lambda: optax_muon.plot.singular_values(smallest=0.0),
    "no_such_table": lambda: optax_muon.plot.singular_values("no_such_table"),
    "Qdwh": lambda: optax_muon.plot.singular_values(Qdwh()),
    "before has shape": lambda: optax_muon.plot.spectra(np.ones(3), np.eye(3)),
    "same matrices": lambda: optax_muon.plot.spectra(np.eye(2), np.eye(3)),
    "not finite": lambda: optax_muon.plot.spectra(np.eye(2), np.eye(2) * np.nan),
    "has type dict": lambda: optax_muon.plot.plan({}),
    "0 leaves": lambda: optax_muon.plot.plan(optax_muon.plan({})),
    "0 steps": lambda: optax_muon.plot.records([]),
    "1 steps and no values": lambda: optax_muon.plot.records([(0, {})]),
    "'a/b' at step 7": lambda: optax_muon.plot.records([(7, {"a/b": "x"})]),
    "empty array": lambda: optax_muon.plot.records([(7, {"a/b": np.ones(0)})]),
    "axes are 1, but metrics are 2": lambda: optax_muon.plot.records(
        [(0, {"a/b": 1, "a/c": 2})], axes=own_axes()
    ),
}


@pytest.mark.parametrize("part", WRONG)
def test_errors(part):
    with pytest.raises((ValueError, TypeError)) as caught:
        WRONG[part]()
    assert part in str(caught.value)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_command_line_draws(tmp_path, capsys, suffix):
    file = tmp_path / f"map.{suffix}"
    assert main(["coefficients", "--table=cubic", f"--plot={file}"]) == 0
    start = {"svg": b"<?xml", "png": b"\x89PNG"}[suffix]
    assert file.read_bytes().startswith(start)


WITHOUT = """
import sys
sys.modules["matplotlib"] = None  # as if it were not installed
import optax_muon
from optax_muon._cli import main
status = main(["coefficients", "--plot=never.svg"])
try:
    import optax_muon.plot
except ImportError as error:
    print(status, error)
"""
LAZY = """
import sys
import optax_muon
from optax_muon._cli import main
assert not {"matplotlib", "optax_muon.plot"} & set(sys.modules)
import optax_muon.plot
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""


def test_matplotlib_is_optional_and_named_if_missing(tmp_path):
    def run(program):
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        )

    found = run(WITHOUT)
    assert found.stdout.startswith("2 optax_muon.plot draws with matplotlib")
    assert "pip install 'optax_muon[plot]'" in found.stdout
    assert "pip install 'optax_muon[plot]'" in found.stderr
    assert list(tmp_path.iterdir()) == []
    run(LAZY)
