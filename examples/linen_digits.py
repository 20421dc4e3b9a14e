"""A Flax Linen CNN on scikit-learn's digits, with a TrainState.

A smoke test, no benchmark: on these 1,797 images of 8 x 8 pixels Muon does not win;
AdamW did as well or a little better when we tried. It shows where convolutions and the
classifier go, and how little code it takes.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_muon


class Cnn(nn.Module):
    """Three convolutions and a dense layer; `classifier` is an output head by name."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features, stride in ((32, 1), (64, 2), (64, 2)):
            x = nn.relu(nn.Conv(features, (3, 3), strides=stride)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10, name="classifier")(x)


@jax.jit
def train_step(state: TrainState, x: jax.Array, y: jax.Array) -> TrainState:
    def loss(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    flags = parser.parse_args(arguments)

    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=0.2, random_state=0
    )
    model = Cnn()
    params = model.init(jax.random.key(0), jnp.asarray(train_x[:1]))["params"]
    print(optax_muon.plan(params))
    state = TrainState.create(
        apply_fn=model.apply, params=params, tx=optax_muon.muon(flags.learning_rate)
    )
    for epoch in range(flags.epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(train_x))
        for start in range(0, len(order) - flags.batch + 1, flags.batch):
            rows = order[start : start + flags.batch]
            state = train_step(state, train_x[rows], train_y[rows])
        logits = model.apply({"params": state.params}, test_x)
        accuracy = float((logits.argmax(-1) == test_y).mean())
        print(f"epoch {epoch + 1}: test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
