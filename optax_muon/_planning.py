"""plan(): which leaf gets what, and what that costs, before anything is trained."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_muon import _checks
from optax_muon._casts import at_least_float32
from optax_muon._enclosing import told_nothing
from optax_muon._functions import OrthogonalizerLike, as_orthogonalizer
from optax_muon._layout import Layout
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._placement import PlacedView, place, whole_leaves
from optax_muon._plan import Plan
from optax_muon._plan_rows import PlanBucket, PlanLeaf
from optax_muon._polar_factors import division_of, forms_on, traffic, work_on
from optax_muon._resolution import (
    ADAM,
    MUON,
    MatrixAxesLike,
    MatrixRoute,
    Route,
    routes,
)
from optax_muon._scaling import ScaleRule, as_scale_rule, scale_factor
from optax_muon._sharding import ShardingLike
from optax_muon._stacking import Stack, stacks
from optax_muon._training_flops import Tokens, training_flops


def plan(
    params: Any,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
    *,
    scale: str | ScaleRule | None = "adam_rms",
    orthogonalizer: OrthogonalizerLike = NewtonSchulz(),
    platform: str | None = None,
    momentum_dtype: Any = None,
    adam_dtype: Any = None,
    tokens: Tokens = None,
) -> Plan:
    """How `muon` treats each leaf of `params`, and at what cost: before you train.

    Args:
      params: arrays, or anything with shape and dtype (from `jax.eval_shape`, say).
      matrix_axes, sharding, scale, orthogonalizer, momentum_dtype, adam_dtype: as given
        to `muon`.
      platform: "cpu", "gpu" or "tpu", on which forms, FLOPs and the devices' shares
        depend; None means this process's default.
      tokens: how many of them a step trains on, over all devices of the mesh (without
        `sharding`, on this one): whatever each matrix is multiplied with once in a
        forward pass, so examples for an MLP, and positions for a convolution. Or a
        rule (path, leaf) -> float that says so for each of Muon's leaves: fewer
        positions behind a stride; of E experts that see k each, tokens * k / E.

    Returns:
      A `Plan`: `print` it, show it in a notebook, or read its fields. With `tokens`,
      `training_flops` takes six for every parameter of Muon and token, the rule of
      Kaplan et al. for a transformer's hidden matrices. Embeddings are looked up, not
      multiplied; heads and attention's scores are, but they are left out as there: the
      real share of a step is below `overhead`.

    Raises:
      ValueError: as `muon(...).init`: lists every leaf that no rule decides, or whose
        sharding does not fit; tokens that are no positive number.
      TypeError: other arguments of another type.

    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((64, 256)), "bias": jnp.ones(256)}}
    >>> print(plan(params, tokens=4096))
    path          shape      optimizer  matrix    batch  scale  share
    ------------  ---------  ---------  --------  -----  -----  -----
    dense/bias    (256,)     adamw      -         -      -       1.5%
    dense/kernel  (64, 256)  muon       64 x 256  1      3.2    98.5%
    2 leaves, 16,640 parameters
      muon: 1 leaf, 98.5% of the parameters, 65.5 kB of state
      adamw: 1 leaf, 1.5% of the parameters, 2.05 kB of state
    <BLANKLINE>
    stack                 form                              computes
    --------------------  ------------------------------  ----------
    1 x 64 x 256 float32  gram in float32, restarts (1,)  15.7 MFLOP
    a step: 15.7 MFLOP of products, 3.9% of about 403 MFLOP in forward and backward

    References:
      Kaplan et al., Scaling Laws for Neural Language Models, arXiv 2001.08361, 2020.
      Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
    """
    configuration = as_orthogonalizer(orthogonalizer)
    rule = as_scale_rule(scale)
    platform = jax.default_backend() if platform is None else platform
    _checks.check_choice("platform", platform, ("cpu", "gpu", "tpu"))
    dtypes = (
        _checks.float_dtype("momentum_dtype", momentum_dtype),
        _checks.float_dtype("adam_dtype", adam_dtype),
    )
    with told_nothing():
        layout, whole = whole_leaves(jax.tree.map(_planned, params), sharding, "plan")
        decided = routes(whole, matrix_axes)
    training = training_flops(whole, decided, tokens)
    return Plan(
        leaves=_leaves(decided, layout, rule, dtypes),
        buckets=_buckets(decided, layout, configuration, platform),
        platform=platform,
        devices=layout.devices,
        training_flops=None if training is None else training / layout.devices,
    )


def _planned(leaf: Any) -> Any:
    """The leaf wherever it lies: a plan may be of a mesh that it is to be put on."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _leaves(
    decided: Sequence[Route],
    layout: Layout,
    rule: ScaleRule | None,
    dtypes: tuple[np.dtype | None, np.dtype | None],
) -> tuple[PlanLeaf, ...]:
    total = sum(math.prod(route.shape) for route in decided)
    found = []
    for route, spec in zip(decided, layout.specs, strict=True):
        here, size = (
            math.prod(shape) for shape in (layout.local(route.shape, spec), route.shape)
        )
        each = sum(dtype.itemsize for dtype in _moments(route, *dtypes))
        leaf = PlanLeaf(
            route.path,
            route.shape,
            route.dtype,
            optimizer=ADAM,
            matrix=None,
            batch=None,
            scale=None,
            share=size / max(total, 1),
            state_bytes=here * each,
            total_state_bytes=size * each,
        )
        found.append(_as_matrices(leaf, route, rule))
    return tuple(found)


