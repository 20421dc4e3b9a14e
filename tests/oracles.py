"""Float64 NumPy references, each a few lines of the mathematics itself."""

import numpy as np


def polar(x: np.ndarray) -> np.ndarray:
    """U_r V_r^T of the matrix or stack x = U_r S_r V_r^T."""
    u, s, vh = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    keep = s > max(x.shape[-2:]) * np.finfo(np.float64).eps * s[..., :1]
    return (u * keep[..., None, :]) @ vh


def chain(x: np.ndarray, rows) -> np.ndarray:
    """U p_T(... p_1(s / ||x||_F)) V^T for the polynomials a s + b s^3 + c s^5."""
    u, s, vh = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    norm = np.sqrt((s**2).sum(-1, keepdims=True))
    s = quintics(s / np.where(norm > 0, norm, 1), rows)
    return (u * s[..., None, :]) @ vh


def quintics(s: np.ndarray, rows) -> np.ndarray:
    """p_T(... p_1(s)) for the polynomials a s + b s^3 + c s^5."""
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return s


def relative_error(x, reference) -> float:
    """||x - reference||_F / ||reference||_F."""
    x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def with_spectrum(rng: np.random.Generator, m: int, n: int, s) -> np.ndarray:
    """A random m x n matrix with singular values s."""
    k = len(s)
    u, _ = np.linalg.qr(rng.normal(size=(m, k)))
    v, _ = np.linalg.qr(rng.normal(size=(n, k)))
    return (u * np.asarray(s)) @ v.T
