"""Stacks: who shares one, how large it gets, what it costs in program and memory."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_muon import NewtonSchulz, scale_by_muon
from optax_muon._loops import in_chunks
from optax_muon._matrix_axes import MatrixAxes
from optax_muon._placement import Factor, PlacedView, Placement
from optax_muon._stacking import join, part, stacks

F32 = np.dtype("float32")


def view(*shape, fan_in=-2, fan_out=-1):
    whole = MatrixAxes(fan_in, fan_out).view(shape)
    return PlacedView(whole, whole)


def members(views, **kwargs):
    found = stacks(views, [F32] * len(views), **kwargs)
    return [(stack.shape, stack.members) for stack in found]


def test_a_cap_splits_stacks_between_leaves_and_never_a_leaf():
    views = [view(4, 8), view(8, 4), view(5, 4, 8), view(4, 8), view(3, 3)]
    assert members(views) == [((8, 4, 8), (0, 1, 2, 3)), ((1, 3, 3), (4,))]
    each = 4 * 8 * 4
    assert members(views, max_bytes=2 * each) == [
        ((2, 4, 8), (0, 1)),
        ((5, 4, 8), (2,)),
        ((1, 4, 8), (3,)),
        ((1, 3, 3), (4,)),
    ]
    one_each = [of_stack for _, of_stack in members(views, max_bytes=1)]
    assert one_each == [(0,), (1,), (2,), (3,), (4,)]


def test_a_cap_splits_where_devices_get_equal_shares():
    """6 matrices fit: 4 + 3 on 4 devices take two turns, 6 + 1 would take three."""
    cut = Placement(columns=(Factor((("x", 4),), 2),))
    whole = MatrixAxes(0, 1).view((4, 8))
    sharded = PlacedView(whole, dataclasses.replace(whole, shape=(4, 2)), cut)
    found = members([sharded] * 7, max_bytes=6 * 4 * 2 * 4)
    assert found == [((4, 4, 8), (0, 1, 2, 3)), ((3, 4, 8), (4, 5, 6))]
    # Fewer fit than there are devices.
    found = members([sharded] * 4, max_bytes=3 * 4 * 2 * 4)
    assert [shape[0] for shape, _ in found] == [3, 1]


def test_matrices_sharded_in_other_ways_have_other_stacks():
    cut = (Factor((("x", 2),), 4),)
    whole = MatrixAxes(0, 1).view((4, 8))
    by_columns, by_rows = (
        PlacedView(whole, dataclasses.replace(whole, shape=shape), placement)
        for shape, placement in (
            ((4, 4), Placement(columns=cut)),
            ((2, 8), Placement(rows=cut)),
        )
    )
    found = members([by_columns, view(4, 8), by_rows, by_columns])
    assert found == [((2, 4, 8), (0, 3)), ((1, 4, 8), (1,)), ((1, 4, 8), (2,))]


def test_squares_cut_along_either_side_share_a_stack_and_the_fewer_are_transposed():
    cut = (Factor((("x", 2),), 2),)
    whole = MatrixAxes(0, 1).view((4, 4))
    by_rows, by_columns = (
        PlacedView(whole, whole, placement)
        for placement in (Placement(rows=cut), Placement(columns=cut))
    )
    for views, turned, placement in (
        ([by_rows, by_rows, by_columns], (False, False, True), Placement(rows=cut)),
        ([by_columns, by_rows], (False, True), Placement(columns=cut)),
    ):
        [stack] = stacks(views, [F32] * len(views))
        assert stack.turned == turned
        assert stack.placement == placement
    assert len(members([by_rows, by_columns], either_orientation=False)) == 2


def test_every_leaf_comes_back_from_its_stack(rng):
    shapes = [(4, 8), (8, 4), (5, 4, 8), (2, 2, 2, 8)]
    axes = [(0, 1), (0, 1), (1, 2), ((0, 1), (2, 3))]
    views = [
        view(*s, fan_in=i, fan_out=o) for s, (i, o) in zip(shapes, axes, strict=True)
    ]
    leaves = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    numbered = dict(enumerate(leaves))
    found = stacks(views, [F32] * 4)
    joined = [join(numbered, views, stack, F32) for stack in found]
    assert [x.shape for x in joined] == [(7, 4, 8), (1, 4, 16)]
    back = {}
    for x, stack in zip(joined, found, strict=True):
        back |= part(x, views, stack)
    for i, leaf in numbered.items():
        np.testing.assert_array_equal(back[i], leaf)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_chunks_cover_every_matrix_once(rng, count):
    x = jnp.asarray(rng.normal(size=(7, 3, 4)), jnp.float32)
    sizes = []

    def function(x):
        sizes.append(len(x))
        return x - x.mean(axis=(-2, -1), keepdims=True)

    expected = x - x.mean(axis=(-2, -1), keepdims=True)
    chunked = in_chunks(function, x, count * 3 * 4 * 4)  # bytes
    np.testing.assert_allclose(chunked, expected, rtol=1e-6)
    assert max(sizes) == min(count, 7)
    assert len(sizes) == (2 if count in (2, 3) else 1)  # and the rest
    half = in_chunks(function, x.astype(jnp.bfloat16), count * 3 * 4 * 4)
    assert half.dtype == jnp.bfloat16
    assert sizes[len(sizes) // 2 :] == sizes[: len(sizes) // 2]


def test_a_matrix_larger_than_the_cap_goes_alone(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    np.testing.assert_array_equal(in_chunks(jnp.negative, x, max_bytes=1), -x)


def gpt(layers, width):
    """Matrices of a GPT as GPT-2 lays them out."""
    shapes = [(width, 3 * width), (width, width), (width, 4 * width)]
    shapes.append(shapes[-1][::-1])
    return {
        f"layer_{i}": [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        for i in range(layers)
    }


def compiled(tx, params):
    state = jax.eval_shape(tx.init, params)
    return jax.jit(tx.update).lower(params, state, params).compile()


def peer(params):
    """optax's Muon with the same products."""
    axes = jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)
    return optax.contrib.scale_by_muon(weight_dimension_numbers=axes)


