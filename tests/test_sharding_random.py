"""Random trees on random meshes, sharded at random: the values of one device."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import MatrixAxes, NewtonSchulz, scale_by_muon

MESHES = ((8,), (4, 2), (2, 2, 2))
NAMES = ("a", "b", "c")
# Two steps whose slope at zero is 2.25: rounding hardly grows.
CUBIC = NewtonSchulz("cubic", steps=2)


@st.composite
def leaves(draw, sizes):
    """A shape, its matrix axes, and a spec that fits it."""
    rank = draw(st.integers(2, 4))
    order = draw(st.permutations(range(rank)))
    fan_in = draw(st.integers(1, rank - 1))
    fan_out = draw(st.integers(1, rank - fan_in))
    axes = MatrixAxes(tuple(order[:fan_in]), tuple(order[fan_in : fan_in + fan_out]))
    placed = [[] for _ in range(rank)]
    for name in draw(st.permutations(NAMES[: len(sizes)])):
        place = draw(st.integers(-1, rank - 1))  # -1: copies
        if place >= 0:
            placed[place].append(name)
    shape = tuple(
        int(np.prod([sizes[NAMES.index(name)] for name in names]))
        * draw(st.integers(1, 3))
        for names in placed
    )
    return shape, axes, P(*(tuple(names) or None for names in placed))


@st.composite
def cases(draw):
    """A mesh's sizes, whether its axes are Explicit, and one to four leaves."""
    sizes = draw(st.sampled_from(MESHES))
    return (
        sizes,
        draw(st.booleans()),
        draw(st.lists(leaves(sizes), min_size=1, max_size=4)),
    )


@settings(max_examples=5, deadline=None, derandomize=True)
@given(cases())
def test_equal_to_one_device(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases())
def test_a_hundred_equal_to_one_device(case):
    check(case)


def check(case):
    """That its update is the one that a single device makes."""
    sizes, explicit, found = case
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.make_mesh(sizes, NAMES[: len(sizes)], axis_types=(kind,) * len(sizes))
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=shape).astype(np.float32) for shape, *_ in found]
    axes = [axes for _, axes, _ in found]
    shardings = [NamedSharding(mesh, spec) for *_, spec in found]
    alone = scale_by_muon(orthogonalizer=CUBIC, matrix_axes=axes)
    expected, _ = alone.update(gradients, alone.init(gradients))

    tx = scale_by_muon(
        orthogonalizer=CUBIC,
        matrix_axes=axes,
        sharding=None if explicit else shardings,
    )
    placed = jax.tree.map(jax.device_put, gradients, shardings)
    with jax.set_mesh(mesh):
        steps, _ = jax.jit(lambda g: tx.update(g, tx.init(g)))(placed)
    for step, one, sharding in zip(steps, expected, shardings, strict=True):
        assert step.sharding.is_equivalent_to(sharding, step.ndim)
        # Sums in other orders, of entries below 1.
        np.testing.assert_allclose(step, one, atol=1e-6)
        assert np.isfinite(one).all()
