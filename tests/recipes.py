"""The optimizers that the contract tests run, and what those tests have in common.

A new optimizer joins every contract test by one entry in `RECIPES`; the tests of
states, checkpoints and programs as well, unless it is a preset.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon

# How far two programs of one formula may drift apart, relative to the largest entry of
# a leaf. XLA rounds a formula differently in each program it fuses it into, by about
# eps(float32) = 1.2e-7, and Newton-Schulz multiplies an error in a small singular value
# by the slopes of its polynomials at 0: 8.2 * 4.0 * 3.8 * 3.3 * 2.3 < 1000.
ROUNDING = 1000 * float(np.finfo(np.float32).eps)


def matrices(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Parameters that are all matrices."""
    return {
        "down": {"kernel": _normal(1, (6, 4), dtype)},
        "up": {"kernel": _normal(2, (4, 6), dtype)},
    }


def model(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Parameters of a model: matrices, and leaves for AdamW."""
    return {
        "embed": {"embedding": _normal(3, (5, 4), dtype)},
        "up": {"bias": _normal(4, (6,), dtype), **matrices(dtype)["up"]},
        "down": matrices(dtype)["down"],
    }


def attention(dtype: Any = jnp.float32) -> dict[str, Any]:
    """A model, and the queries and keys [d, heads, head_dim] of two heads."""
    query, key = ({"kernel": _normal(k, (4, 2, 3), dtype)} for k in (5, 6))
    return {**model(dtype), "attention": {"query": query, "key": key}}


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """One optimizer of the contract tests.

    Attributes:
      factory: what makes it, a function that `optax.inject_hyperparams` can wrap.
      arguments: the factory's keyword arguments.
      params: parameters that it accepts, from their dtype.
      static_args: functions that `optax.inject_hyperparams` would take for schedules.
      has_muon_state: whether its state holds a `MuonState`.
      preset: whether it only gives arguments to others of these, so that its states and
        programs are of their kinds.
    """

    factory: Callable[..., optax.GradientTransformation]
    arguments: Mapping[str, Any]
    params: Callable[..., Any] = model
    static_args: tuple[str, ...] = ()
    has_muon_state: bool = True
    preset: bool = False

    def make(self) -> optax.GradientTransformation:
        return self.factory(**self.arguments)

    @functools.cached_property
    def plain(self) -> "Run":
        """Three steps of it alone, which its steps inside anything else must equal."""
        params = self.params()
        return run(self.make(), params, gradients(params))


def _muon_chain(learning_rate, momentum=0.95):
    return optax.chain(
        optax_muon.scale_by_muon(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _shampoo_chain(learning_rate, accumulate=True):
    return optax.chain(
        optax_muon.scale_by_shampoo(accumulate=accumulate),
        optax.scale_by_learning_rate(learning_rate),
    )


def _dion2_chain(learning_rate, decay=0.95):
    return optax.chain(
        optax_muon.scale_by_dion2(0.5, decay=decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _dual_norm(learning_rate, momentum=0.95):
    matrices = optax.chain(
        optax_muon.accumulate_momentum(momentum),
        optax_muon.scale_by_dual_norm(optax_muon.orthogonalize_updates()),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax_muon.route(matrices, optax.adamw(learning_rate))


def _monitored(learning_rate, momentum=0.95):
    return optax_muon.monitor(
        optax_muon.muon(learning_rate, momentum=momentum), every=2
    )


def _clipped(learning_rate, momentum=0.95, tau=100.0):
    """`muon_clip` with the logits that a training step would pass: its second head's
    are above tau."""
    clip = optax_muon.muon_clip(learning_rate, momentum=momentum, tau=tau)

    def update(updates, state, params, **extra_args):
        logits = {"attention": jnp.array([20.0, 200.0])}
        return clip.update(updates, state, params, max_logits=logits, **extra_args)

    return optax.GradientTransformationExtraArgs(clip.init, update)


RECIPES = {
    "muon": Recipe(optax_muon.muon, {"learning_rate": 1e-2}),
    "muon_cautious_neurons": Recipe(
        optax_muon.muon,
        {
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "cautious": True,
            "normalizer": optax_muon.normalize_neurons(),
        },
    ),
    "muon_schedules": Recipe(
        optax_muon.muon,
        {
            "learning_rate": optax.linear_schedule(1e-2, 1e-3, 4),
            "momentum": optax.linear_schedule(0.8, 0.95, 4),
            "weight_decay": optax.linear_schedule(0.0, 0.1, 4),
        },
    ),
    "muon_heavy_ball_svd": Recipe(
        optax_muon.muon,
        {
            "learning_rate": 1e-2,
            "momentum_form": "heavy_ball",
            "orthogonalizer": optax_muon.Svd(),
        },
    ),
    "muon_functions": Recipe(
        optax_muon.muon,
        {
            "learning_rate": 1e-2,
            "orthogonalizer": lambda x: 2 * x,
            "scale": lambda fan_in, fan_out: fan_out / fan_in,
            "weight_decay": 0.1,
            "weight_decay_mask": lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
            "matrix_axes": optax_muon.flax_matrix_axes,
        },
        static_args=("orthogonalizer", "scale", "weight_decay_mask", "matrix_axes"),
    ),
    "muon_axes_tree": Recipe(
        optax_muon.muon,
        {
            "learning_rate": 1e-2,
            "matrix_axes": {
                "embed": None,
                "up": {"bias": None, "kernel": optax_muon.MatrixAxes(0, 1)},
                "down": optax_muon.MatrixAxes(0, 1),
            },
        },
    ),
    "muon_adamuon": Recipe(
        optax_muon.muon,
        {
            "learning_rate": 1e-2,
            "momentum_form": "heavy_ball",
            "preconditioner": optax.scale_by_sign(),
            "normalizer": optax.chain(
                optax_muon.normalize_entries(), optax_muon.snap_frobenius()
            ),
            "weight_decay": 0.1,
            "weight_decay_form": "independent",
        },
    ),
    "muon_equilibrated": Recipe(
        optax_muon.muon,
        {"learning_rate": 1e-2, "preconditioner": optax_muon.equilibrate()},
    ),
    "dual_norm": Recipe(_dual_norm, {"learning_rate": 1e-2}),
    "muon_hyperball": Recipe(optax_muon.muon_hyperball, {"learning_rate": 1e-2}),
    "muon_clip": Recipe(
        _clipped,
        {"learning_rate": 1e-2, "tau": optax.linear_schedule(100.0, 50.0, 4)},
        attention,
    ),
    # The last of three steps sees a basis that QR has followed.
    "soap_muon": Recipe(
        optax_muon.soap_muon,
        {"learning_rate": 1e-2, "frequency": 1},
        static_args=("frequency",),
        has_muon_state=False,
    ),
    **{
        name: Recipe(getattr(optax_muon, name), {"learning_rate": 1e-2}, preset=True)
        for name in (
            *("keller_jordan", "moonlight", "normuon", "deepseek_v4", "speedrun"),
        )
    },
    "scion": Recipe(optax_muon.scion, {"learning_rate": 1e-2}),
    "scale_by_dion2": Recipe(_dion2_chain, {"learning_rate": 1e-2}, matrices),
    "like_optax": Recipe(
        optax_muon.like_optax,
        {"learning_rate": 1e-2, "adaptive": True, "weight_decay": 0.1},
    ),
    "monitored": Recipe(_monitored, {"learning_rate": 1e-2}),
    "scale_by_muon": Recipe(_muon_chain, {"learning_rate": 2e-2}, matrices),
    "scale_by_shampoo": Recipe(
        _shampoo_chain, {"learning_rate": 1e-2}, matrices, has_muon_state=False
    ),
    "scale_by_shampoo_one_step": Recipe(
        _shampoo_chain,
        {"learning_rate": 1e-2, "accumulate": False},
        matrices,
        has_muon_state=False,
    ),
}

KINDS = {name: recipe for name, recipe in RECIPES.items() if not recipe.preset}

# Those that `make test` runs: for each kind of state, of step and of argument one.
NARROW = {
    *("muon", "muon_functions", "muon_adamuon", "monitored", "soap_muon", "scion"),
    *("like_optax", "scale_by_muon"),
}


def _each(recipes: Mapping[str, Recipe]) -> pytest.MarkDecorator:
    params = [
        pytest.param(recipe, id=name, marks=() if name in NARROW else pytest.mark.wide)
        for name, recipe in recipes.items()
    ]
    return pytest.mark.parametrize("recipe", params)


every_recipe = _each(RECIPES)
every_kind = _each(KINDS)


class Run(NamedTuple):
    """Steps of an optimizer: `states[k]` and `params[k]` are from before step k."""

    gradients: list[Any]
    updates: list[Any]
    states: list[Any]
    params: list[Any]


def gradients(params: Any, count: int = 3) -> list[Any]:
    """`count` gradients like `params`; only the order of leaves decides the numbers."""
    leaves, treedef = jax.tree.flatten(params)
    return [
        jax.tree.unflatten(
            treedef,
            [_normal((9, k, i), x.shape, x.dtype) for i, x in enumerate(leaves)],
        )
        for k in range(count)
    ]


def run(
    tx: optax.GradientTransformation,
    params: Any,
    grads: Sequence[Any],
    jit: bool = True,
) -> Run:
    """The steps of `tx` on the gradients `grads`."""
    update = jax.jit(tx.update) if jit else tx.update
    done = Run(list(grads), [], [tx.init(params)], [params])
    for grad in grads:
        updates, state = update(grad, done.states[-1], done.params[-1])
        done.updates.append(updates)
        done.states.append(state)
        done.params.append(optax.apply_updates(done.params[-1], updates))
    return done


def assert_close(actual: Any, expected: Any) -> None:
    """Equal trees, up to what XLA's fusions may round differently."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        largest = np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING * largest)


def assert_identical(actual: Any, expected: Any) -> None:
    """Equal trees: structure, shapes, dtypes and every bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def types(tree: Any) -> Any:
    """What decides whether jit compiles again: structure, shape, dtype, weak type."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, jax.typeof(x).weak_type), tree)


def _normal(seed: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)
