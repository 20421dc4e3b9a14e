"""A run, from its first step or its newest good checkpoint to the last step."""

import dataclasses
import json
from pathlib import Path

import jax
from jax.sharding import Mesh

import corpus
from corpus import Corpus
from loop import State
from model import GPTConfig
from pod import layout
from pod.digests import sha256
from pod.feed import Feed
from pod.processes import require_same, say
from pod.saves import Saves
from pod.training import Training


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What a run does, beside its model; by default it takes seconds on a CPU.

    Attributes:
      mesh: AXIS=SIZE pairs; None puts all devices on fsdp.
      data: a folder of text files; None takes Python's standard library.
      keep: how many checkpoints to keep.
      overlap: whether exchanges run beside other work, which takes a TPU.
      digests: whether to print digests of the state as it is saved and resumed.
    """

    mesh: str | None = None
    batch: int = 16
    steps: int = 50
    learning_rate: float = 0.02
    seed: int = 0
    data: str | None = None
    out: str = "runs/pod"
    save_every: int = 10
    keep: int = 3
    overlap: bool = False
    digests: bool = False


def run(model: GPTConfig, config: RunConfig) -> None:
    """Train, and write what came out. All processes call this, with the same flags."""
    mesh = layout.make_mesh(layout.parse_mesh(config.mesh, jax.device_count()))
    cut = layout.batch_sharding(mesh, config.batch)
    text = corpus.load(config.data)
    text.require(config.batch, model.context)
    decisive = _decisive(model, config, text)
    require_same("flags", decisive, "Start all with the same flags and text")

    training = Training(
        model, mesh, config.learning_rate, config.seed, overlap=config.overlap
    )
    feed = Feed(text, cut, config.seed, config.batch, model.context)
    say(f"processes: {jax.process_count()}, devices: {jax.device_count()}")
    say(f"mesh: {layout.text_of(mesh)}")
    with Saves(Path(config.out), decisive, config.keep) as saves:
        state, losses = _begin(training, saves, config)
        state = _train(training, feed, saves, config, state, losses)
    _write(config, mesh, state, losses)


def _decisive(model: GPTConfig, config: RunConfig, text: Corpus) -> dict:
    """What decides the numbers; not the mesh, nor how long and how safely to train."""
    return dataclasses.asdict(model) | {
        "text": text.fingerprint(),
        "batch": config.batch,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
    }


def _begin(
    training: Training, saves: Saves, config: RunConfig
) -> tuple[State, list[float]]:
    resumed = saves.resume(training.abstract)
    if resumed is None:
        return training.create(), []
    step, state, losses = resumed
    say(f"resumed from step {step}{_digests(state, config)}")
    return state, losses


def _train(
    training: Training,
    feed: Feed,
    saves: Saves,
    config: RunConfig,
    state: State,
    losses: list[float],
) -> State:
    """Go on to the last step; `losses` grows by one a step."""
    for step in range(len(losses), config.steps):
        state, loss = training.step(state, feed.batch(step))
        losses.append(float(loss))
        done = step + 1
        say(f"step {done} loss {losses[-1]:.6f}")
        if done % config.save_every == 0 or done == config.steps:
            say(f"saving step {done}{_digests(state, config)}")
            saves.save(done, state, losses)
    return state


def _digests(state: State, config: RunConfig) -> str:
    if not config.digests:
        return ""
    return f" params {sha256(state.params)} optimizer {sha256(state.opt_state)}"


def _write(config: RunConfig, mesh: Mesh, state: State, losses: list[float]) -> None:
    result = {
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "losses": losses,
        "params": sha256(state.params),
        "optimizer": sha256(state.opt_state),
    }
    if jax.process_index() == 0:
        path = Path(config.out) / "result.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        say(f"finished step {len(losses)}: {path}")
