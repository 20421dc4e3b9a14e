"""The GPT example runs end to end, repeats itself, resumes exactly, and explains."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "gpt"
OPTIMIZERS = ["muon", "adamw", "adamw_split"]
TINY = [
    *("--width", "16", "--layers", "1", "--heads", "2", "--context", "16"),
    *("--batch", "2", "--steps", "8", "--evaluate-every", "4"),
]


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The example's files import each other by name; no other test should see them."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of forty small text files, some in a subfolder."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "more").mkdir()
    for number in range(40):
        place = folder / "more" if number % 2 else folder
        (place / f"{number}.txt").write_text(f"{number} bottles of beer\n" * 20)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of all three: its folder, result, and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        out, result = run(tmp_path_factory.mktemp("finished"))
    return out, result, printed.getvalue()


def run(out, *flags):
    import train

    train.main([*TINY, "--out", str(out), *flags])
    return out, json.loads((out / "result.json").read_text())


def losses(result, name):
    """The numbers of a run that are not the clock's."""
    return result["runs"][name]["train"], result["runs"][name]["validation"]


def test_it_trains_on_the_standard_library_and_says_who_won(finished):
    out, result, printed = finished
    assert "standard library of Python" in printed
    assert "lm_head/kernel" in printed  # the plan
    assert "Final validation loss" in printed
    assert "adamw_split's final loss" in printed
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list(result["runs"]) == OPTIMIZERS
    for name in OPTIMIZERS:
        train_losses, validation = losses(result, name)
        assert [step for step, _ in validation] == [4, 8]
        assert train_losses[0] == pytest.approx(np.log(256))  # every byte as likely
        assert validation[-1][1] < train_losses[0]


def test_the_same_seed_gives_the_same_numbers(finished, tmp_path):
    _, again = run(tmp_path, "--optimizers", "muon")
    assert losses(again, "muon") == losses(finished[1], "muon")


def test_a_finished_run_repeats_its_result_without_training(finished):
    out, first, _ = finished
    assert run(out, "--resume")[1]["runs"] == first["runs"]


def test_fresh_starts_over_and_another_seed_gives_other_numbers(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "copy")
    _, other = run(out, "--fresh", "--seed", "1", "--optimizers", "adamw")
    assert losses(other, "adamw") != losses(finished[1], "adamw")


def test_it_trains_on_files_of_ones_own(texts, tmp_path, capsys):
    _, result = run(tmp_path, "--data", str(texts), "--optimizers", "adamw")
    printed = capsys.readouterr()
    assert str(texts) in printed.out
    assert str(texts) in result["config"]["text"]
    # The bar: how far, how fast, how good; and the verdict's rate.
    assert re.search(r"adamw: 100%.*8/8.*loss=.*tokens_per_s=", printed.err)
    assert re.search(r"adamw +[\d.]+ +[\d,]+ tokens/s", printed.out)


