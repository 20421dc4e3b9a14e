"""Combinators: rules of other rules, for the leaves whose paths match a pattern.

They take rules of any kind: for `matrix_axes`, for `scale_by_lmo` and for `qk_clip`. A
pattern that matches no parameter is an error wherever rules are applied (`unmet`).
"""

import abc
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from optax_muon._by_path import names_of
from optax_muon._matrix_axes import (
    MatrixAxes,
    Path,
    Stackable,
    UndecidedLeafError,
    path_name,
)
from optax_muon._rules import Rule, flax_matrix_axes

AnyRule = Callable[[Path, Any], Any]

_NO_LEAF: Any = object()


def stacked(pattern: str, axis: int = 0, inner: AnyRule = flax_matrix_axes) -> AnyRule:
    """A rule for layers stacked along `axis` by `nn.scan`, `nnx.scan` or `vmap`.

    Under paths that match, `inner` sees the leaf without that axis, which becomes a
    batch axis: every layer stays a matrix of its own. Other leaves go to `inner` as
    they are. Always name stacked layers: some of their leaves look like others, as a
    stacked 2-D convolution like a 3-D one. A leaf that is a matrix as a whole, and a
    vector without that axis, is undecided: its layers may be separate ones, and stacked
    vectors whose names do not say so are for `inner` to send to AdamW.

    Args:
      pattern: regular expression for one whole path component, or several joined
        by "/": "layers", "scan_.*", "decoder/layers". One that matches no parameter
        is an error where the rule is applied.
      axis: the stacked axis in the leaf; negative ones count from the end.
      inner: the rule for one layer: one for `matrix_axes`, one for `scale_by_lmo`, or
        one for `qk_clip`.

    Returns:
      A rule of the same kind, or an `inner` of another.

    >>> import optax_muon
    >>> shape = jax.ShapeDtypeStruct((12, 64, 256), "float32")
    >>> print(optax_muon.plan({"layers": {"up": {"kernel": shape}}},
    ...       optax_muon.stacked("layers")).leaves[0].matrix)
    (64, 256)
    """
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TypeError(f"axis={axis!r} must be an int, the stacked axis of a leaf.")
    return _Stacked(pattern, inner, axis)


def fused(
    pattern: str,
    parts: tuple[int, ...],
    side: str = "fan_out",
    inner: Rule = flax_matrix_axes,
) -> Rule:
    """A rule for matrices side by side in one leaf, each to be treated on its own.

    Query, key and value in one kernel, with grouped queries or without; gate and up.
    Updates are those of the parts as separate leaves.

    Args:
      pattern: regular expression for one whole path component, or several joined
        by "/". One that matches no parameter is an error where the rule is applied.
      parts: the lengths of the parts along the (merged) fan-in or fan-out, in the order
        in which they lie there.
      side: "fan_out" or "fan_in", the side along which they lie.
      inner: the rule for the leaf as one matrix; leaves that it sends to AdamW, such as
        biases, stay there.

    Returns:
      A rule, to be passed as `matrix_axes`, or as `inner` of another. Parts of an
      `optax.chain` that take `matrix_axes` must all be told the same; those of `muon`
      and `route` take theirs.

    >>> import optax_muon
    >>> shape = jax.ShapeDtypeStruct((64, 128), "float32")
    >>> print(optax_muon.plan({"qkv": {"kernel": shape}},
    ...       optax_muon.fused("qkv", (64, 32, 32))).leaves[0].parts)
    ((64, 64), (64, 32), (64, 32))
    """
    if side not in ("fan_in", "fan_out"):
        raise ValueError(f"side={side!r} is not known; pass 'fan_in' or 'fan_out'.")
    lengths = getattr(MatrixAxes(**{f"{side}_parts": parts}), f"{side}_parts")
    return _Fused(pattern, inner, f"{side}_parts", lengths)


def unmet(argument: str, rule: Any, tree: Any) -> str:
    """A line for an error, if patterns in `rule` match no path of `tree`, or "".

    An empty tree, as `optax.tree.map_params` has, meets all; and so does one with holes
    of a mask, which may be whole branches. A rule that is a function of the user's own
    hides those that it calls; one that is an `Asking` does not.
    """
    leaves = jax.tree.leaves(tree, is_leaf=_is_masked)
    if any(map(_is_masked, leaves)):
        return ""
    paths = ["/".join(names) or "(root)" for names in names_of(tree)]
    return unmet_by(argument, rule, paths)


