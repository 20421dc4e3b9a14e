"""An oracle for matrix axes: the Jacobian of what a layer computes.

A layer is linear in its input, so its Jacobian is made of its matrices: one for each
group, head or stacked layer, block by block. Its singular values are theirs, and it has
as many columns and rows that are not zero as they have inputs and outputs: any mix-up
of inputs, outputs and batch changes one of these.
"""

import jax
import numpy as np


def singular_values(kernel, axes):
    """Those of all matrices of a kernel, descending."""
    view = axes.view(kernel.shape)
    order = view.batch_axes + view.fan_in_axes + view.fan_out_axes
    stack = np.transpose(kernel, order).reshape(view.matrices)
    assert not axes.fan_in_parts
    parts = np.split(stack, np.cumsum(axes.fan_out_parts)[:-1], axis=-1)
    values = [np.linalg.svd(part, compute_uv=False).ravel() for part in parts]
    return np.sort(np.concatenate(values))[::-1]


def check(kernel, axes, function, x):
    """The matrices of a kernel are those of the Jacobian of a function at x."""
    jacobian = np.asarray(jax.jacobian(function)(x)).reshape(-1, np.size(x))
    batch, fan_in, fan_out = axes.view(kernel.shape).matrices
    # Groups, the parts of convolutions, have inputs of their own.
    groups = len(axes.fan_out_parts) or 1
    assert jacobian.any(axis=0).sum() == batch * groups * fan_in
    assert jacobian.any(axis=1).sum() == batch * fan_out
    expected = np.linalg.svd(jacobian, compute_uv=False)
    found = singular_values(np.asarray(kernel), axes)
    size = max(len(expected), len(found))  # the rest of either is zero
    expected, found = (np.pad(v, (0, size - len(v))) for v in (expected, found))
    # Singular values of about 1, in float32: right to about 1e-6.
    np.testing.assert_allclose(found, expected, atol=1e-5)


def one_pixel(function):
    """The output of a convolution at one place that sees no border: (4, 4) of (9, 9).

    Every entry of the kernel meets one entry of the input there.
    """
    return lambda x: function(x)[:, 4, 4]
