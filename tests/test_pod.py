"""The pod program in several processes, on other topologies, killed and resumed."""

import os
import shutil
import signal

import numpy as np
import pytest

from tests.pod_jobs import job, steps_in, unfinished_in, values_in

pytestmark = pytest.mark.slow

FOUR = ("--mesh", "fsdp=2,tensor=2")
MESH = ("--mesh", "data=2,fsdp=4")
STEPS = 8
# Of float32, against the largest entry of a leaf or loss. The order of sums is all that
# differs: measured 1e-5 at most, as between one device and eight. A shard or a window
# at the wrong place shows in the first digits.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def texts(tmp_path_factory):
    """A folder of small text files, and a cache that saves compiling again."""
    folder = tmp_path_factory.mktemp("pod")
    (folder / "texts").mkdir()
    for number in range(40):
        lines = f"{number} bottles of beer, and {number**2} of wine\n" * 20
        (folder / "texts" / f"{number}.txt").write_text(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PLATFORMS", "cpu")
        yield folder / "texts"


@pytest.fixture(scope="module")
def start(texts):
    """Starts a job on those texts: start(out, *flags, steps=, processes=, devices=)."""

    def begin(out, *flags, steps=STEPS, **how):
        return job(out, "--data", texts, "--steps", str(steps), *flags, **how)

    return begin


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """An undisturbed run of one process with eight devices: its folder and result."""
    with start(tmp_path_factory.mktemp("alone") / "run", *MESH) as running:
        return running.out, running.result()


@pytest.fixture(scope="module")
def pair(start, tmp_path_factory):
    """An undisturbed run of two processes with four devices each."""
    out = tmp_path_factory.mktemp("pair") / "run"
    with start(out, *MESH, processes=2) as running:
        return running.out, running.result()


def test_several_processes_train_like_one(alone, pair, start, tmp_path):
    """The same mesh of eight devices, whoever owns them; and one device alone."""
    runs = [pair]
    for name, flags, how in (
        ("four", MESH, {"processes": 4}),
        ("one", (), {"devices": 1}),
    ):
        with start(tmp_path / name, *flags, **how) as running:
            runs.append((running.out, running.result()))
    expected = values_in(alone[0])
    for out, result in runs:
        assert_alike(result, alone[1])
        found = values_in(out)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name], value, atol=TOLERANCE * abs(value).max(), err_msg=name
            )


def assert_alike(result, expected):
    """Losses of the same steps; of the model's learning, too."""
    assert len(result["losses"]) == STEPS
    np.testing.assert_allclose(result["losses"], expected["losses"], rtol=TOLERANCE)
    assert result["losses"][-1] < result["losses"][0] / 2


def test_a_run_moves_to_other_topologies_and_back(alone, start, tmp_path):
    """Eight devices, four, one, and eight: every bit of the state comes along."""
    out, steps, saved = tmp_path / "run", 0, None
    for devices, mesh in ((8, MESH), (4, FOUR), (1, ()), (8, MESH)):
        steps += 2
        with start(out, *mesh, steps=steps, devices=devices) as running:
            result = running.result()
            if saved is not None:
                assert f"resumed from step {steps - 2} {saved}" in running.said()
            saved = running.wait_for(f"saving step {steps}").split(maxsplit=3)[3]
    assert_alike(result, alone[1])


def test_one_process_is_killed(pair, start, tmp_path):
    with start(tmp_path / "run", *MESH, processes=2) as running:
        running.wait_for("step 5 ")  # step 6 is under way
        running.kill(1)
        running.kill()  # a scheduler ends the rest, which would wait for it
    assert steps_in(running.out)[-1] in (2, 4)
    restarted(start, running.out, pair)


def test_all_are_killed_while_they_save(pair, start, tmp_path):
    out = tmp_path / "run"
    with start(out, *MESH, processes=2) as running:
        running.wait_until(lambda: 2 in steps_in(out))  # one to go back to
        while True:
            running.wait_until(lambda: unfinished_in(out))
            running.freeze()
            if left := unfinished_in(out):
                break
            running.send(signal.SIGCONT)  # it was quicker: catch the next one
        running.kill()
    said = restarted(start, out, pair)
    assert f"deleting what a kill left of a save: {left[0].name}" in said
    assert not unfinished_in(out)


def test_the_newest_checkpoint_is_truncated(pair, start, tmp_path):
    out = shutil.copytree(pair[0], tmp_path / "run")
    files = (out / "checkpoints" / str(STEPS)).rglob("*")
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with start(out, *MESH, processes=2) as running:
        assert running.result() == pair[1]
    said = running.said()
    assert f"resumed from step {STEPS - 2} " in " ".join(said)
    assert any(
        line.startswith(f"skipped the checkpoint of step {STEPS}: ") for line in said
    )
    assert (out / "set_aside" / f"{STEPS}_0").is_dir()
    assert steps_in(out)[-1] == STEPS


def restarted(start, out, undisturbed):
    """Start the whole job again: it resumes, and ends as if nothing had happened."""
    newest = steps_in(out)[-1]
    with start(out, *MESH, processes=2) as running:
        assert running.result() == undisturbed[1]
    said = running.said()
    assert any(line.startswith(f"resumed from step {newest} ") for line in said)
    return said
