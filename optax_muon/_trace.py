"""The trace of the gradients: its state, and momentum as a part of its own."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_muon import _checks
from optax_muon._alike import check_alike
from optax_muon._layout import Layout, check_same
from optax_muon._momentum import DEBIASED, MOMENTUM_FORMS, accumulate, momentum_weights
from optax_muon._serialization import register_state
from optax_muon._sharding import ShardingLike, read_layout

Leaves = list[jax.Array]
Steps = tuple[Leaves, Leaves]
S = TypeVar("S")


# Not mappable: chex's default would make it a Mapping that unpacks to field names.
@register_state
@chex.dataclass(frozen=True, mappable_dataclass=False)
class MuonState:
    """State of `scale_by_muon`.

    Attributes:
      count: int32 scalar, the number of updates so far; schedules read it.
      momentum: the trace, a tree like the parameters.
    """

    count: Any
    momentum: Any


def find_state(opt_state: Any) -> MuonState:
    """The `MuonState` in any nesting of optax states.

    `optax.tree.get` does not look into dataclasses: it returns None for their fields.

    Raises:
      ValueError: there is none, or more than one.

    >>> from optax_muon import scale_by_muon
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), scale_by_muon())
    >>> find_state(tx.init({"kernel": jnp.ones((2, 3))})).momentum["kernel"].shape
    (2, 3)
    """
    remedy = "pass the part (for optax.partition, of `inner_states`) that holds it"
    return the_only(MuonState, opt_state, remedy)


def the_only(kind: type[S], opt_state: Any, remedy: str) -> S:
    """The one state of a kind in the state of a chain.

    Raises:
      ValueError: there is none, or more than one; with what to do.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
    found = [leaf for leaf in leaves if isinstance(leaf, kind)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state holds {len(found)} {kind.__name__}, expected exactly one; "
            f"{remedy}."
        )
    return found[0]


def accumulate_momentum(
    momentum: _checks.ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = True,
    momentum_form: str = "ema",
    momentum_dtype: Any = None,
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """The first stage of `scale_by_muon` alone: gradients to directions.

    For chains with a part between momentum and `orthogonalize_updates`, such as
    `equilibrate`; without one, `scale_by_muon` is the same and takes less memory. It
    takes leaves of any rank.

    Args:
      momentum, nesterov, momentum_form, momentum_dtype: as in `scale_by_muon`.
      sharding: likewise; the trace is laid out so.

    Returns:
      A transformation whose state is a `MuonState`. Directions are at least float32,
      whatever the gradients are: what follows should not see rounded ones.

    Raises:
      ValueError, TypeError: bad arguments; gradients unlike the state.

    >>> tx = optax.chain(accumulate_momentum(0.9), optax.scale_by_sign())
    >>> g = jnp.array([2.0, -3.0])
    >>> print(tx.update(g, tx.init(g))[0])
    [ 1. -1.]
    """
    check_momentum(momentum, nesterov, momentum_form)
    stored_dtype = _checks.float_dtype("momentum_dtype", momentum_dtype)

    def placed(tree: Any) -> tuple[Layout, None]:
        return read_layout(tree, sharding, "accumulate_momentum"), None

    def step(gradients: Leaves, traces: Leaves, count: Any, *_: Any) -> Steps:
        mu = at_count(momentum, count)
        return _accumulate(
            gradients,
            traces,
            (mu, 1 - mu),
            optax.safe_increment(count),
            form=momentum_form,
            nesterov=nesterov,
        )

    return with_trace("accumulate_momentum", placed, step, sharding, stored_dtype)


@partial(jax.jit, static_argnames=("form", "nesterov"))
def _accumulate(
    gradients: Leaves,
    traces: Leaves,
    mu_and_rest: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike],
    count: jax.Array,
    *,
    form: str,
    nesterov: bool,
) -> Steps:
    weights = momentum_weights(*mu_and_rest, form, count)
    new = [
        accumulate(g, m, weights, nesterov=nesterov)
        for g, m in zip(gradients, traces, strict=True)
    ]
    return [direction for _, direction in new], [trace for trace, _ in new]


def check_momentum(
    momentum: _checks.ScalarOrSchedule, nesterov: bool, momentum_form: str
) -> None:
    """Raise unless the arguments of a momentum are what they must be."""
    _checks.check_scalar("momentum", momentum, low=0.0, below=1.0)
    _checks.check_bool("nesterov", nesterov)
    _checks.check_choice("momentum_form", momentum_form, MOMENTUM_FORMS)
    if momentum_form == DEBIASED and callable(momentum):
        raise ValueError(
            f"momentum={momentum!r} is a schedule, but momentum_form={DEBIASED!r} "
            "divides by 1 - mu^t, which holds for one mu at all steps; pass a number, "
            "or momentum_form='ema'."
        )


def at_count(value: _checks.ScalarOrSchedule, count: Any) -> Any:
    """A schedule's value after `count` updates; anything else is itself."""
    return value(count) if callable(value) else value


def with_trace(
    name: str,
    placed: Callable[[Any], tuple[Layout, Any]],
    step: Callable[..., Steps],
    sharding: ShardingLike,
    dtype: np.dtype | None,
) -> optax.GradientTransformation:
    """A transformation whose state is a `MuonState`.

    Args:
      name: of the transformation, for messages.
      placed: a tree -> its layout, and whatever else `step` needs to know of it.
      step: (gradients, traces, count, layout, the rest) -> steps and new traces, as
        lists of leaves; count is that of the updates before it.
      sharding: the user's argument.
      dtype: of the traces; None keeps each parameter's own.
    """

    def init(params: Any) -> Any:
        layout, _ = placed(params)
        zeros = optax.tree.zeros_like(params, dtype=dtype)
        leaves, treedef = jax.tree.flatten(zeros)
        return MuonState(
            count=jnp.zeros([], jnp.int32),
            momentum=jax.tree.unflatten(treedef, layout.constrain(leaves)),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        check_alike(name, updates, state.momentum)
        layout, rest = placed(updates)
        check_same_layout(name, updates, layout, state, sharding)
        gradients, treedef = jax.tree.flatten(updates)
        traces, trace_treedef = jax.tree.flatten(state.momentum)
        steps, traces = step(gradients, traces, state.count, layout, rest)
        return jax.tree.unflatten(treedef, steps), MuonState(
            count=optax.safe_increment(state.count),
            momentum=jax.tree.unflatten(trace_treedef, traces),
        )

    return optax.GradientTransformation(init, update)


def check_same_layout(
    transformation: str,
    updates: Any,
    layout: Layout,
    state: Any,
    sharding: ShardingLike,
) -> None:
    """Raise unless gradients lie on the mesh as the trace does."""
    stored = read_layout(state.momentum, sharding, transformation)
    check_same(transformation, updates, layout, stored)
