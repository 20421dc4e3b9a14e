"""Seed 001_823da8762f601c33: muon_update, three worked examples to four digits.

The formula printed there, X (15 I - A (25 I - 3 A)) / 4 for five iterations on
the raw matrix, does not give its own numbers. What does: O is U_r V_r^T / sqrt(2) of
B_new, and the quintic (15/8, -20/8, 12/8), whose attracting fixed point is 1 / sqrt(2),
gets there from ||B||_F-normalised input in eight steps or more.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon

EXAMPLES = {
    "rank deficient": {
        "theta": np.ones((3, 3)),
        "grad": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        "trace": np.zeros((3, 3)),
        "lr": 0.01,
        "theta_new": [
            [1.0041, 0.9996, 0.9951],
            [0.9996, 0.998, 0.9964],
            [0.9951, 0.9964, 0.9978],
        ],
        "trace_new": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        "o": [
            [-0.4144, 0.0395, 0.4933],
            [0.0395, 0.1973, 0.3552],
            [0.4933, 0.3552, 0.2171],
        ],
    },
    "two by two": {
        "theta": [[1, 2], [3, 4]],
        "grad": [[0.1, 0.2], [0.3, 0.4]],
        "trace": np.zeros((2, 2)),
        "lr": 0.01,
        "theta_new": [[1.0036, 1.9939], [2.9939, 3.9964]],
        "trace_new": [[0.1, 0.2], [0.3, 0.4]],
        "o": [[-0.3638, 0.6063], [0.6063, 0.3638]],
    },
    "with momentum": {
        "theta": np.full((3, 3), 2.0),
        "grad": [[0.5, -0.5, 0.3], [0.2, 0.1, -0.2], [-0.1, 0.4, 0.2]],
        "trace": [[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.1, 0.1, 0.1]],
        "lr": 0.1,
        "theta_new": [
            [1.9552, 2.0352, 1.9581],
            [1.9459, 1.9633, 2.027],
            [2.0083, 1.9508, 1.9499],
        ],
        "trace_new": [[0.59, -0.41, 0.39], [0.38, 0.28, -0.02], [-0.01, 0.49, 0.29]],
        "o": [
            [0.4479, -0.3516, 0.4192],
            [0.5408, 0.3669, -0.2701],
            [-0.0832, 0.4917, 0.5013],
        ],
    },
}

QUINTIC = [(15 / 8, -20 / 8, 12 / 8)]
WAYS = {
    "8 quintic steps": (optax_muon.NewtonSchulz(QUINTIC, 8), None),
    "20 quintic steps": (optax_muon.NewtonSchulz(QUINTIC, 20), None),
    "exact": (optax_muon.Svd(), lambda fan_in, fan_out: 1 / np.sqrt(2)),
}


def run(example, orthogonalizer, scale):
    """(theta_new, B_new, O) in float64, heavy ball with mu = 0.9."""
    theta, grad, trace = (
        jnp.asarray(example[name], jnp.float64) for name in ("theta", "grad", "trace")
    )
    tx = optax_muon.scale_by_muon(
        0.9,
        momentum_form="heavy_ball",
        nesterov=False,
        orthogonalizer=orthogonalizer,
        scale=scale,
    )
    state = optax_muon.MuonState(count=tx.init(theta).count, momentum=trace)
    o, state = tx.update(grad, state, theta)
    step, _ = optax.scale_by_learning_rate(example["lr"]).update(o, optax.EmptyState())
    return optax.apply_updates(theta, step), state.momentum, o


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_all_four_printed_digits(name, way):
    example = EXAMPLES[name]
    results = run(example, *WAYS[way])
    for key, value in zip(("theta_new", "trace_new", "o"), results, strict=True):
        # Half a unit of the fourth digit: what rounding to four digits allows.
        np.testing.assert_allclose(value, example[key], rtol=0, atol=0.5001e-4)


@pytest.mark.usefixtures("x64")
def test_the_printed_formula_does_not_give_the_printed_numbers():
    example = EXAMPLES["two by two"]
    x = np.asarray(example["grad"])
    for _ in range(5):
        a = x.T @ x
        x = x @ (15 * np.eye(2) - a @ (25 * np.eye(2) - 3 * a)) / 4
    assert not np.allclose(x, example["o"], atol=1e-2)
