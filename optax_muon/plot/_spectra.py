"""Spectra of matrices before and after orthogonalization."""

from typing import Any

import numpy as np

from optax_muon.plot._figure import Axes, Figure, figure_of, new_axes


def spectra(before: Any, after: Any, *, axes: Axes | None = None) -> Figure:
    """The singular values of matrices before and after, largest first.

    Of gradients or momentum and of the updates made of them, say. Those before are
    divided by their matrix's Frobenius norm, as Newton-Schulz does first. Values of 0
    do not show on the logarithmic scale.

    Args:
      before, after: [..., m, n], of one shape; a line for each matrix. They are copied
        to the host and decomposed in float64.
      axes: to draw into; None makes a figure.

    Raises:
      ValueError: no matrices, different shapes, or entries that are not finite.

    >>> x = np.diag([3.0, 4.0])
    >>> spectra(x, np.eye(2)).axes[0].lines[0].get_ydata().tolist()
    [0.8, 0.6]
    """
    arrays = {"before": _matrices("before", before), "after": _matrices("after", after)}
    shapes = [array.shape for array in arrays.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"before has shape {shapes[0]} and after {shapes[1]}; pass the same "
            "matrices, before and after."
        )
    axes = new_axes() if axes is None else axes
    for colour, (name, array) in zip(("C0", "C1"), arrays.items(), strict=True):
        s = np.linalg.svd(array, compute_uv=False).reshape(-1, min(array.shape[-2:]))
        if name == "before":
            norm = np.linalg.norm(s, axis=-1, keepdims=True)
            s = s / np.where(norm > 0, norm, 1)
        first, *_ = axes.plot(np.arange(1, s.shape[-1] + 1), s.T, color=colour)
        first.set_label(name)
    axes.set(yscale="log", xlabel="rank", ylabel="singular value")
    axes.legend()
    return figure_of(axes)


def _matrices(argument: str, value: Any) -> np.ndarray:
    array = np.asarray(value).astype(np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{argument} has shape {array.shape}; pass matrices [..., m, n] that are "
            "not empty."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{argument} has entries that are not finite, and so no singular values; "
            "leave such matrices out."
        )
    return array
