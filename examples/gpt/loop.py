"""The training loop: one jitted step, evaluations, checkpoints, and the losses."""

import dataclasses
import functools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from checkpoints import Checkpoints
from corpus import Corpus
from diagnostics import Diagnostics
from model import GPT, GPTConfig

# Two models judged on the same windows: at this number, the standard error of the
# difference of their losses is below 0.01 nats per byte.
VALIDATION_WINDOWS = 512
VALIDATION_BATCH = 64


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All that decides the numbers of a run, save its model, text and optimizer."""

    batch: int = 16
    steps: int = 300
    seed: int = 0
    evaluate_every: int = 50


class State(NamedTuple):
    """What one step hands to the next."""

    params: nnx.State
    opt_state: optax.OptState


@dataclasses.dataclass
class History:
    """The losses of a run, in nats per byte."""

    train: list[float] = dataclasses.field(default_factory=list)  # one a step
    validation: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    tokens_per_second: float = 0.0

    @property
    def final(self) -> float:
        """The validation loss after the last step; infinite if the run diverged."""
        loss = self.validation[-1][1]
        return loss if math.isfinite(loss) else math.inf


def initial_params(config: GPTConfig, seed: int) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's structure and its parameters, fresh from the seed."""
    return nnx.split(GPT(config, rngs=nnx.Rngs(seed)))


def mean_loss(graphdef, params, windows) -> jax.Array:
    """Cross entropy of each byte given those before it in its window."""
    logits = nnx.merge(graphdef, params)(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, windows[:, 1:]
    ).mean()


@functools.partial(jax.jit, static_argnames=("graphdef", "optimizer"), donate_argnums=2)
def train_step(graphdef, optimizer, state: State, windows) -> tuple[State, jax.Array]:
    """One update. The old state is donated: its memory becomes the new state's."""
    loss, grads = jax.value_and_grad(mean_loss, argnums=1)(
        graphdef, state.params, windows
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state), loss


evaluation_step = jax.jit(mean_loss, static_argnames="graphdef")


def train(
    model: GPTConfig,
    config: TrainConfig,
    text: Corpus,
    optimizer: optax.GradientTransformation,
    *,
    label: str,
    checkpoints: Checkpoints | None = None,
    diagnostics: Diagnostics | None = None,
) -> tuple[State, History]:
    """Train from the seed, or from the newest checkpoint, to the last step."""
    graphdef, params = initial_params(model, config.seed)
    if diagnostics:
        optimizer = diagnostics.watch(optimizer)
    state, history = State(params, optimizer.init(params)), History()
    if checkpoints and checkpoints.latest() is not None:
        state, stored = checkpoints.restore(state)
        history = History(**stored)
        tqdm.write(f"{label}: resumed after step {len(history.train)}")
    if diagnostics:
        diagnostics.begin(len(history.train))
    validation = text.validation_windows(VALIDATION_WINDOWS, model.context)

    with tqdm(total=config.steps, initial=len(history.train), desc=label) as bar:
        rate = TokenRate(config.batch * model.context)
        for step in range(len(history.train), config.steps):
            windows = text.batch(config.seed, step, config.batch, model.context)
            with rate:
                state, loss = train_step(graphdef, optimizer, state, windows)
                history.train.append(float(loss))
            done = step + 1
            if diagnostics and done % diagnostics.every == 0:
                diagnostics.write(state.opt_state)
            if done % config.evaluate_every == 0 or done == config.steps:
                loss = evaluate(graphdef, state.params, validation)
                history.validation.append((done, loss))
                history.tokens_per_second = rate.per_second()
                bar.write(f"{label}: step {done}, validation loss {loss:.4f}")
            if checkpoints and (done % checkpoints.every == 0 or done == config.steps):
                checkpoints.save(done, state, dataclasses.asdict(history))
            bar.set_postfix(
                loss=f"{history.train[-1]:.3f}",
                tokens_per_s=f"{rate.per_second():,.0f}",
                refresh=False,
            )
            bar.update()
    return state, history


def evaluate(graphdef, params, windows: np.ndarray) -> float:
    """The mean loss over windows, in batches of one size to compile once."""
    losses = [
        evaluation_step(graphdef, params, windows[start : start + VALIDATION_BATCH])
        for start in range(0, len(windows), VALIDATION_BATCH)
    ]
    return float(jnp.stack(losses).mean())


class TokenRate:
    """Tokens per second over the steps timed with it, leaving out the first.

    The first step is mostly compilation, which says nothing of those that follow.
    """

    def __init__(self, tokens_per_step: int):
        self._tokens = tokens_per_step
        self._steps = -1
        self._seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self._steps += 1
        if self._steps:
            self._seconds += time.perf_counter() - self._start

    def per_second(self) -> float:
        return self._steps * self._tokens / self._seconds if self._seconds else 0.0