@pytest.mark.parametrize("name", ["muon", "adamw_split"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(
    name, texts, tmp_path, monkeypatch
):
    import corpus
    import recipes
    from checkpoints import Checkpoints
    from loop import TrainConfig, train
    from model import GPTConfig

    model = GPTConfig(width=16, layers=2, heads=2, context=16)
    config = TrainConfig(batch=2, steps=8, evaluate_every=3)
    text = corpus.load(texts)
    optimizer = recipes.build(name, recipes.TUNED[name], config.steps)

    def go(folder):
        with Checkpoints(tmp_path / folder, {}, every=4) as checkpoints:
            return train(
                model, config, text, optimizer, label=name, checkpoints=checkpoints
            )

    expected, whole = go("whole")

    batch = corpus.Corpus.batch

    def interrupted(self, seed, step, *shape):
        if step == 6:
            raise KeyboardInterrupt
        return batch(self, seed, step, *shape)

    with monkeypatch.context() as patch:
        patch.setattr(corpus.Corpus, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go("parts")
    state, history = go("parts")

    assert history.train == whole.train
    assert [tuple(pair) for pair in history.validation] == whole.validation
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        found = dict(jax.tree_util.tree_leaves_with_path(state))[path]
        assert found.dtype == leaf.dtype, path
        assert np.asarray(found).tobytes() == np.asarray(leaf).tobytes(), path


def test_resuming_another_configuration_says_what_differs(finished):
    with pytest.raises(SystemExit, match=r"steps was 8 and is now 9.*--fresh"):
        run(finished[0], "--steps", "9")


def test_resume_needs_a_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match="no checkpoint to resume from"):
        run(tmp_path, "--resume")


def test_the_split_is_by_file_and_stable(texts, tmp_path):
    import corpus

    names = [f"package/module_{number}.py" for number in range(2000)]
    held_out = [name for name in names if corpus.split_of(name) == "validation"]
    assert len(held_out) == pytest.approx(200, abs=50)
    # Recorded once: a changed split would silently change every published number.
    assert corpus.split_of("abc.py") == "train"
    assert corpus.split_of("enum.py") == "validation"

    text = corpus.load(texts)
    files = {
        split: set(getattr(text, split).tobytes().split(corpus.FILE_END)) - {b""}
        for split in ("train", "validation")
    }
    assert not files["train"] & files["validation"]
    assert len(files["train"] | files["validation"]) == 40

    fewer = shutil.copytree(texts, tmp_path / "fewer")
    (fewer / "0.txt").unlink()
    kept = set(corpus.load(fewer).validation.tobytes().split(corpus.FILE_END))
    assert kept - {b""} <= files["validation"]


def test_the_end_of_a_lone_file_is_held_out(tmp_path):
    import corpus

    (tmp_path / "all.txt").write_text("a" * 899 + "b" * 100)
    text = corpus.load(tmp_path)
    assert text.train.tobytes() == b"a" * 899 + b"b"
    assert text.validation.tobytes() == b"b" * 99 + corpus.FILE_END
    text.require(4, 16)


def test_batches_depend_on_seed_and_step_alone(texts):
    import corpus

    first, second = corpus.load(texts), corpus.load(texts)
    first.batch(0, 0, 4, 16)  # an earlier call leaves no trace
    batch = first.batch(0, 5, 4, 16)
    assert batch.shape == (4, 17)
    np.testing.assert_array_equal(batch, second.batch(0, 5, 4, 16))
    assert (batch != first.batch(0, 6, 4, 16)).any()
    assert (batch != first.batch(1, 5, 4, 16)).any()


def test_files_that_are_no_text_are_left_out(tmp_path):
    import corpus

    for number in range(40):
        (tmp_path / f"{number}.txt").write_text("plain")
    expected = corpus.load(tmp_path).fingerprint()
    (tmp_path / "image.bin").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "zeros.bin").write_bytes(bytes(9))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    assert corpus.load(tmp_path).fingerprint() == expected


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "no such folder"),
        ([], "no text files"),
        (["a"], "needs 34"),
        (["a", "b"], "cut one into several"),
    ],
)
def test_unusable_data_is_explained(files, reason, tmp_path):
    folder = tmp_path / "data"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("short")
    with pytest.raises(SystemExit, match=reason) as caught:
        run(tmp_path / "out", "--data", str(folder))
    assert "--data" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_heads_must_share_the_width():
    import train

    with pytest.raises(SystemExit, match=r"--width = 20.*multiple of 8"):
        train.main(["--width", "20"])


def test_the_sweep_climbs_and_spends_one_budget(tmp_path, monkeypatch):
    import sweep
    from records import Records

    def bowl(model, config, text, name, settings):
        distance = abs(np.log2(settings["learning_rate"] / 0.064))
        return {"validation_loss": float(distance + settings["weight_decay"])}

    monkeypatch.setattr(sweep, "measure", bowl)
    path = tmp_path / "sweep.json"
    sweep.search(None, None, None, 3, Records(path, {"command": "sweep"}))
    records = Records(path, {"command": "sweep"})  # a second piece of the same sweep
    sweep.search(None, None, None, 9, records)
    for name in OPTIMIZERS:
        tried = sweep.by_loss(records.rows, name)
        assert len(tried) == 9
        assert tried[0]["settings"]["learning_rate"] == 0.064
    assert json.loads(path.read_text())["rows"] == records.rows


def test_rows_under_another_header_are_refused(tmp_path):
    from records import Records
    from usage import UsageError

    Records(tmp_path / "rows.json", {"steps": 1}).append({"loss": 1.0})
    assert Records(tmp_path / "rows.json", {"steps": 1}).rows == [{"loss": 1.0}]
    with pytest.raises(UsageError, match="another steps"):
        Records(tmp_path / "rows.json", {"steps": 2})


def test_the_committed_results_belong_to_the_recipes():
    import recipes
    import sweep

    swept = json.loads((FOLDER / "results" / "sweep.json").read_text())["rows"]
    for name, tuned in recipes.TUNED.items():
        assert sweep.by_loss(swept, name)[0]["settings"] == tuned
    compared = json.loads((FOLDER / "results" / "compare.json").read_text())
    assert compared["settings"] == recipes.TUNED
    assert len(compared["rows"]) == 9
    final = {
        (row["optimizer"], row["seed"]): row["validation"][-1]
        for row in compared["rows"]
    }
    for seed in (0, 1, 2):
        step, loss = final["muon", seed]
        for rival in ("adamw", "adamw_split"):
            assert step == final[rival, seed][0]
            assert loss < final[rival, seed][1]
