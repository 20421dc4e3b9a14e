"""Digits of mesh axes: how devices are counted, and who is in a group with whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from optax_muon._mesh_axes import (
    all_gather,
    all_to_all,
    described,
    digits,
    in_order,
    index,
    maximum,
    total,
    ways,
)

# A mesh of 8 devices (4, 2), or of 6 of them (6, 1), with x in two digits: as an array
# [major of x, minor of x, y].
MESHES = {8: (2, 2, 2), 6: (3, 2, 1)}
Y = {8: ("y", 2), 6: ("y", 1)}
# Which digits of devices vary.
CASES = {
    "major": (0,),
    "minor": (1,),
    "minor and y": (1, 2),
    "major and y": (0, 2),
    "x": (0, 1),
    "all": (0, 1, 2),
}


def axes_of(case, count):
    """The axes of a case, in an order that is not theirs."""
    major, minor, _ = MESHES[count]
    entries = (*digits("x", major * minor, minor), Y[count])
    return tuple(entries[digit] for digit in reversed(CASES[case]))


def on_each(function, count, check_vma=False):
    """What each device finds in its own number [1]: [count, ...]."""
    major, minor, y = MESHES[count]
    devices = np.array(jax.devices()[:count]).reshape(major * minor, y)
    mesh = Mesh(devices, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    over = P(("x", "y"))
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=over, out_specs=over, check_vma=check_vma
    )
    return np.asarray(jax.jit(mapped)(jnp.arange(float(count))))


@pytest.mark.parametrize("count", MESHES)
@pytest.mark.parametrize("case", CASES)
def test_devices_are_counted_major_axis_first(case, count):
    axes = in_order(axes_of(case, count))
    found = on_each(lambda x: x * 0 + index(axes), count)
    order = [digit for digit in (2, 0, 1) if digit in CASES[case]]  # y came first
    places = np.indices(MESHES[count])[order].reshape(len(order), -1)
    expected = np.ravel_multi_index(places, [MESHES[count][digit] for digit in order])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("count", MESHES)
@pytest.mark.parametrize("case", CASES)
def test_sums_and_maxima_are_of_a_group(case, count, check_vma):
    axes, vary = axes_of(case, count), CASES[case]
    numbers = np.arange(float(count)).reshape(MESHES[count])
    for function, of in ((total, np.sum), (maximum, np.max)):

        def found_in(x, function=function):
            # More numbers than devices, and not a multiple of them.
            return function(x * jnp.arange(1.0, 8.0), axes)[None] + 0 * x[:, None]

        found = on_each(found_in, count, check_vma)
        expected = np.broadcast_to(of(numbers, axis=vary, keepdims=True), numbers.shape)
        np.testing.assert_array_equal(
            found, expected.reshape(-1, 1) * np.arange(1.0, 8.0)
        )


@pytest.mark.parametrize("count", MESHES)
def test_blocks_go_over_whole_axes_in_order(count):
    """Block k goes to the k-th device, and comes to lie where its sender is counted."""
    axes = axes_of("all", count)

    def exchanged(x):
        return all_to_all(100 * x + jnp.arange(float(count)), axes)[None]

    counted = on_each(lambda x: x * 0 + index(in_order(axes)), count)
    numbers = np.argsort(counted)  # of the devices, as they are counted
    found = on_each(exchanged, count)
    for device in range(count):
        np.testing.assert_array_equal(found[device], 100 * numbers + counted[device])
    gathered = on_each(lambda x: all_gather(x, axes)[None, :, 0], count)
    np.testing.assert_array_equal(gathered, np.tile(numbers, (count, 1)))


def test_a_digit_alone_cannot_be_exchanged():
    major, minor = digits("x", 8, 2)
    assert ways((major, minor)) == 8
    for collective in (all_to_all, all_gather):
        with pytest.raises(ValueError, match="2 of x are not whole mesh axes"):
            collective(jnp.ones(2), (minor,))
    assert described((major, ("y", 3))) == "4 of x, y"
