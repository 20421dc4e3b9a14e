"""Optimizers for one matrix [fan_in, fan_out] in float64 NumPy, from their papers.

Each is a function (W, gradients) -> the weights after them. Papers that store weights
as [fan_out, fan_in] speak of rows where these sum over axis 0.
"""

import numpy as np
from numpy.linalg import norm

from tests.oracles import chain, polar


def muon(w, gradients, lr, *, mu=0.95, ema=True, nesterov=True, factor=1.0, rows=None):
    """K. Jordan, 2024; `rows` of a polynomial, or the exact polar factor."""
    m = np.zeros_like(w)
    for g in gradients:
        g_in = (1 - mu) * g if ema else g
        m = mu * m + g_in
        d = mu * m + g_in if nesterov else m
        o = polar(d) if rows is None else chain(d, rows)
        w = w - lr * factor * o
    return w


def muoneq(w, gradients, lr, *, side, mu=0.95, strength=1.0):
    """arXiv 2603.28254: D_r^(-1/2) M D_c^(-1/2), both of the same M."""
    m = np.zeros_like(w)
    for g in gradients:
        m = mu * m + g
        d = g + mu * m
        neurons = norm(d, axis=0, keepdims=True) ** strength
        inputs = norm(d, axis=1, keepdims=True) ** strength
        if side != "fan_in":
            d = d / neurons
        if side != "fan_out":
            d = d / inputs
        w = w - lr * 0.2 * np.sqrt(max(w.shape)) * polar(d)
    return w


def normuon(w, gradients, lr, *, paper, b1=0.95, b2=0.9, decay=0.1):
    """arXiv 2510.05491, algorithm 1; not `paper`: its authors' code."""
    m, v = np.zeros_like(w), np.zeros((1, w.shape[1]))
    for g in gradients:
        m = b1 * m + (1 - b1) * g
        o = polar(m if paper else b1 * m + (1 - b1) * g)
        v = b2 * v + (1 - b2) * (o**2).mean(axis=0, keepdims=True)
        n = o / np.sqrt(v)
        if paper:
            n = n * 0.2 * np.sqrt(o.size) / norm(n)
        else:
            n = n * norm(o) / norm(n) * np.sqrt(max(1, w.shape[1] / w.shape[0]))
        w = w - lr * decay * w - lr * n
    return w


def adamuon(w, gradients, lr, *, b=0.95, b2=0.95, decay=0.1):
    """arXiv 2507.11005, algorithm 1 of v2."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for g in gradients:
        m = b * m + g
        o = polar(np.sign(m))
        v = b2 * v + (1 - b2) * o**2
        n = o / np.sqrt(v)
        n = n * 0.2 * np.sqrt(o.size) / norm(n)
        w = w - lr * decay * w - lr * n
    return w


def polargrad(w, gradients, lr, *, b=0.95):
    """arXiv 2505.21799: <M, U> U, the inner product being the nuclear norm of M."""
    m = np.zeros_like(w)
    for g in gradients:
        m = b * m + (1 - b) * g
        w = w - lr * np.linalg.svd(m, compute_uv=False).sum() * polar(m)
    return w


def decayed(w, gradients, lr, *, form, decay, cautious=False, mu=0.95):
    """Muon with decay; `lr` is a function of the step. Cautious: arXiv 2510.12402."""
    m = np.zeros_like(w)
    for t, g in enumerate(gradients):
        m = mu * m + (1 - mu) * g
        u = polar(mu * m + (1 - mu) * g)
        rates = {
            "decoupled": lr(t) * decay,
            "independent": decay,
            "lr_squared": lr(t) ** 2 * decay,
        }
        keep = (u * w >= 0) if cautious else 1.0
        w = w - lr(t) * u - rates[form] * keep * w
    return w


def muonh(w, gradients, lr, *, mu=0.95):
    """arXiv 2606.16899."""
    m, radius = np.zeros_like(w), norm(w)
    for g in gradients:
        m = mu * m + g
        u = polar(g + mu * m)
        w = w - lr * radius * u / norm(u)
        w = w * radius / norm(w)
    return w


LMOS = {
    "spectral": lambda d: np.sqrt(d.shape[1] / d.shape[0]) * polar(d),
    "sign": lambda d: np.sign(d) / d.shape[0],
    "column": lambda d: d / np.sqrt((d**2).mean(axis=1, keepdims=True)),
    "row": lambda d: d / (np.sqrt(d.shape[0]) * norm(d, axis=0, keepdims=True)),
}


def scion(w, gradients, lr, *, ball, radius, alpha=0.1, constrained=True):
    """arXiv 2502.07529, algorithm 3, with the norms of its tables 2 to 4."""
    d = np.zeros_like(w)
    for g in gradients:
        d = (1 - alpha) * d + alpha * g
        w = (1 - lr * constrained) * w - lr * radius * LMOS[ball](d)
    return w


def dion2(w, gradients, lr, *, fraction, decay=0.95):
    """arXiv 2512.16928: slices of the shorter side, columns of squares."""
    m, w = np.zeros_like(w), w.copy()
    axis = 1 if w.shape[1] <= w.shape[0] else 0
    k = max(1, int(np.ceil(fraction * w.shape[axis])))
    for g in gradients:
        m = m + g
        chosen = np.argsort(-np.abs(m).sum(axis=1 - axis))[:k]
        where = (slice(None), chosen) if axis == 1 else (chosen, slice(None))
        w[where] -= lr * np.sqrt(w.shape[1] / w.shape[0]) * polar(m[where])
        m[where] *= decay
    return w