def unmet_by(argument: str, rule: Any, paths: list[str]) -> str:
    """`unmet` for the paths of a tree."""
    found = [
        each
        for each in _combinators(rule)
        if paths and not any(each.whole.search(path) for path in paths)
    ]
    if not found:
        return ""
    near = difflib.get_close_matches(found[0].pattern, paths, n=1, cutoff=0)
    return (
        f"\n{argument} has a pattern that matches no parameter: "
        f"{', '.join(each.code for each in found)}. Patterns are regular expressions "
        f"for whole components of a path, such as those of {near[0]!r}: correct it, or "
        "leave it out. (Gradients need the leaves that init had.) A rule that is to "
        "serve several models, or parts of one (frozen layers, a filter `wrt`), is a "
        "function of your own that calls it: lambda path, leaf: rule(path, leaf)."
    )


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _combinators(rule: Any) -> "Iterator[_Combinator]":
    while isinstance(rule, Asking):
        if isinstance(rule, _Combinator):
            yield rule
        rule = rule.inner


class Asking:
    """A rule that asks another one, `inner`."""

    inner: AnyRule


@dataclasses.dataclass(frozen=True, eq=False)  # equal if the same, as functions
class _Combinator(Asking, abc.ABC):
    """What `stacked` and `fused` share: a rule of another, for paths that match.

    Attributes:
      pattern: as the user wrote it.
      inner: the other rule.
    """

    pattern: str
    inner: AnyRule

    def __post_init__(self) -> None:
        if not callable(self.inner) or isinstance(self.inner, type):
            raise TypeError(
                f"inner={self.inner!r} is no rule; pass a function (path, leaf) -> "
                "MatrixAxes | None, such as lambda path, leaf: MatrixAxes(0, 1)."
            )
        components(self.pattern)  # refuses what is no regular expression

    def __call__(self, path: Path, leaf: Any = _NO_LEAF) -> Any:
        if leaf is _NO_LEAF:
            raise TypeError(
                f"{self.code} was called without a leaf, as schedules are: name the "
                "argument that holds it, such as matrix_axes, in static_args of "
                "optax.inject_hyperparams, which takes other functions for schedules."
            )
        return self.said(path, leaf)

    @abc.abstractmethod
    def said(self, path: Path, leaf: Any) -> Any:
        """What the rule says of a leaf."""

    @property
    def code(self) -> str:
        """For messages: the call that made it, by its pattern."""
        return f"{type(self).__name__.removeprefix('_').lower()}({self.pattern!r})"

    @property
    def whole(self) -> re.Pattern[str]:
        return components(self.pattern)


@dataclasses.dataclass(frozen=True, eq=False)
class _Stacked(_Combinator):
    axis: int

    def said(self, path: Path, leaf: Any) -> Any:
        names = path_name(path)
        found = self.whole.search(names)
        if not found:
            return self.inner(path, leaf)
        index, *below = names[found.end() :].split("/")
        if below and index.isdigit():
            raise UndecidedLeafError(
                f"{self.code} matches a list of separate layers, which needs "
                "no rule of its own; where each entry is a stack, match the entries: "
                f"stacked('{self.pattern}/[0-9]+')"
            )
        rank = len(leaf.shape)
        at = self.axis + rank if self.axis < 0 else self.axis
        if not 0 <= at < rank:
            raise UndecidedLeafError(
                f"stacked({self.pattern!r}, axis={self.axis}): no such axis"
            )
        shape = leaf.shape[:at] + leaf.shape[at + 1 :]
        axes = self.inner(path, jax.ShapeDtypeStruct(shape, leaf.dtype))
        if len(shape) < 2 <= rank and _is_matrix(self.inner, path, leaf):
            raise UndecidedLeafError(
                f"rank {rank} under {self.code}: is it stacked? One layer's "
                f"would be {shape}, no matrix; let the pattern match stacked layers "
                "alone, or, if these are stacked vectors, let inner give None for it"
            )
        if not isinstance(axes, Stackable):
            return axes  # None; anything else is refused where rules are called
        return axes.stacked(at, shape)


@dataclasses.dataclass(frozen=True, eq=False)
class _Fused(_Combinator):
    argument: str  # of MatrixAxes
    lengths: tuple[int, ...]

    def said(self, path: Path, leaf: Any) -> Any:
        axes = self.inner(path, leaf)
        if not self.whole.search(path_name(path)):
            return axes
        side = self.argument.removesuffix("_parts")
        if not isinstance(axes, MatrixAxes) or not getattr(axes, side):
            return axes  # for AdamW; a bias, which has no inputs to be parted
        changes: dict[str, Any] = {self.argument: self.lengths}
        return dataclasses.replace(axes, **changes)


def _is_matrix(inner: AnyRule, path: Path, leaf: Any) -> bool:
    """Whether a rule takes the leaf for a matrix."""
    try:
        axes = inner(path, leaf)
    except UndecidedLeafError:
        return False
    return isinstance(axes, MatrixAxes) and bool(axes.fan_in and axes.fan_out)


def components(pattern: str) -> re.Pattern[str]:
    """Finds whole components of a path, joined by "/"."""
    try:
        return re.compile(f"(?:^|/)(?:{pattern})(?:/|$)")
    except re.error as error:
        raise ValueError(
            f"pattern={pattern!r} is no regular expression: {error}."
        ) from None
