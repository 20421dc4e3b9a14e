"""States of optax.contrib.muon as states of this library, and back.

Leaves are matched by their paths alone. So it does not matter whether a state is made
of optax's records or was restored as plain dictionaries and lists, nor what it lies in
(chain, MultiSteps, inject_hyperparams, variables of NNX), if that is alike.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_muon import _checks
from optax_muon._casts import widen
from optax_muon._matrix_axes import path_names
from optax_muon._resolution import ADAM, MUON
from optax_muon._trace import MuonState

Names = tuple[str, ...]

# Where optax.contrib.muon holds its MuonState, and its name for AdamW's part.
_CHAIN = ("inner_states", MUON, "inner_state")
_OPTAX_ADAM = "adam"


def from_optax_state(state: Any, like: Any, *, heavy_ball: float | None = None) -> Any:
    """A state of `optax.contrib.muon` as one of `like_optax` or `muon`, bit by bit.

    Moments, counts and whatever surrounds them are taken over; optax's coefficients are
    dropped, which are no state here. Its trace is that of `momentum_form="ema"` and
    "ema_debiased".

    Args:
      state: of `optax.contrib.muon`, or of a chain with `optax.contrib.scale_by_muon`;
        live, restored, or as the plain dictionaries and lists that Flax and Orbax
        restore where they are given no target.
      like: `tx.init(params)` of the new optimizer, or `jax.eval_shape` of it; its
        values are not read.
      heavy_ball: mu, if the new optimizer has `momentum_form="heavy_ball"`, which no
        state tells: the trace is then divided by 1 - mu.

    Returns:
      A tree like `like` with the arrays of `state`, on the devices where they are.

    Raises:
      ValueError: `state` is none of optax.contrib.muon; or lists every leaf that the
        other side lacks, or that has another shape or dtype there.

    >>> from optax_muon import like_optax
    >>> params = {"kernel": jnp.eye(4, 8), "bias": jnp.zeros(8)}
    >>> theirs, ours = optax.contrib.muon(0.01), like_optax(0.01)
    >>> updates, state = theirs.update(params, theirs.init(params), params)
    >>> state = from_optax_state(state, ours.init(params))
    >>> updates, state = ours.update(params, state, params)
    """
    factor = _factor(heavy_ball)
    stored = _leaves(state)
    name_of = _our_names("state", stored)
    named = [(name_of(path), path, leaf) for path, leaf in stored.items()]
    source = {name: (path, leaf) for name, path, leaf in named if name is not None}
    converted = _filled("from_optax_state", like, lambda path: path, source)
    return _with_traces(converted, lambda x: x / factor) if factor else converted


def to_optax_state(state: Any, like: Any, *, heavy_ball: float | None = None) -> Any:
    """A state of `like_optax` or `muon` as one of `optax.contrib.muon`, bit by bit.

    The inverse of `from_optax_state`, and equally exact. What optax has no place for,
    such as the state of a normalizer, is an error.

    Args:
      state: of `like_optax`, `muon`, or a chain with `scale_by_muon`; live or restored.
      like: `optax.contrib.muon(...).init(params)`, whose coefficients are taken over.
      heavy_ball: mu, if `state` is of `momentum_form="heavy_ball"`: the trace is then
        multiplied by 1 - mu.

    Returns:
      A tree like `like` with the arrays of `state`, on the devices where they are.

    Raises:
      ValueError: `like` is none of optax.contrib.muon; or lists leaves, as
        `from_optax_state` does.
      TypeError: `like` has no values (it comes from `jax.eval_shape`).

    >>> from optax_muon import like_optax
    >>> params = {"kernel": jnp.eye(4, 8)}
    >>> state = like_optax(0.01).init(params)
    >>> state = to_optax_state(state, optax.contrib.muon(0.01).init(params))
    >>> updates, state = optax.contrib.muon(0.01).update(params, state, params)
    """
    factor = _factor(heavy_ball)
    name_of = _our_names("like", _leaves(like))
    source = {path: (path, leaf) for path, leaf in _leaves(state).items()}
    converted = _filled("to_optax_state", like, name_of, source)
    return _with_traces(converted, lambda x: x * factor) if factor else converted


def _factor(heavy_ball: float | None) -> float | None:
    """An "ema" trace over that of "heavy_ball"."""
    if heavy_ball is None:
        return None
    _checks.check_coefficient("heavy_ball", heavy_ball)
    return 1 - heavy_ball


def _leaves(tree: Any) -> dict[Names, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_names(path): leaf for path, leaf in flat}


def _our_names(
    argument: str, leaves: Mapping[Names, Any]
) -> Callable[[Names], Names | None]:
    """A function from the names of a leaf there to those here; None: there is none."""
    parts = [
        part
        for part, last in ((path[:-1], path[-1:]) for path in leaves)
        if last == ("ns_coeffs",) and (*part, "count") in leaves
    ]
    if not parts:
        raise ValueError(
            f"{argument} holds no state of optax.contrib.muon: no leaf is called "
            "ns_coeffs. Pass optax's state (restored with its own init as the target, "
            "if in doubt), and ours for the other argument."
        )

    def name_of(path: Names) -> Names | None:
        for part in parts:
            if path[: len(part)] == part:
                return _in_muon_state(part, path[len(part) :])
        for part in parts:
            if part[-4:-1] == _CHAIN and part[-1] == "0":
                path = _in_partition(part[:-4], path)
        return path

    return name_of


def _in_muon_state(part: Names, field: Names) -> Names | None:
    if field == ("ns_coeffs",):
        return None
    return (*part, "momentum", *field[1:]) if field[0] == "mu" else part + field


def _in_partition(root: Names, path: Names) -> Names:
    """Another name for AdamW, and a place for a normalizer in the matrices' chain."""
    inside = path[len(root) :] if path[: len(root)] == root else ()
    if inside[:2] == (_CHAIN[0], _OPTAX_ADAM):
        return (*root, _CHAIN[0], ADAM, *inside[2:])
    if inside[:3] == _CHAIN and inside[3] != "0":
        return (*root, *_CHAIN, str(int(inside[3]) + 1), *inside[4:])
    return path


