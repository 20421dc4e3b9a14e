"""A recipe of your own: what `optax_muon.muon` does, put together by hand.

Every piece is an optax transformation, so any of them can be replaced. Here: Muon with
a momentum schedule, the RMS-to-RMS scale and weight decay for matrices, plain
AdamW for the rest, gradients clipped before both.
"""

import jax
import jax.numpy as jnp
import optax

import optax_muon
from optax_muon import flax_matrix_axes


def recipe(
    learning_rate: float, adam_learning_rate: float
) -> optax.GradientTransformation:
    momentum = optax.linear_schedule(0.85, 0.95, transition_steps=50)
    matrices = optax.chain(
        optax_muon.scale_by_muon(
            momentum,
            orthogonalizer=optax_muon.NewtonSchulz("keller_jordan"),
            scale="mup",
        ),
        optax.add_decayed_weights(0.01),
        optax.scale_by_learning_rate(learning_rate),
    )
    others = optax.adamw(adam_learning_rate, b2=0.95)

    def label(path, leaf):
        return "adamw" if flax_matrix_axes(path, leaf) is None else "muon"

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"muon": matrices, "adamw": others},
            lambda params: jax.tree_util.tree_map_with_path(label, params),
        ),
    )


def main(steps: int = 100) -> float:
    """Fits the network x -> relu(x A) B + c to a random one of the same form."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (256, 16))

    def network(params, x):
        hidden = jax.nn.relu(x @ params["up"]["kernel"])
        return hidden @ params["down"]["kernel"] + params["down"]["bias"]

    def init(one, other):
        return {
            "up": {"kernel": jax.random.normal(one, (16, 32)) / 4},
            "down": {
                "kernel": jax.random.normal(other, (32, 8)) / 6,
                "bias": jnp.zeros(8),
            },
        }

    y = network(init(*keys[1:3]), x)
    params = init(*keys[3:])
    tx = recipe(learning_rate=0.05, adam_learning_rate=0.01)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(
            lambda p: jnp.mean((network(p, x) - y) ** 2)
        )(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    momentum = optax_muon.find_state(state).momentum["up"]["kernel"]
    print(f"mean squared error: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    print(f"momentum of up/kernel: {momentum.shape}, RMS {jnp.std(momentum):.2e}")
    return losses[-1] / losses[0]


if __name__ == "__main__":
    main()
