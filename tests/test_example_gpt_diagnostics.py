"""The GPT example writes down what `monitor` records, when it is asked to."""

import csv
import itertools
import math

import numpy as np
import pytest

from tests.test_example_gpt import losses, modules, run

pytestmark = pytest.mark.usefixtures(modules.__name__)
FLAGS = ("--optimizers", "muon", "adamw")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_records_of_every_second_step(tmp_path):
    _, plain = run(tmp_path / "plain", *FLAGS)
    out, watched = run(tmp_path / "watched", *FLAGS, "--diagnostics-every", "2")
    assert not list((tmp_path / "plain").rglob("*.csv"))
    for name in ("muon", "adamw"):  # one formula, which XLA may fuse in another way
        for a, b in zip(losses(watched, name), losses(plain, name), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        rows = rows_of(out / name / "diagnostics.csv")
        steps = [
            int(step) for step, _ in itertools.groupby(row["step"] for row in rows)
        ]
        assert steps == [2, 4, 6, 8]
        assert all(math.isfinite(float(row["value"])) for row in rows)
        kernels = {row["leaf"] for row in rows if row["metric"] == "update_sigma_max"}
        assert len(kernels) >= 6
        has_momentum = any(row["metric"].startswith("momentum") for row in rows)
        assert has_momentum == (name == "muon")
    with pytest.raises(SystemExit, match="diagnostics_every was 2 and is now None"):
        run(out, *FLAGS)


def test_a_resumed_run_repeats_no_line(tmp_path):
    from diagnostics import Diagnostics

    path = tmp_path / "run" / "diagnostics.csv"
    diagnostics = Diagnostics(path, 2)
    diagnostics.begin(0)
    for step in (2, 4, 6):
        with path.open("a") as file:
            file.write(f"{step},kernel,update_rms,1.0\n")
    diagnostics.begin(4)
    assert [row["step"] for row in rows_of(path)] == ["2", "4"]
    diagnostics.begin(0)
    assert rows_of(path) == []
