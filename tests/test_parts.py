"""The stateless and small parts: normalize_neurons, weight decay, muon's own wiring."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from optax_muon import MatrixAxes, Svd, muon, normalize_neurons
from tests import oracles


def params_and_gradients(rng, steps=5):
    shapes = {
        "dense": {"kernel": (6, 4), "bias": (4,)},
        "embed": {"embedding": (10, 4)},
        "lm_head": {"kernel": (4, 10)},
    }

    def draw():
        return jax.tree.map(
            lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    return draw(), [draw() for _ in range(steps)]


def train(tx, params, gradients):
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


class TestNormalizeNeurons:
    @staticmethod
    def reference(o, v, beta2):
        """NorMuon for one matrix [in, out], float64: v over the outputs."""
        v = beta2 * v + (1 - beta2) * (o**2).mean(axis=0)
        normalized = o / np.sqrt(v)
        return normalized * np.linalg.norm(o) / np.linalg.norm(normalized), v

    @pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
    @pytest.mark.parametrize("beta2", [0.0, 0.5, 0.95])
    def test_ten_steps(self, rng, shape, beta2):
        tx, v = normalize_neurons(beta2), np.zeros(shape[1])
        state = tx.init(jnp.zeros(shape))
        for _ in range(10):
            o = rng.normal(size=shape)
            expected, v = self.reference(o, v, beta2)
            update, state = tx.update(jnp.asarray(o, jnp.float32), state)
            np.testing.assert_allclose(update, expected, rtol=1e-5)  # float32
            np.testing.assert_allclose(state.second_moment[0], v, rtol=1e-5)
            assert np.linalg.norm(update) == pytest.approx(np.linalg.norm(o), rel=1e-6)
            if beta2 == 0:
                norms = np.linalg.norm(update, axis=0)
                np.testing.assert_allclose(norms, norms[0], rtol=1e-5)

    def test_heads_and_stacks_by_declared_axes(self, rng):
        """(layers, d, heads, head_dim): a neuron is one (head, dim) of one layer."""
        o = rng.normal(size=(2, 6, 3, 2))
        tx = normalize_neurons(0.9, matrix_axes=MatrixAxes(1, (2, 3)))
        update, _ = tx.update(jnp.asarray(o, jnp.float32), tx.init(jnp.zeros(o.shape)))
        for layer in range(2):
            expected, _ = self.reference(o[layer].reshape(6, 6), np.zeros(6), 0.9)
            np.testing.assert_allclose(update[layer].reshape(6, 6), expected, rtol=1e-5)

    def test_neurons_that_never_moved_stay(self, rng):
        o = rng.normal(size=(4, 3)).astype(np.float32)
        o[:, 1] = 0
        tx = normalize_neurons()
        for value in (o, np.zeros_like(o)):
            update, _ = tx.update(jnp.asarray(value), tx.init(jnp.zeros((4, 3))))
            assert np.isfinite(update).all()
            np.testing.assert_array_equal(update[:, 1], 0)

    def test_as_muons_normalizer(self, rng):
        """Between the polar factor and the scale."""
        g = rng.normal(size=(4, 6))  # the polar factor's columns differ in length
        tx = muon(
            1.0,
            momentum=0.0,
            orthogonalizer=Svd(),
            scale="mup",
            normalizer=normalize_neurons(0.5),
        )
        gradient = jnp.asarray(g, jnp.float32)
        update, _ = tx.update(gradient, tx.init(gradient), gradient)
        expected, _ = self.reference(oracles.polar(g), np.zeros(6), 0.5)
        np.testing.assert_allclose(update, -np.sqrt(6 / 4) * expected, atol=1e-5)


@pytest.mark.parametrize(
    "tx",
    [normalize_neurons(), optax_muon.scale_by_shampoo()],
    ids=["normalize_neurons", "scale_by_shampoo"],
)
def test_gradients_unlike_the_state(tx):
    state = tx.init({"a": jnp.ones((2, 3))})
    for gradients in ({"b": jnp.ones((2, 3))}, {"a": jnp.ones((2, 4))}):
        with pytest.raises(ValueError, match="gradients unlike"):
            tx.update(gradients, state)


class TestWeightDecay:
    @pytest.mark.parametrize("cautious", [False, True])
    def test_matrices(self, rng, cautious):
        """W <- W - lr (O + decay W [where O and W agree in sign])."""
        w, g = rng.normal(size=(2, 6, 4))
        o = oracles.polar(g)
        decayed = np.where(o * w > 0, w, 0) if cautious else w
        tx = muon(
            0.1,
            momentum=0.0,
            orthogonalizer=Svd(),
            scale=None,
            weight_decay=0.3,
            cautious=cautious,
        )
        params = jnp.asarray(w, jnp.float32)
        update, _ = tx.update(jnp.asarray(g, jnp.float32), tx.init(params), params)
        np.testing.assert_allclose(update, -0.1 * (o + 0.3 * decayed), atol=1e-6)

    @pytest.mark.parametrize("cautious", [False, True])
    def test_mask_floats_arrays_and_schedules(self, rng, cautious):
        params, gradients = params_and_gradients(rng)
        mask = jax.tree.map(lambda x: x.ndim > 1, params)
        runs = [
            train(
                muon(
                    0.1,
                    weight_decay=decay,
                    cautious=cautious,
                    weight_decay_mask=chosen,
                ),
                params,
                gradients,
            )
            for decay in (0.5, jnp.asarray(0.5), lambda count: 0.5)
            for chosen in (mask, lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
        ]
        for run in runs[1:]:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run, runs[0]
            )
        plain = train(muon(0.1, cautious=cautious), params, gradients)
        np.testing.assert_allclose(
            runs[0]["dense"]["bias"], plain["dense"]["bias"], rtol=1e-6
        )
        assert not np.allclose(runs[0]["dense"]["kernel"], plain["dense"]["kernel"])

    def test_spectral_norm_stays_under_the_bound(self, rng):
        """||W||_2 <= max(||W_0||_2, 1 / decay) with unit spectral updates."""
        decay, lr = 0.5, 0.1
        tx = muon(lr, orthogonalizer=Svd(), scale=None, weight_decay=decay)
        params = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
        bound = max(np.linalg.norm(params, 2), 1 / decay)
        state = tx.init(params)
        for _ in range(100):
            updates, state = tx.update(-params, state, params)
            params = optax.apply_updates(params, updates)
            assert np.linalg.norm(params, 2) <= bound * (1 + 1e-5)  # float32
        # It gets there: the bound is tight, so this test can fail.
        assert np.linalg.norm(params, 2) > 0.98 / decay

    @pytest.mark.parametrize("cautious", [False, True])
    def test_params_are_needed_for_decay_alone(self, cautious):
        g = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        tx = muon(0.1, weight_decay=0.1, cautious=cautious)
        with pytest.raises(ValueError, match="params"):
            tx.update(g, tx.init(g))
        tx = muon(0.1, weight_decay=0.0, cautious=cautious)
        update, _ = tx.update(g, tx.init(g))
        assert update["kernel"][0, 0] < 0


class TestMuon:
    def test_the_others_get_plain_adamw(self, rng):
        params, gradients = params_and_gradients(rng)
        own = {
            "adam_learning_rate": 0.03,
            "adam_b1": 0.8,
            "adam_b2": 0.9,
            "adam_eps": 1e-3,
            "adam_weight_decay": 0.2,
        }
        mine = train(muon(0.1, weight_decay=0.7, **own), params, gradients)
        adamw = optax.adamw(0.03, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.2)
        theirs = train(adamw, params, gradients)
        for path in (("dense", "bias"), ("embed", "embedding"), ("lm_head", "kernel")):
            # The same operations in the same order.
            np.testing.assert_allclose(
                mine[path[0]][path[1]], theirs[path[0]][path[1]], rtol=1e-6, atol=1e-7
            )
        assert not np.allclose(mine["dense"]["kernel"], theirs["dense"]["kernel"])

    def test_adamw_inherits_rate_and_decay(self, rng):
        params, gradients = params_and_gradients(rng)
        mine = train(muon(0.1, weight_decay=0.3), params, gradients)
        adamw = optax.adamw(0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.3)
        theirs = train(adamw, params, gradients)
        np.testing.assert_allclose(
            mine["dense"]["bias"], theirs["dense"]["bias"], rtol=1e-6, atol=1e-7
        )

    def test_the_matrices_equal_the_chain_by_hand(self, rng):
        params, gradients = params_and_gradients(rng)
        mine = train(muon(0.1, momentum=0.8, weight_decay=0.3), params, gradients)
        chain = optax.chain(
            optax_muon.scale_by_muon(0.8, scale="adam_rms"),
            optax.add_decayed_weights(0.3),
            optax.scale_by_learning_rate(0.1),
        )
        kernel = train(
            chain, params["dense"]["kernel"], [g["dense"]["kernel"] for g in gradients]
        )
        # One program or several: float32 rounding of the iteration.
        np.testing.assert_allclose(mine["dense"]["kernel"], kernel, atol=2e-5)

    @pytest.mark.parametrize("name", ["learning_rate", "momentum", "weight_decay"])
    def test_schedules_equal_the_floats_they_give(self, rng, name):
        params, gradients = params_and_gradients(rng, steps=4)
        values = [0.5, 0.3, 0.2, 0.1]
        fixed = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.2}
        table = jnp.asarray(values)
        scheduled = train(
            muon(**{**fixed, name: lambda count: table[count]}), params, gradients
        )
        state, by_hand = muon(**fixed).init(params), params
        for value, gradient in zip(values, gradients, strict=True):
            # The states of a float are those of a schedule but for its own counter.
            updates, state = muon(**{**fixed, name: value}).update(
                gradient, state, by_hand
            )
            by_hand = optax.apply_updates(by_hand, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),  # float32
            scheduled,
            by_hand,
        )

    @pytest.mark.parametrize("size", [0.0, 1e-4, 1.0])
    def test_float16(self, size):
        """AdamW's eps and squares underflow in float16: its moments are float32."""
        params = {"kernel": jnp.ones((3, 4), "float16"), "bias": jnp.ones(4, "float16")}
        gradients = jax.tree.map(lambda x: jnp.full_like(x, size), params)
        tx = muon(0.5)
        updates, _ = tx.update(gradients, tx.init(params), params)
        assert updates["bias"].dtype == updates["kernel"].dtype == jnp.float16
        # Adam's first step is the sign of the gradient.
        np.testing.assert_array_equal(updates["bias"], -0.5 * np.sign(size))
        assert np.isfinite(updates["kernel"]).all()

    @pytest.mark.parametrize(
        ("name", "leaf"), [("bias", jnp.ones(3)), ("other", jnp.ones(4))]
    )
    def test_gradients_unlike_the_parameters(self, name, leaf):
        params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
        tx = muon(0.1)
        gradients = {"kernel": params["kernel"], name: leaf}
        with pytest.raises(ValueError, match=f"muon got gradients unlike.*{name}"):
            tx.update(gradients, tx.init(params), params)
        with pytest.raises(ValueError, match=f"AdamW got gradients unlike.*{name}"):
            tx.update(gradients, tx.init(params))

    def test_adam_dtype_and_momentum_dtype(self, rng):
        params, _ = params_and_gradients(rng)
        state = muon(0.1, adam_dtype="bfloat16", momentum_dtype="float16").init(params)
        adam = optax.tree.get(state, "mu")
        assert adam["dense"]["bias"].dtype == jnp.bfloat16
        found = optax_muon.find_state(state).momentum
        assert found["dense"]["kernel"].dtype == jnp.float16

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"learning_rate": "fast"}, TypeError, "learning_rate='fast'"),
            ({"learning_rate": None}, TypeError, "learning_rate=None"),
            ({"adam_learning_rate": "x"}, TypeError, "adam_learning_rate='x'"),
            ({"weight_decay": -1.0}, ValueError, "at least 0"),
            ({"adam_weight_decay": -1.0}, ValueError, "at least 0"),
            ({"cautious": "yes"}, TypeError, "cautious='yes' is no bool"),
            ({"adam_b1": 1.0}, ValueError, "adam_b1=1.0"),
            ({"adam_b1": lambda count: 0.9}, TypeError, "takes no schedule"),
            ({"adam_b2": -0.5}, ValueError, "adam_b2=-0.5"),
            ({"adam_eps": -1e-8}, ValueError, "adam_eps"),
            ({"adam_eps": lambda count: 1e-8}, TypeError, "takes no schedule"),
            ({"learning_rate": float("inf")}, ValueError, "must be finite"),
            ({"adam_dtype": "int32"}, ValueError, "adam_dtype='int32'"),
            ({"normalizer": normalize_neurons}, TypeError, "normalize_neurons()"),
            ({"scale": "rms"}, ValueError, "'adam_rms'"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            muon(**{"learning_rate": 0.1, **arguments})
