"""For tests of benchmarks/convergence.py: a small task, and runs that are none."""

import math

import numpy as np

SHAPE = {"width": 16, "layers": 1, "heads": 2, "context": 8}


def named(*names):
    """Contestants that are never built, the first of them with one setting alone."""
    from contestants import START, Contestant

    starts = [{"learning_rate": 0.016}] + [START] * (len(names) - 1)
    return [
        Contestant(name, f"{name}()", start, build=None)
        for name, start in zip(names, starts, strict=True)
    ]


def letters():
    """Letters at random: there is nothing to learn but that other bytes never come."""
    from gpt_example import corpus

    found = np.random.default_rng(0).integers(97, 123, 3000).astype(np.uint8)
    return corpus.Corpus("letters", found[:2000], found[2000:])


def small_task(name, trials=3, steps=50):
    import byte_gpt
    from gpt_example import model

    return byte_gpt.byte_gpt(
        name,
        model.GPTConfig(**SHAPE),
        batch=2,
        trials=trials,
        steps=steps,
        text=letters(),
    )


def forever():
    """A budget without end."""


def stub(found):
    """In place of `training.measure`: writes down (task, name, settings, seed).

    The loss is least at a rate of 0.064 and without decay; above that runs diverge. No
    two contestants have the same, but nearly so.
    """

    def measure(task, contestant, settings, seed, every=None):
        found.append((task.name, contestant.name, settings, seed))
        rungs = math.log2(settings["learning_rate"] / 0.064)
        loss = abs(rungs) + settings.get("weight_decay", 0.0) + seed / 1000
        loss += sum(map(ord, contestant.name)) / 1e8
        return {
            "source": "a state",
            "settings": settings,
            "validation_loss": None if rungs > 0 else loss,
            "validation": [[25, loss + 1], [50, loss]],
            "seconds": 1.0,
        }

    return measure


def won(name, settings, task="gpt"):
    """Rows by part of a search that is over: two trials, of `settings` both."""
    row = {"source": "1", "settings": settings, "validation_loss": 1.0}
    return {
        "tune": {f"{task}/{name}/{trial}": row for trial in range(2)},
        "confirm": {f"{task}/{name}/0/{seed}": row for seed in (101, 102)},
    }
