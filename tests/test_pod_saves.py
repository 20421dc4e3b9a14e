"""Which checkpoint the pod program resumes from, and that its state comes whole."""

import os
import shutil

import jax
import numpy as np
import pytest

from optax_muon import find_state
from tests.pod_small import CONTEXT, MODEL, SIZE, mesh_of

pytestmark = pytest.mark.usefixtures("pod_modules")


def loads(good):
    from pod.saves import BadCheckpointError

    def load(step):
        if step not in good:
            raise BadCheckpointError(f"{step} is broken")
        return f"state {step}"

    return load


@pytest.mark.parametrize(
    ("steps", "good", "expected"),
    [
        ([], [], (None, None, {})),
        ([2, 4, 10], [2, 4, 10], (10, "state 10", {})),
        ([2, 4, 10], [2, 4], (4, "state 4", {10: "10 is broken"})),
        ([4, 2], [2], (2, "state 2", {4: "4 is broken"})),
        ([2, 4], [], (None, None, {4: "4 is broken", 2: "2 is broken"})),
    ],
)
def test_the_newest_good_checkpoint(steps, good, expected):
    from pod.saves import newest_good

    assert newest_good(steps, loads(good)) == expected


@pytest.fixture(scope="module")
def run(pod_training, pod_text, tmp_path_factory):
    """Two steps on eight devices, a checkpoint after each: folder and last state."""
    from pod.feed import Feed
    from pod.layout import batch_sharding
    from pod.saves import Saves

    folder, eight = tmp_path_factory.mktemp("run"), pod_training(2, 2, 2)
    cut = batch_sharding(mesh_of(2, 2, 2), SIZE)
    feed, state = Feed(pod_text, cut, 0, SIZE, CONTEXT), eight.create()
    with Saves(folder, MODEL, 3) as saves:
        assert saves.resume(eight.abstract) is None
        for step in (0, 1):
            state, _ = eight.step(state, feed.batch(step))
            saves.save(step + 1, state, [0.5] * (step + 1))
    return folder, state


@pytest.fixture
def saved(run, tmp_path):
    """A copy of that run: TensorStore remembers what this process wrote to a path."""
    return shutil.copytree(run[0], tmp_path / "copy"), run[1]


def resume(folder, training, config=MODEL):
    from pod.saves import Saves

    with Saves(folder, config, 3) as saves:
        return saves.resume(training.abstract)


@pytest.mark.parametrize("shape", [(1, 2, 2), (4, 1, 1), (1, 1, 1), (1, 8, 1)])
def test_a_state_moves_to_another_mesh_bit_by_bit(shape, saved, pod_training):
    folder, state = saved
    step, moved, losses = resume(folder, pod_training(*shape))
    assert (step, losses) == (2, [0.5, 0.5])
    momentum = [
        jax.tree.leaves(find_state(s.opt_state).momentum) for s in (state, moved)
    ]
    assert len(momentum[0]) == 6
    jax.tree.map(np.testing.assert_array_equal, *momentum)
    jax.tree.map(np.testing.assert_array_equal, state, moved)
    for leaf, like in zip(
        jax.tree.leaves(moved),
        jax.tree.leaves(pod_training(*shape).abstract),
        strict=True,
    ):
        assert leaf.sharding == like.sharding


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """One bit, in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Of files that are read before any values. Values are read all at once, and an error of
# one leaves the rest to complain to a loop that is gone, some time later: broken values
# have a process of their own, in test_pod.py.
@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (truncate, "state/_METADATA"),
        (os.remove, "state/_METADATA"),
        (truncate, "notes/metadata"),
        (os.remove, "notes/metadata"),
        (flip, "notes/metadata"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside(damage, file, saved, pod_training, capsys):
    folder, _ = saved
    damage(folder / "checkpoints" / "2" / file)
    for _ in range(2):  # the second time, there is nothing left to skip
        step, state, losses = resume(folder, pod_training(2, 2, 2))
        assert (step, losses) == (1, [0.5])
        assert find_state(state.opt_state).count == 1
    said = capsys.readouterr().out
    assert said.count("skipped the checkpoint of step 2: ") == 1
    assert (folder / "set_aside" / "2_0").is_dir()


def test_changed_notes_are_no_good(saved, pod_training):
    folder, _ = saved
    notes = folder / "checkpoints" / "2" / "notes" / "metadata"
    notes.write_text(notes.read_text().replace("0.5", "0.6", 1))
    assert resume(folder, pod_training(2, 2, 2))[0] == 1


def test_changed_values_are_no_good(saved, pod_training, monkeypatch, capsys):
    """Those that no reader notices: as if all of a file's own checks had passed."""
    from pod import saves

    read = saves._read

    def other(reader, folder, **item):
        found = read(reader, folder, **item)
        if "state" in item and folder.name == "2":
            params = jax.tree.map(lambda x: -x, found.params)
            found = found._replace(params=params)
        return found

    monkeypatch.setattr(saves, "_read", other)
    assert resume(saved[0], pod_training(2, 2, 2))[0] == 1
    assert "params/lm_head/kernel/value" in capsys.readouterr().out


def test_if_none_is_good_nothing_is_touched(saved, pod_training):
    from usage import UsageError

    folder, _ = saved
    for step in "12":
        truncate(folder / "checkpoints" / step / "state" / "_METADATA")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=r"--out = .*steps 2, 1\) is good"):
        resume(folder, pod_training(2, 2, 2))
    assert sorted(folder.rglob("*")) == before


def test_another_configuration_does_not_resume(saved, pod_training):
    from usage import UsageError

    with pytest.raises(UsageError, match="width was 32 and is now 64"):
        resume(saved[0], pod_training(2, 2, 2), MODEL | {"width": 64})
