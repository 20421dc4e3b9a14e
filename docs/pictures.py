"""The pictures of the pages, drawn from the library's own tables and the pages' code.

`make pictures` draws them anew; they are kept in docs/pictures, so that pages can be
read as plain files.
"""

import contextlib
import re
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import optax_muon

plt.switch_backend("svg")
plt.rcParams["svg.hashsalt"] = "optax_muon"  # the same file every time
PICTURES = Path(__file__).parent / "pictures"
TABLES = ("polar_express", "keller_jordan", "you_jiacheng", "cubic", "quintic")


def chained(name: str, values: np.ndarray) -> np.ndarray:
    """What the table's steps make of singular values in (0, 1]."""
    table = optax_muon.COEFFICIENTS[name]
    for a, b, c in table.schedule(table.steps):
        values = a * values + b * values**3 + c * values**5
    return values


def polynomials() -> None:
    """Singular values after all steps over those before, for each table."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    values = np.geomspace(1e-4, 1, 800)
    for name in TABLES:
        axes.semilogx(values, chained(name, values), label=name)
    axes.axhline(1, color="gray", linewidth=0.6)
    axes.set(xlabel="singular value / Frobenius norm", ylabel="after all steps")
    axes.legend(fontsize=8)
    save(figure, "polynomials")


def spectrum() -> None:
    """Singular values of a decaying matrix, before and after `orthogonalize`."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(64, 64)))[0] for _ in range(2))
    x = jnp.asarray((u * np.geomspace(1, 1e-3, 64)) @ v.T, jnp.float32)
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    axes.semilogy(np.linalg.svd(x, compute_uv=False), label="momentum")
    for name in ("polar_express", "keller_jordan"):
        method = optax_muon.NewtonSchulz(name)
        o = optax_muon.orthogonalize(x, method)
        axes.semilogy(np.linalg.svd(o, compute_uv=False), label=f"after {name}")
    axes.set(xlabel="index", ylabel="singular value")
    axes.legend(fontsize=8)
    save(figure, "spectrum")


def records() -> None:
    """The figure that the code of the page about watching ends with."""
    page = (PICTURES.parent / "guides" / "watching.md").read_text()
    names: dict = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S):
            exec(block, names)
    save(names["figure"], "records")


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    polynomials()
    spectrum()
    records()
