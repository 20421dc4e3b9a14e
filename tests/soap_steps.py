"""Steps of scale_by_soap: gradients, runs, and a reference in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

FIELDS = ("second_moment", "left", "right", "left_basis", "right_basis")
MU, BETA2, BETA, EPS = 0.9, 0.8, 0.7, 1e-8
OWN = {"momentum": MU, "beta2": BETA2, "statistics_beta": BETA, "eps": EPS}


def run(tx, gradients):
    """All updates, and the states from before each and after the last."""
    states, updates = [tx.init(jax.tree.map(jnp.zeros_like, gradients[0]))], []
    for gradient in gradients:
        update, state = tx.update(gradient, states[-1])
        states.append(state)
        updates.append(update)
    return updates, states


def directions(gradients, nesterov=True, mu=MU):
    """U of each step."""
    m = 0
    for g in gradients:
        m = mu * m + (1 - mu) * g
        yield mu * m + (1 - mu) * g if nesterov else m


def reference(gradients, bases, frequency, nesterov=True, own=OWN):
    """The update of each step, for one matrix.

    Args:
      bases: eigenvectors of the first L and R, whose signs and, where eigenvalues are
        equal, choice are anyone's; None for the identity.
      own: the numbers, by their names as arguments.
    """
    mu, beta2, beta, eps = (own[name] for name in OWN)

    def followed(statistic, q):
        if q is None:
            return None, slice(None)
        order = np.argsort(-np.diag(q.T @ statistic @ q))
        return np.linalg.qr(statistic @ q[:, order])[0], order

    v = left = right = 0
    looked_ahead = directions(gradients, nesterov, mu)
    for t, (g, u) in enumerate(zip(gradients, looked_ahead, strict=True)):
        if t == 0:
            p, (ql, qr) = u, bases
        else:
            il = np.eye(len(g)) if ql is None else ql
            ir = np.eye(len(g.T)) if qr is None else qr
            v = beta2 * v + (1 - beta2) * (il.T @ g @ ir) ** 2
            p = il @ ((il.T @ u @ ir) / (np.sqrt(v) + eps)) @ ir.T
        left, right = (
            beta * old + (1 - beta) * x @ x.T for old, x in ((left, g), (right, g.T))
        )
        if t > 0 and t % frequency == 0:
            ql, rows = followed(left, ql)
            qr, columns = followed(right, qr)
            v = v[rows][:, columns]
        yield p * np.linalg.norm(u) / np.linalg.norm(p)


def draw(rng, shapes, count=7, dtype=jnp.float32):
    """Gradients like a tree of shapes."""
    return [
        {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}
        for _ in range(count)
    ]


def draw_leaf(rng, shape=(6, 4), count=7, dtype=jnp.float32):
    """Likewise, of one leaf."""
    return [tree["leaf"] for tree in draw(rng, {"leaf": shape}, count, dtype)]
