"""Checkpoints that survive kills, broken files and a change of machines.

Orbax writes a step into a folder with a temporary name and renames it when all is
there, so a kill leaves no half checkpoint under a step's name. What becomes of the
files later, checksums tell: they are taken of the state that is saved, and compared
with the state that was read, on whatever mesh it was read onto.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from pod.digests import checksums
from pod.processes import from_all, require_same, say
from usage import UsageError, changes

# In the names that Orbax gives to steps before they are complete.
UNFINISHED = ".orbax-checkpoint-tmp"


class BadCheckpointError(Exception):
    """A checkpoint that cannot be read, or holds something else than was saved."""


class Saves:
    """The checkpoints in `folder` of a run with `config`.

    Args:
      folder: one that all processes share.
      config: what decides the numbers; a run of another may not be resumed.
      keep: how many checkpoints to keep; saving deletes older ones.
    """

    def __init__(self, folder: Path, config: dict, keep: int):
        self._folder = folder.resolve()
        self._config, self._keep = config, keep
        self._writer: ocp.CheckpointManager | None = None

    def resume(self, abstract: Any) -> tuple[int, Any, list[float]] | None:
        """Step, state and losses of the newest good checkpoint; None for a new run.

        Checkpoints that are no good are set aside, not deleted, and a line says why.
        """
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        reader = _reader()
        step, found, bad = newest_good(
            self._steps(), lambda step: self._load(reader, step, abstract)
        )
        for refused, reason in bad.items():
            say(f"skipped the checkpoint of step {refused}: {reason}")
        if bad and step is None:
            raise UsageError(
                "--out",
                self._folder,
                f"none of its checkpoints (steps {', '.join(map(str, bad))}) is good",
                "Repair one, or name another --out to start over",
            )
        self._set_aside(bad)
        self._writer = self._open()
        return None if step is None else (step, *found)

    def save(self, step: int, state: Any, losses: list[float]) -> None:
        """Begin to write a step; the writing goes on while training does."""
        content = {
            "config": self._config,
            "losses": losses,
            "checksums": _numbers(state),
        }
        notes = {"content": content, "sha256": _sha256(content)}
        self._writer.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        """Wait until all is written; after an error, others may never come."""
        if self._writer is not None and kind is None:
            self._writer.close()

    @property
    def _checkpoints(self) -> Path:
        return self._folder / "checkpoints"

    def _steps(self) -> list[int]:
        names = [path.name for path in self._checkpoints.iterdir()]
        steps = sorted(int(name) for name in names if name.isdigit())
        require_same(
            "checkpoints in --out", steps, "Name a folder that all processes share"
        )
        return steps

    def _open(self) -> ocp.CheckpointManager:
        for path in self._checkpoints.glob(f"*{UNFINISHED}*"):
            say(f"deleting what a kill left of a save: {path.name}")
        from_all("")  # all have looked before the manager deletes
        return ocp.CheckpointManager(
            self._checkpoints,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                cleanup_tmp_directories=True,
            ),
        )

    def _load(self, reader: Any, step: int, abstract: Any) -> tuple[Any, list[float]]:
        folder = self._checkpoints / str(step)
        notes = _together(lambda: _read_notes(reader, folder))
        # Before the state: one of another shape could not be read, and yet is good.
        _require_config(self._folder, notes["config"], self._config)
        state = _together(
            lambda: _read(reader, folder, state=ocp.args.StandardRestore(abstract))
        )
        found = _numbers(state)
        wrong = [name for name in found if found[name] != notes["checksums"].get(name)]
        if wrong:
            raise BadCheckpointError(f"the values of {', '.join(wrong)} have changed")
        return state, notes["losses"]

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Out of the way of the step that will be saved under the same number."""
        for step in steps:
            if jax.process_index() == 0:
                place = self._folder / "set_aside"
                place.mkdir(exist_ok=True)
                taken = len(list(place.glob(f"{step}_*")))
                (self._checkpoints / str(step)).rename(place / f"{step}_{taken}")
            say(f"set aside the checkpoint of step {step}: {self._folder}/set_aside")
        from_all("")  # no one goes on before all is moved


def _reader() -> ocp.Checkpointer:
    """Reads without waiting for others: one that cannot read its part stops early."""
    us = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=us, active_processes={us}, barrier_sync_key_prefix=f"reader_{us}"
    )
    composite = ocp.CompositeOptions(multiprocessing_options=alone)
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(composite_options=composite),
        multiprocessing_options=alone,
    )


def newest_good(
    steps: list[int], load: Callable[[int], Any]
) -> tuple[int | None, Any, dict[int, str]]:
    """The newest step that loads, what it holds, and why newer ones did not load."""
    bad = {}
    for step in sorted(steps, reverse=True):
        try:
            return step, load(step), bad
        except BadCheckpointError as error:
            bad[step] = str(error)
    return None, None, bad


def _read(reader: ocp.Checkpointer, folder: Path, **item: Any) -> Any:
    """The one item asked for, such as `notes=JsonRestore()`."""
    return reader.restore(folder, args=ocp.args.Composite(**item))[next(iter(item))]


def _read_notes(reader: ocp.Checkpointer, folder: Path) -> dict:
    notes = _read(reader, folder, notes=ocp.args.JsonRestore())
    if notes["sha256"] != _sha256(notes["content"]):
        raise BadCheckpointError("its notes have changed")
    return notes["content"]


def _sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _together(read: Callable[[], Any]) -> Any:
    """What `read` returns, if it returns on every process; if not, raise on all."""
    result, reason = None, ""
    try:
        result = read()
    except Exception as error:  # whatever a broken file makes of its reader
        first = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {first[0][:200]}"
    said = [f"process {i}: {text}" for i, text in enumerate(from_all(reason)) if text]
    if said:
        raise BadCheckpointError(said[0])
    return result


def _numbers(state: Any) -> dict[str, int]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): number
        for path, number in zip(paths, checksums(state), strict=True)
    }


def _require_config(folder: Path, stored: dict, asked: dict) -> None:
    if differences := changes(stored, asked):
        raise UsageError(
            "--out",
            folder,
            f"its run had another configuration: {differences}",
            "Repeat its configuration to resume it, or name another --out",
        )