def _as_matrices(leaf: PlanLeaf, route: Route, rule: ScaleRule | None) -> PlanLeaf:
    """The leaf as Muon sees it, if it does."""
    view = route.view
    if view is None:
        return leaf
    scales = tuple(scale_factor(rule, *fans) for fans in view.fans_of_parts)
    return dataclasses.replace(
        leaf,
        optimizer=MUON,
        matrix=view.fans,
        batch=view.matrices[0],
        scale=scales if view.parts else scales[0],
        parts=view.fans_of_parts if view.parts else (),
    )


def _moments(
    route: Route, momentum: np.dtype | None, adam: np.dtype | None
) -> tuple[np.dtype, ...]:
    """The dtypes of what is kept of a leaf: as `muon` documents them."""
    if route.view is not None:
        return (momentum or route.dtype,)
    is_half = route.dtype == jnp.float16
    second = at_least_float32(route.dtype) if is_half else route.dtype
    return adam or second, second


def _buckets(
    decided: Sequence[Route],
    layout: Layout,
    orthogonalizer: Orthogonalizer,
    platform: str,
) -> tuple[PlanBucket, ...]:
    matrices = [
        (MatrixRoute(route.path, route.shape, route.dtype, route.view), spec)
        for route, spec in zip(decided, layout.specs, strict=True)
        if route.view is not None
    ]
    taken, specs = [route for route, _ in matrices], [spec for _, spec in matrices]
    views = place(taken, specs, layout, "plan")
    grouped = stacks(
        views,
        # Momentum's directions are at least float32.
        [at_least_float32(route.dtype) for route in taken],
        either_orientation=orthogonalizer.either_orientation,
    )
    paths = [route.path for route in taken]
    return tuple(
        _bucket(stack, views, paths, orthogonalizer, platform) for stack in grouped
    )


def _bucket(
    stack: Stack,
    views: Sequence[PlacedView],
    paths: list[str],
    orthogonalizer: Orthogonalizer,
    platform: str,
) -> PlanBucket:
    batch, *matrix = stack.shape
    division = division_of(stack, orthogonalizer, platform)
    own = -(-batch // division.stack.ways)
    work = work_on(stack, division, orthogonalizer, platform)
    return PlanBucket(
        matrix=(matrix[0], matrix[1]),
        dtype=stack.dtype,
        count=sum(views[i].whole.matrices[0] for i in stack.members),
        paths=tuple(paths[i] for i in stack.members),
        forms=forms_on(stack, division, orthogonalizer, platform),
        division=division,
        own=own,
        flops=own * work.flops if work.is_counted else None,
        bytes_sent=traffic(stack, division, orthogonalizer, platform),
    )
