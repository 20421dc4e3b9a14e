"""Checkpoints of one run, and the configuration they belong to.

A checkpoint holds all that later steps depend on: parameters, optimizer state and step
number (data and schedule follow from the step), with the losses so far beside them.
"""

import json
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from usage import UsageError, changes


class Checkpoints:
    """The checkpoints in `folder` of a run with `config`.

    Resuming under another configuration would give numbers that belong to neither, so
    the configuration lies beside the checkpoints and has to match.
    """

    def __init__(self, folder: Path, config: dict, every: int, fresh: bool = False):
        self.every = every
        self._config, self._config_file = config, folder / "config.json"
        known = self._config_file.exists()
        if fresh and known:  # only ever delete what is a run's folder
            shutil.rmtree(folder)
        elif known:
            _require_same(folder, json.loads(self._config_file.read_text()), config)
        self._manager = ocp.CheckpointManager(
            (folder / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                # The train step donates its buffers: finish writing before the next.
                enable_async_checkpointing=False,
            ),
        )

    def latest(self) -> int | None:
        """The step of the newest checkpoint, if there is one."""
        return self._manager.latest_step()

    def restore(self, like):
        """The newest state and losses; `like` is a state of the same structure."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            self.latest(),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                history=ocp.args.JsonRestore(),
            ),
        )
        return restored.state, restored.history

    def save(self, step: int, state, history: dict) -> None:
        """Write a checkpoint; a crash midway leaves the one before intact."""
        if not self._config_file.exists():
            self._config_file.write_text(json.dumps(self._config, indent=2) + "\n")
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), history=ocp.args.JsonSave(history)
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()


def _require_same(folder: Path, stored: dict, asked: dict) -> None:
    if differences := changes(stored, asked):
        raise UsageError(
            "--out",
            folder.parent,
            f"the run in {folder.name}/ had another configuration: {differences}",
            "Repeat the first configuration to resume it, name another --out, or give "
            "--fresh to delete that run and start over",
        )
