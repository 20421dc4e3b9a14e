"""A run: parameters from a seed, all steps, and the validation losses on the way."""

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import machine
from contestants import Contestant, Rate
from gpt_example import recipes
from tasks import Task

# What decides the numbers of a run besides the library: the example's files and these.
HERE = Path(__file__).parent
DECIDES = (
    *(HERE.parent / "examples" / "gpt").glob("*.py"),
    *(
        HERE / f"{name}.py"
        for name in ("autoencoder", "byte_gpt", "contestants", "field", "rivals")
    ),
    Path(__file__),
)


class State(NamedTuple):
    """What one step hands to the next."""

    params: Any
    opt_state: optax.OptState


def measure(
    task: Task,
    contestant: Contestant,
    settings: Mapping[str, float],
    seed: int,
    every: int | None = None,
) -> dict:
    """One run, as a row of results.

    Args:
      settings: of the contestant.
      seed: of the parameters and the batches.
      every: steps between evaluations, a multiple of a chunk's; None: only at the end.

    Returns:
      settings, validation [[step, loss], ...], its last loss as validation_loss, which
      is None for a run that diverged, the seconds it all took, and fingerprints of the
      library (source) and of the program that used it (program).
    """
    origin = {"source": machine.source(), "program": program()}
    start = time.perf_counter()
    validation = list(train(task, contestant, settings, seed, every or task.steps))
    finite = math.isfinite(validation[-1][1])
    return origin | {
        "settings": dict(settings),
        "validation_loss": validation[-1][1] if finite else None,
        "validation": validation if finite else validation[:-1],
        "seconds": round(time.perf_counter() - start, 1),
    }


@functools.cache
def program() -> str:
    """A fingerprint of the files that decide a run, as they were when it began."""
    return machine.fingerprint(HERE.parent, DECIDES)


def train(task, contestant, settings, seed, every):
    """Yield (step, loss) of each evaluation; the first infinite loss is the last."""
    begin, advance, evaluate = programs(task, contestant)
    params = task.start(seed)
    state = State(params, begin(params, settings))
    for step, batches in task.chunks(seed):
        state, losses = advance(state, settings, batches)
        if not math.isfinite(losses[-1]):
            yield step, math.inf
            return
        if step % every == 0 or step == task.steps:
            loss = float(evaluate(state.params, task.validation))
            yield step, loss if math.isfinite(loss) else math.inf


@functools.cache
def programs(task: Task, contestant: Contestant):
    """To begin, to advance by a chunk of steps, and to evaluate: each compiled once."""

    def optimizer(settings):
        return contestant.build(settings, rates(task.steps))

    def told_of(params, batch):
        if not contestant.clips:
            return {}
        return {"max_logits": task.max_logits(params, batch)}

    def begin(params, settings):
        return optimizer(settings).init(params)

    def advance(state, settings, batches):
        update = optimizer(settings).update

        def step(state, batch):
            params = state.params
            loss, grads = jax.value_and_grad(task.loss)(params, batch)
            told = told_of(params, batch)
            updates, opt_state = update(grads, state.opt_state, params, **told)
            return State(optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(step, state, batches)

    return jax.jit(begin), jax.jit(advance, donate_argnums=0), evaluator(task)


@functools.cache
def evaluator(task: Task):
    """The mean loss over the validation set, whoever trained."""

    def evaluate(params, batches):
        return jax.lax.map(functools.partial(task.loss, params), batches).mean()

    return jax.jit(evaluate)


def forget_programs() -> None:
    """Free what was compiled: each task has its own programs."""
    programs.cache_clear()
    evaluator.cache_clear()
    jax.clear_caches()


def rates(steps: int) -> Rate:
    """From a peak, the example's warm-up and half cosine."""
    shape = recipes.schedule(1.0, steps)
    return lambda peak: lambda count: peak * shape(count)