def _filled(
    caller: str,
    like: Any,
    name_of: Callable[[Names], Names | None],
    source: dict[Names, tuple[Names, Any]],
) -> Any:
    """`like` with the leaves that `source` has under their names here.

    Args:
      name_of: from the names of a leaf of `like` to those in `source`; None for a leaf
        that stays as it is.
      source: names in the state that is converted, and leaves.
    """
    source, leaves, failures = dict(source), [], []
    for path, leaf in _leaves(like).items():
        name = name_of(path)
        if name is None:
            leaves.append(_value(leaf))
        elif name not in source:
            failures.append(f"  {'/'.join(path)}: in `like`, but not in `state`")
        else:
            _, found = source.pop(name)
            leaves.append(found)
            if _type(found) != _type(leaf):
                failures.append(
                    f"  {'/'.join(path)}: {_type(found)} in `state`, "
                    f"{_type(leaf)} in `like`"
                )
    failures += [
        f"  {'/'.join(path)}: in `state`, but not in `like`"
        for path, _ in source.values()
    ]
    if failures:
        raise ValueError(
            f"{caller}: the two states do not fit:\n" + "\n".join(failures) + "\nThey "
            "must be of one model with the same leaves as matrices, and of optimizers "
            "with the same schedules, masks and dtypes of moments; other parts, such "
            "as a normalizer's, have no counterpart."
        )
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _type(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def _value(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(
            "like has no values, but optax's coefficients must come from it; pass "
            "optax.contrib.muon(...).init(params) itself, not its jax.eval_shape."
        )
    return leaf


def _with_traces(tree: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    """`tree`, the traces in it changed in at least float32."""

    def changed(trace: Any) -> Any:
        return jax.tree.map(lambda x: change(widen(x)).astype(x.dtype), trace)

    def of_node(node: Any) -> Any:
        if isinstance(node, MuonState):
            return dataclasses.replace(node, momentum=changed(node.momentum))
        if isinstance(node, optax.contrib.MuonState):
            return node._replace(mu=changed(node.mu))
        return node

    def is_record(node: Any) -> bool:
        return isinstance(node, (MuonState, optax.contrib.MuonState))

    if not any(map(is_record, jax.tree.leaves(tree, is_leaf=is_record))):
        raise ValueError(
            "heavy_ball tells how to scale the momentum, but like holds no MuonState "
            "that it is in; pass the state that init returns, not a dictionary of it."
        )
    return jax.tree.map(of_node, tree, is_leaf=is_record)
