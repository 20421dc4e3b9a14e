"""Steps in norm balls, a norm for every kind of leaf: Scion, which needs no Adam."""

import dataclasses
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_muon import _checks
from optax_muon._combinators import Asking, unmet
from optax_muon._enclosing import enclosing_matrix_axes
from optax_muon._functions import OrthogonalizerLike
from optax_muon._matrix_axes import MatrixAxes, Path, UndecidedLeafError, path_name
from optax_muon._norms import nonzero
from optax_muon._orthogonalize import orthogonalize_updates
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._placement import whole_leaves
from optax_muon._resolution import as_rule
from optax_muon._rules import Rule, flax_matrix_axes, flax_role
from optax_muon._scaling import scale_by_shape
from optax_muon._sharding import ShardingLike
from optax_muon._statistics import Matrices, on_matrices


def _sign(x: jax.Array, matrices: Matrices) -> jax.Array:
    """1 -> inf norm: entries of 1 / fan_in."""
    return jnp.sign(x) / matrices.given(lambda fan_in, fan_out: fan_in)


def _column(x: jax.Array, matrices: Matrices) -> jax.Array:
    """1 -> RMS norm: what each input adds to the outputs has RMS 1."""
    rms = matrices.norm_over_outputs(x) / matrices.given(
        lambda fan_in, fan_out: math.sqrt(fan_out)
    )
    return x / nonzero(rms)


def _row(x: jax.Array, matrices: Matrices) -> jax.Array:
    """RMS -> inf norm: each output is at most 1 for inputs of RMS 1."""
    norms = matrices.norm_over_inputs(x) * matrices.given(
        lambda fan_in, fan_out: math.sqrt(fan_in)
    )
    return x / nonzero(norms)


_BY_LEAF: dict[str, Callable[[jax.Array, Matrices], jax.Array]] = {
    "sign": _sign,
    "column": _column,
    "row": _row,
}
NORMS = ("spectral", *_BY_LEAF)


@dataclasses.dataclass(frozen=True, repr=False, init=False)
class NormBall(MatrixAxes):
    """The norm, and the radius in it, of a leaf's steps; and its matrix axes.

    Attributes:
      norm: of a matrix W that takes inputs to outputs, and its step L(D), which has
        the largest inner product with D (arXiv 2502.07529, tables 2 to 4):
        "spectral", RMS to RMS: sqrt(out / in) polar(D), for hidden matrices (the paper
        divides a convolution's by k once more, for a window of k x k);
        "sign", 1 to inf, over in: sign(D) / in, for output heads, and tied embeddings;
        "column", 1 to RMS: each input's outputs scaled to RMS 1, for one-hot inputs
        (embeddings [tokens, features]), and for biases as matrices of one input;
        "row", RMS to inf: each output neuron's inputs scaled to norm 1 / sqrt(in).
      radius: what L is multiplied by; positive.

    >>> NormBall("sign", radius=3000.0, fan_in=0, fan_out=1)
    NormBall('sign', radius=3000.0, fan_in=(0,), fan_out=(1,))
    """

    norm: str = "spectral"
    radius: float = 1.0

    # The norm comes first, so that it reads as what it is.
    def __init__(
        self,
        norm: str = "spectral",
        radius: float = 1.0,
        *,
        fan_in: int | tuple[int, ...] = 0,
        fan_out: int | tuple[int, ...] = 1,
        fan_in_parts: tuple[int, ...] = (),
        fan_out_parts: tuple[int, ...] = (),
    ) -> None:
        _checks.check_choice("norm", norm, NORMS)
        _checks.check_scalar("radius", radius)
        if not isinstance(radius, (int, float, np.number)) or not radius > 0:
            raise ValueError(f"radius={radius!r} must be a positive number.")
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "radius", float(radius))
        axes = MatrixAxes(
            fan_in, fan_out, fan_in_parts=fan_in_parts, fan_out_parts=fan_out_parts
        )
        for field in dataclasses.fields(axes):
            object.__setattr__(self, field.name, getattr(axes, field.name))

    def __repr__(self) -> str:
        axes = repr(self.axes).removeprefix("MatrixAxes(")
        return f"NormBall({self.norm!r}, radius={self.radius}, {axes}"

    @property
    def axes(self) -> MatrixAxes:
        """The matrix axes alone."""
        names = [field.name for field in dataclasses.fields(MatrixAxes)]
        return MatrixAxes(**{name: getattr(self, name) for name in names})


def flax_norm_balls(
    *,
    hidden: float = 50.0,
    embedding: float = 50.0,
    head: float = 3000.0,
    vector: float = 1.0,
    tied: bool = False,
    inner: Rule = flax_matrix_axes,
) -> Callable[[Path, Any], NormBall]:
    """The default rule of `scale_by_lmo`, with its radii.

    Matrices that `inner` gives axes to take "spectral" steps. Of the other leaves, by
    Flax's names, embeddings take "column" steps, heads "sign" steps, and biases, norm
    scales and other vectors steps of RMS 1: the paper's choice for one-hot inputs
    (arXiv 2502.07529, recommendation 3.1).

    Args:
      hidden, head: radii. 50 and 3000 are those of the authors' nanoGPT, whose
        embedding is tied.
      embedding, vector: radii for which the paper has no figures: ours. Norm scales
        begin at 1, on the sphere of radius 1.
      tied: whether the embedding [tokens, features] is the head as well; it then takes
        "sign" steps of the head's radius, features being its inputs. Embeddings of
        positions are not.
      inner: the rule for hidden matrices. For layers stacked by `nn.scan` wrap the
        result: `stacked("layers", inner=flax_norm_balls())`.

    Returns:
      A rule (path, leaf) -> NormBall, which raises `UndecidedLeafError` for other
      leaves, such as depthwise convolutions.

    >>> path = (jax.tree_util.DictKey("up"), jax.tree_util.DictKey("bias"))
    >>> flax_norm_balls()(path, jax.ShapeDtypeStruct((8,), "float32"))
    NormBall('column', radius=1.0, fan_in=(), fan_out=(0,))
    """
    return _FlaxNormBalls(hidden, embedding, head, vector, tied, inner)


