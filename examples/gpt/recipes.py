"""The optimizers the example compares, and the hyperparameters they were tuned to.

They share all that is not in question: the schedule, Adam's decay rates, and weight
decay on the hidden matrices alone. `adamw_split` is there to be fair to AdamW: Muon
trains embedding, head and norms at a rate of their own, so AdamW may have that too.
"""

import jax
import optax

import optax_muon

ADAM_B1 = 0.9
ADAM_B2 = 0.95
WARMUP_SHARE = 0.1

# The best trials of results/sweep.json; a test keeps the two alike.
TUNED = {
    "muon": {
        "learning_rate": 0.032,
        "rest_learning_rate": 0.064,
        "weight_decay": 0.3,
    },
    "adamw": {
        "learning_rate": 0.032,
        "weight_decay": 1.0,
    },
    "adamw_split": {
        "learning_rate": 0.004,
        "rest_learning_rate": 0.032,
        "weight_decay": 0.1,
    },
}


def build(name: str, settings: dict, steps: int) -> optax.GradientTransformation:
    """The optimizer of that name, its rates scheduled over so many steps."""
    return RECIPES[name](steps, **settings)


def schedule(peak: float, steps: int) -> optax.Schedule:
    """A linear warmup from near zero to the peak, then half a cosine down to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / (warmup + 1),
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
    )


def muon(steps, learning_rate, rest_learning_rate, weight_decay):
    """Muon for the hidden matrices, AdamW for the rest."""
    return optax_muon.muon(
        schedule(learning_rate, steps),
        weight_decay=weight_decay,
        adam_learning_rate=schedule(rest_learning_rate, steps),
        adam_b1=ADAM_B1,
        adam_b2=ADAM_B2,
        adam_weight_decay=0.0,
    )


def adamw(steps, learning_rate, weight_decay):
    """AdamW for all, at one rate."""
    return optax.adamw(
        schedule(learning_rate, steps),
        b1=ADAM_B1,
        b2=ADAM_B2,
        weight_decay=weight_decay,
        mask=hidden_matrices,
    )


def adamw_split(steps, learning_rate, rest_learning_rate, weight_decay):
    """AdamW for all, at one rate for the hidden matrices and another for the rest."""
    return optax.partition(
        {
            True: adamw(steps, learning_rate, weight_decay),
            False: adamw(steps, rest_learning_rate, 0.0),
        },
        hidden_matrices,
    )


def hidden_matrices(params):
    """True for each leaf that Muon would train, by the library's own rule."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: optax_muon.flax_matrix_axes(path, leaf) is not None, params
    )


RECIPES = {"muon": muon, "adamw": adamw, "adamw_split": adamw_split}
