"""Which axes of leaves are stacked layers: never a wrong one, and told if it can be."""

import itertools

import numpy as np
import pytest

from optax_muon._stack_axes import Stacked, stacked_axes, without


def leaf_of(path, shape, layer):
    """A leaf that is stacked with all in the module of its first name."""
    return Stacked(tuple(path.split("/")), shape, layer, int("/" in path))


def stack(path, layer, length, axis):
    """A leaf of stacked layers; a negative axis counts from the end of the stack."""
    at = axis % (len(layer) + 1)
    return leaf_of(path, (*layer[:at], length, *layer[at:]), layer), (at,)


def test_without():
    assert without((2, 3, 4, 5), (1, 3)) == (2, 4)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_of_other_lengths_the_shape_tells(axis):
    leaf, at = stack("w", (2, 3), 7, axis)
    assert stacked_axes([leaf]) == [{at}]


def test_two_stacked_axes():
    leaf = leaf_of("w", (5, 2, 7, 3), (2, 3))
    assert stacked_axes([leaf]) == [{(0, 2)}]


def test_what_does_not_fit_or_is_not_known():
    leaves = [
        leaf_of("w", (2, 3), (3, 2)),
        leaf_of("w", (2, 3), (2, 3, 4)),
        leaf_of("w", (2, 3), None),
        leaf_of("w", (2, 3), (2, 3)),
    ]
    assert stacked_axes(leaves) == [set(), set(), set(), {()}]


# Llama 2 7B: 32 layers of 32 heads.
OUT = leaf_of("layers/out/kernel", (32, 32, 128, 4096), (32, 128, 4096))
QUERY = leaf_of("layers/query/kernel", (32, 4096, 32, 128), (4096, 32, 128))
SCALE = leaf_of("layers/norm/scale", (32, 4096), (4096,))
EMBED = leaf_of("embed/embedding", (100, 4096), (100, 4096))


def test_other_leaves_of_the_stack_tell():
    assert stacked_axes([OUT]) == [{(0,), (1,)}]
    assert stacked_axes([OUT, QUERY]) == [{(0,)}, {(0,)}]
    assert stacked_axes([EMBED, OUT, QUERY])[1] == {(0,)}


def test_a_vector_leaves_open_from_which_end_its_axis_counts():
    """Axis 0 and axis -2 of a bias are one, but two of a kernel of rank 3."""
    kernel = leaf_of("layers/kernel", (7, 7, 5), (7, 5))
    first = leaf_of("layers/bias", (7, 5), (5,))
    assert stacked_axes([kernel, first])[0] == {(0,), (1,)}
    last = leaf_of("layers/bias", (5, 7), (5,))
    assert stacked_axes([kernel, last])[0] == {(1,)}
    assert stacked_axes([OUT, SCALE])[0] == {(0,)}


def test_leaves_that_are_not_stacked_with_it_do_not_tell():
    """Side by side in a model, they are two stacks, along axes of their own."""
    square = leaf_of("layers/w/kernel", (4, 4, 2), (4, 2))
    other = leaf_of("others/w/kernel", (4, 9, 2), (4, 2))
    assert stacked_axes([square, other]) == [{(0,), (1,)}, {(1,)}]
    as_long = leaf_of("others/w/kernel", (4, 3, 2), (3, 2))
    assert stacked_axes([square, as_long]) == [{(0,), (1,)}, {(0,)}]


def test_leaves_of_another_number_of_layers_do_not_tell():
    square = leaf_of("layers/w", (4, 4, 2), (4, 2))
    longer = leaf_of("layers/v", (6, 9, 2), (9, 2))
    assert stacked_axes([square, longer])[0] == {(0,), (1,)}


def test_leaves_that_contradict_each_other_decide_nothing():
    along_1 = leaf_of("layers/key/kernel", (4096, 32, 8, 128), (4096, 8, 128))
    assert stacked_axes([OUT, QUERY, along_1])[0] == {(0,), (1,)}


def test_the_nearest_module_decides():
    along_1 = leaf_of("layers/mlp/kernel", (4096, 32, 9), (4096, 9))
    near = leaf_of("layers/out/b", (32, 7, 9, 4), (7, 9, 4))
    assert stacked_axes([OUT, along_1, near])[0] == {(0,)}


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_the_truth_is_never_left_out(axis):
    """Random modules whose lengths coincide as often as not."""
    rng = np.random.default_rng(axis + 2)
    told = 0
    for _ in range(100):
        length = int(rng.integers(2, 4))
        layers = [
            tuple(map(int, rng.integers(2, 4, size=rank)))
            for rank in rng.integers(max(axis, -axis - 1, 1), 5, size=4)
        ]
        made = [
            stack(f"layers/{i % 2}/{i}", layer, length, axis)
            for i, layer in enumerate(layers)
        ]
        leaves = [leaf for leaf, _ in made] + [EMBED]
        found = stacked_axes(leaves)
        alone = [stacked_axes([leaf])[0] for leaf in leaves]
        for (_, truth), axes, without_others in zip(made, found, alone, strict=False):
            assert truth in axes <= without_others
            told += len(axes) < len(without_others)
    assert told > 20  # the others did help


def test_two_axes_of_which_one_counts_from_the_end():
    layers = [(3, 2), (2, 3, 2), (2,)]
    leaves = [
        leaf_of(f"layers/{i}", (2, *layer, 3), layer) for i, layer in enumerate(layers)
    ]
    for axes, layer in zip(stacked_axes(leaves), layers, strict=True):
        assert (0, len(layer) + 1) in axes
    assert stacked_axes(leaves)[2] == {(0, 2)}


def test_every_candidate_gives_the_layer():
    leaf = leaf_of("w", (2, 2, 3, 2, 3), (2, 3))
    (axes,) = stacked_axes([leaf])
    everything = itertools.combinations(range(5), 3)
    assert axes == {one for one in everything if without(leaf.shape, one) == (2, 3)}