@dataclasses.dataclass(frozen=True, eq=False)
class _FlaxNormBalls(Asking):
    """What `flax_norm_balls` returns."""

    hidden: float
    embedding: float
    head: float
    vector: float
    tied: bool
    inner: Rule

    def __call__(self, path: Path, leaf: Any) -> NormBall:
        rank, role = len(leaf.shape), flax_role(path)
        axes = self.inner(path, leaf)
        if axes is not None:
            sides = {f.name: getattr(axes, f.name) for f in dataclasses.fields(axes)}
            return NormBall("spectral", self.hidden, **sides)
        if role == "vector" or rank < 2:
            outputs = tuple(range(rank))
            return NormBall("column", self.vector, fan_in=(), fan_out=outputs)
        inputs = tuple(range(rank - 1))
        if role == "embedding" and self.tied:
            return NormBall("sign", self.head, fan_in=-1, fan_out=inputs)
        if role in ("embedding", "position"):
            return NormBall("column", self.embedding, fan_in=inputs, fan_out=-1)
        if role == "head" and rank == 2:
            return NormBall("sign", self.head, fan_in=0, fan_out=1)
        raise UndecidedLeafError("no embedding, head or vector by its names")


def scale_by_lmo(
    norm_balls: Any = None,
    *,
    orthogonalizer: OrthogonalizerLike = NewtonSchulz(),
    sharding: ShardingLike = None,
) -> optax.GradientTransformation:
    """Replace each leaf by the step in a norm ball that its direction points to.

    The linear minimisation oracle of Scion (Pethick et al., arXiv 2502.07529), with
    the gradient's sign: radius L(D), L being that of the leaf's `NormBall`. Every leaf
    takes such a step, so there is nothing for Adam to do. Zeros give zeros.

    Args:
      norm_balls: a rule (path, leaf) -> NormBall, a tree (or tree prefix) of NormBall,
        or None for `flax_norm_balls()`; within `route`, of its `matrix_axes`.
      orthogonalizer, sharding: as in `scale_by_muon`.

    Returns:
      A transformation without state; updates keep shape and dtype.

    Raises:
      ValueError: one error that lists every leaf without a NormBall.

    >>> tx = scale_by_lmo(NormBall("sign", radius=2.0))
    >>> x = jnp.array([[3.0, -0.1], [0.0, 1.0]])
    >>> print(tx.update(x, tx.init(x))[0])
    [[ 1. -1.]
     [ 0.  1.]]
    """
    if norm_balls is flax_norm_balls:
        raise TypeError(
            "norm_balls=flax_norm_balls makes rules; pass flax_norm_balls()."
        )

    def steps(updates: Any) -> Any:
        _, whole = whole_leaves(updates, sharding, "scale_by_lmo")
        rule = as_rule(whole, norm_balls, "norm_balls", NormBall)
        if norm_balls is None:
            rule = flax_norm_balls(inner=as_rule(whole, enclosing_matrix_axes(None)))
        balls = _balls(rule, whole)
        axes = jax.tree.map(lambda ball: ball.axes, balls)
        # Parts by name: partition orders them by it. None of them has a state.
        parts: dict[Hashable, optax.GradientTransformation] = {
            name: on_matrices("scale_by_lmo", step, axes, sharding)
            for name, step in _BY_LEAF.items()
        }
        parts["spectral"] = optax.chain(
            orthogonalize_updates(orthogonalizer, matrix_axes=axes, sharding=sharding),
            scale_by_shape("mup", axes, sharding),
        )
        tx = optax.partition(parts, jax.tree.map(lambda ball: ball.norm, balls))
        directions, _ = tx.update(updates, tx.init(updates))
        return jax.tree.map(lambda ball, x: ball.radius * x, balls, directions)

    def init(params: Any) -> Any:
        jax.eval_shape(steps, params)  # for its errors
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return steps(updates), state

    return optax.GradientTransformation(init, update)


def _balls(rule: Rule, tree: Any) -> Any:
    """A tree of `NormBall`, or one error for all leaves that have none."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    balls, failures = [], []
    for path, leaf in flat:
        try:
            ball = rule(path, leaf)
            if not isinstance(ball, NormBall):
                raise UndecidedLeafError(f"norm_balls gave {ball!r}")
            ball.axes.view(leaf.shape)
            balls.append(ball)
        except UndecidedLeafError as error:
            name = path_name(path)
            failures.append(f"  {name}  {leaf.shape} {leaf.dtype}: {error}")
    no_match = unmet("norm_balls", rule, tree)
    if failures:
        raise ValueError(
            "scale_by_lmo needs a NormBall for every leaf, but has none for these:\n"
            + "\n".join(failures)
            + "\nPass norm_balls=, a rule (path, leaf) -> NormBall such as "
            "optax_muon.flax_norm_balls() or optax_muon.stacked('layers', "
            "inner=optax_muon.flax_norm_balls()), or a tree of NormBall." + no_match
        )
    if no_match:
        raise ValueError(f"scale_by_lmo: {no_match.strip()}")
    return jax.tree.unflatten(treedef, balls)
