"""What a step is measured by: numbers of what goes in and comes out, by matrix."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_muon._casts import widen
from optax_muon._linear_maps import per_matrix
from optax_muon._norms import nonzero
from optax_muon._singular_values import orthogonality_error, spectrum_of
from optax_muon._statistics import Matrices

UPDATE, GRADIENT, PREVIOUS = "update", "gradient", "previous"
MOMENTUM, WEIGHT = "momentum", "weight"
"""What is measured: trees like the parameters, or leaves of them."""

METRICS = {
    "size": ("update_rms", "update_nonfinite", "gradient_nonfinite"),
    "band": ("update_sigma_min", "update_sigma_max", "update_orthogonality_error"),
    "cosine": ("update_cosine",),
    MOMENTUM: ("momentum_spectral_norm", "momentum_stable_rank"),
    WEIGHT: ("weight_spectral_norm", "weight_stable_rank"),
}
"""Names of the metrics, by the groups that are asked for and kept together."""

SIZE, BAND, COSINE, *_ = METRICS

# What one stack may take on top of the optimizer's own memory; larger leaves are alone.
STACK_BYTES = 2**28

Sources = Mapping[str, jax.Array]
"""One leaf of each of the trees, by the names above."""

Values = tuple[jax.Array, ...]
"""Of the metrics of a group, each [*batch] or [*batch, parts]."""


@dataclasses.dataclass(frozen=True)
class Watched:
    """What is measured of one leaf; static.

    Attributes:
      matrices: of the leaf.
      groups: names of groups of `METRICS`.
    """

    matrices: Matrices
    groups: tuple[str, ...]


def measure(
    every: Sequence[Watched], leaves: Sequence[Sources]
) -> list[dict[str, jax.Array]]:
    """The groups of each leaf: [*batch, metrics], or [*batch, parts, metrics].

    Leaves alike are measured together: the program grows with the number of shapes.
    """
    found: dict[int, dict[str, jax.Array]] = {}
    for places in _stacks(every, leaves):
        stack = jax.tree.map(lambda *xs: jnp.stack(xs), *(leaves[i] for i in places))
        groups = jax.vmap(partial(_measured, every[places[0]]))(stack)
        for row, place in enumerate(places):
            found[place] = {group: values[row] for group, values in groups.items()}
    return [found[place] for place in range(len(every))]


def _stacks(every: Sequence[Watched], leaves: Sequence[Sources]) -> list[list[int]]:
    """The places of leaves of one type, as many as fit under the cap."""
    groups: dict[Any, list[list[int]]] = {}
    for place, (one, sources) in enumerate(zip(every, leaves, strict=True)):
        types = tuple((name, jax.typeof(x)) for name, x in sorted(sources.items()))
        stacks = groups.setdefault((one, types), [[]])
        size = sum(x.nbytes for x in sources.values())
        if size * (len(stacks[-1]) + 1) > STACK_BYTES and stacks[-1]:
            stacks.append([])
        stacks[-1].append(place)
    return [stack for stacks in groups.values() for stack in stacks]


def _measured(one: Watched, x: Sources) -> dict[str, jax.Array]:
    """The groups of a leaf."""
    found = {group: _METHODS[group](one.matrices, x) for group in one.groups}
    return {group: jnp.stack(values, -1) for group, values in found.items()}


def nothing_yet(one: Watched, leaf: jax.Array) -> dict[str, jax.Array]:
    """Zeros of the shapes and types that the leaf's groups will have."""

    def zero() -> jax.Array:
        x = widen(jnp.zeros_like(leaf))
        return one.matrices.without_axes(one.matrices.over_all(x))

    return {
        group: jnp.stack([zero()] * len(METRICS[group]), -1) for group in one.groups
    }


def _size(matrices: Matrices, x: Sources) -> Values:
    entries = per_matrix(matrices, lambda fan_in, fan_out: fan_in * fan_out)

    def nonfinite(x: jax.Array) -> jax.Array:
        bad = (~jnp.isfinite(x)).astype(jnp.float32)
        return matrices.without_axes(matrices.over_all(bad)) / entries

    norm = matrices.without_axes(matrices.norm(widen(x[UPDATE])))
    return norm / np.sqrt(entries), nonfinite(x[UPDATE]), nonfinite(x[GRADIENT])


def _band(matrices: Matrices, x: Sources) -> Values:
    spectrum = spectrum_of(x[UPDATE], matrices)
    error = orthogonality_error(x[UPDATE], matrices, spectrum)
    return spectrum.smallest, spectrum.largest, error


def _cosine(matrices: Matrices, sources: Sources) -> Values:
    x, y = (
        wide / nonzero(matrices.norm(wide))
        for wide in (widen(sources[UPDATE]), widen(sources[PREVIOUS]))
    )
    return (matrices.without_axes(matrices.over_all(x * y)),)


def _norm_and_rank(matrices: Matrices, x: jax.Array) -> Values:
    """The spectral norm and the stable rank."""
    rms, _, largest = spectrum_of(x, matrices)
    # The squares of n singular values over their RMS add up to n.
    squared = per_matrix(matrices, min) / nonzero(largest) ** 2
    return rms * largest, jnp.where(largest == 0, 0, squared)


_METHODS: dict[str, Callable[[Matrices, Sources], Values]] = {
    SIZE: _size,
    BAND: _band,
    COSINE: _cosine,
    MOMENTUM: lambda matrices, x: _norm_and_rank(matrices, x[MOMENTUM]),
    WEIGHT: lambda matrices, x: _norm_and_rank(matrices, x[WEIGHT]),
}