def test_compiled_products_depend_on_shapes_alone():
    ours = scale_by_muon(orthogonalizer=NewtonSchulz("keller_jordan"))
    counts = [compiled(ours, gpt(n, 16)).as_text().count(" dot(") for n in (4, 48)]
    # One square shape directly, 3; two wide ones in one cycle of the Gram form, 7.
    assert counts == [3 + 2 * 7] * 2


def kernels(layers):
    """The fusions of an update that differ in more than names: each is compiled.

    Those that fill a whole stack do differ, but there is one of them a stack.
    """
    text = compiled(scale_by_muon(), gpt(layers, 16)).as_text()
    bodies = re.findall(r"^%fused_computation[^{]*{\n(.*?)^}", text, re.M | re.S)
    anonymous = (re.sub(r", metadata=\{[^}]*\}|%[\w.-]+", "", b) for b in bodies)
    return {body for body in anonymous if "concatenate" not in body}


def test_kernels_do_not_follow_the_number_of_layers():
    """Slices at constants, say, would be one kernel each, four a layer."""
    few, many = (len(kernels(layers)) for layers in (4, 12))
    assert few > 10
    assert many - few < 12 - 4


def test_temporaries_are_at_most_four_of_the_largest_stack():
    """And fewer than the peer's, which keeps every leaf's iteration alive."""
    params = gpt(4, 64)
    largest = 2 * 4 * 64 * 256 * 4  # up and down of 4 layers, bytes
    ours, theirs = (
        compiled(tx, params).memory_analysis().temp_size_in_bytes
        for tx in (scale_by_muon(), peer(params))
    )
    assert ours <= 4 * largest
    assert ours < theirs


def test_a_single_square_is_held_about_three_times():
    """The stack, its next state and a product's blocks; rounding adds no copy."""
    tx = scale_by_muon(orthogonalizer=NewtonSchulz("keller_jordan"))
    params = {"hidden": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    memory = compiled(tx, params).memory_analysis()
    assert memory.temp_size_in_bytes < 3.1 * 512 * 512 * 4
