"""Muon in twenty lines: a Flax NNX network learns a function of two variables."""

import itertools

import jax.numpy as jnp
from flax import nnx

import optax_muon


def main(steps: int = 200) -> float:
    x = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, 32)] * 2), -1).reshape(-1, 2)
    y = jnp.sin(4 * x[:, :1]) * jnp.cos(3 * x[:, 1:])
    rngs = nnx.Rngs(0)
    widths = (2, 64, 64, 1)
    layers = [nnx.Linear(m, n, rngs=rngs) for m, n in itertools.pairwise(widths)]
    model = nnx.Sequential(layers[0], nnx.gelu, layers[1], nnx.gelu, layers[2])
    # The output layer has no name that tells: AdamW shall have it, as it has biases.
    axes = optax_muon.axes_from_nnx(model, adamw=layers[-1])
    print(optax_muon.plan(nnx.state(model, nnx.Param), matrix_axes=axes))
    # A rate for so small a model; a large one begins with AdamW's, such as 3e-3.
    tx = optax_muon.muon(0.02, matrix_axes=axes)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(steps)]
    print(f"mean squared error: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    return losses[-1]


if __name__ == "__main__":
    main()
