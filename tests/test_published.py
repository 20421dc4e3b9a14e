"""Published recipes: what a source says, in the reference's words."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_muon
from tests import references, soap_steps
from tests.followed import (
    ATOL,
    AXES,
    LEAVES,
    LR,
    SEPARATE,
    assert_follows,
    draw,
    train,
)

pytestmark = pytest.mark.usefixtures("x64")


class TestPublished:
    """The recipes' own values: what a source says, in the reference's words."""

    @staticmethod
    def rows(name, steps=None):
        return optax_muon.COEFFICIENTS[name].schedule(steps)

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("keller_jordan", {"lr": 0.02, "scale": "width"}),
            ("moonlight", {"lr": 4.2e-4, "scale": "rms", "rms": 0.2, "decay": 0.1}),
            (
                "deepseek_v4",
                {"lr": 2.7e-4, "scale": "rms", "rms": 0.18, "decay": 0.1},
            ),
        ],
    )
    def test_defaults(self, name, arguments):
        table = name if name == "deepseek_v4" else "keller_jordan"

        def published(w, gradients):
            m, lr = np.zeros_like(w), arguments["lr"]
            for g in gradients:
                m = 0.95 * m + g
                o = references.chain(g + 0.95 * m, self.rows(table))
                if arguments["scale"] == "width":
                    o = o * np.sqrt(max(1, w.shape[1] / w.shape[0]))
                else:
                    o = o * arguments["rms"] * np.sqrt(max(w.shape))
                w = w * (1 - lr * arguments.get("decay", 0)) - lr * o
            return w

        tx = getattr(optax_muon, name)(matrix_axes=AXES)
        assert_follows(tx, published, atol=1e-6)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("muon", (None, 0.9, 0.95, 1e-8, None)),
            ("keller_jordan", (3e-4, 0.9, 0.95, 1e-10, None)),
            ("moonlight", (None, 0.9, 0.95, 1e-8, None)),
            ("normuon", (3e-4, 0.9, 0.95, 1e-10, None)),
            ("deepseek_v4", (None, 0.9, 0.95, 1e-20, None)),
            ("muon_clip", (None, 0.9, 0.95, 1e-8, None)),
            ("muon_hyperball", (8e-3, 0.9, 0.98, 1e-15)),
            ("soap_muon", (4e-3, 0.9, 0.95, 1e-8, None)),
            ("speedrun", (8e-3, 0.5, 0.95, 1e-10, 0.75)),
        ],
    )
    def test_adamws_values(self, name, values):
        names = ("learning_rate", "b1", "b2", "eps", "weight_decay")[: len(values)]
        parameters = inspect.signature(getattr(optax_muon, name)).parameters
        assert [parameters[f"adam_{n}"].default for n in names] == list(values)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("muon", {"momentum": 0.9, "momentum_form": "ema", "scale": "adam_rms"}),
            ("keller_jordan", {"learning_rate": 0.02, "weight_decay": 0.0}),
            *(
                (name, {"momentum": 0.95})
                for name in (
                    *("keller_jordan", "moonlight", "normuon", "deepseek_v4"),
                    *("muon_clip", "soap_muon"),
                )
            ),
            ("moonlight", {"learning_rate": 4.2e-4, "weight_decay": 0.1}),
            ("normuon", {"learning_rate": 0.02, "weight_decay": 0.0, "beta2": 0.95}),
            ("deepseek_v4", {"learning_rate": 2.7e-4, "weight_decay": 0.1}),
            ("muon_clip", {"learning_rate": 2e-4, "tau": 100.0, "alpha": 0.5}),
            ("muon_hyperball", {"learning_rate": 0.02, "momentum": 0.95}),
            ("scion", {"learning_rate": 3.6e-4, "momentum": 0.9, "constrained": True}),
            ("soap_muon", {"learning_rate": 0.02, "beta2": 0.98, "frequency": 40}),
            ("speedrun", {"learning_rate": 0.023, "weight_decay": 1.2, "beta2": 0.9}),
        ],
    )
    def test_values(self, name, values):
        parameters = inspect.signature(getattr(optax_muon, name)).parameters
        assert {key: parameters[key].default for key in values} == values

    @pytest.mark.parametrize(
        ("name", "table"),
        [("muon", "polar_express"), ("speedrun", "polar_express_modded")]
        + [("deepseek_v4", "deepseek_v4")]
        + [
            (name, "keller_jordan")
            for name in ("keller_jordan", "moonlight", "normuon", "muon_clip")
            + ("muon_hyperball", "scion")
        ],
    )
    def test_polynomials(self, name, table):
        parameters = inspect.signature(getattr(optax_muon, name)).parameters
        orthogonalizer = parameters["orthogonalizer"].default
        assert orthogonalizer.rows == optax_muon.NewtonSchulz(table).rows

    def test_soap_muons_polynomials(self):
        """Its authors' code takes ten of Jordan's steps, then two cubic ones."""
        parameters = inspect.signature(optax_muon.soap_muon).parameters
        jordan, *_ = optax_muon.NewtonSchulz("keller_jordan").rows
        expected = (jordan,) * 10 + ((1.5, -0.5, 0.0),) * 2
        assert parameters["orthogonalizer"].default.rows == expected

    def test_muon_clip_is_moonlight_clipped(self):
        """The step, decay and all; then the head whose logits exceed tau."""
        params = {
            name: {"kernel": draw(seed, {"x": ((6, 2, 3), None)})["x"]}
            for seed, name in enumerate(("query", "key"))
        }
        gradients = jax.tree.map(jnp.cos, params)
        clip, plain = (
            optax_muon.muon_clip(LR, tau=50.0),
            optax_muon.moonlight(LR),
        )
        logits = {"max_logits": jnp.array([10.0, 200.0])}
        found, _ = clip.update(gradients, clip.init(params), params, max_logits=logits)
        steps, _ = plain.update(gradients, plain.init(params), params)
        for name, leaf in params.items():
            expected = np.array(leaf["kernel"] + steps[name]["kernel"])
            expected[:, 1] *= np.sqrt(50 / 200)
            clipped = leaf["kernel"] + found[name]["kernel"]
            np.testing.assert_allclose(clipped, expected, rtol=0, atol=1e-12)

    def test_soap_muon(self):
        """Eigenbasis of the shorter side, polynomials, one norm, and the shape."""
        given = inspect.signature(optax_muon.scale_by_soap).parameters
        own = {"momentum": 0.95, "beta2": 0.98, "statistics_beta": 0.98}
        own["eps"] = given["eps"].default
        rows = inspect.signature(optax_muon.soap_muon).parameters["orthogonalizer"]

        def published(w, gradients):
            fan_in, fan_out = w.shape
            side = 0 if fan_in <= fan_out else 1
            first = gradients[0] @ gradients[0].T, gradients[0].T @ gradients[0]
            bases = [None, None]
            bases[side] = np.linalg.eigh(first[side])[1][:, ::-1]
            norm = np.sqrt(min(w.shape) * max(1, fan_out / fan_in))
            for p in soap_steps.reference(gradients, bases, 3, own=own):
                o = references.chain(p, rows.default.rows)
                w = w - 0.02 * norm * o / np.linalg.norm(o)
            return w

        separate = {name: LEAVES[name] for name in SEPARATE}
        axes = {name: axes for name, (_, axes) in separate.items()}
        tx = optax_muon.soap_muon(frequency=3, matrix_axes=axes)
        assert_follows(tx, published, separate, atol=1e-6)

    @pytest.mark.parametrize("name", ["keller_jordan", "muon_hyperball", "speedrun"])
    def test_what_adamw_makes_of_them(self, name):
        """Two steps of a bias, by AdamW's equations with the recipe's values."""
        recipe = getattr(optax_muon, name)
        given = {k: p.default for k, p in inspect.signature(recipe).parameters.items()}
        lr, b1, b2 = (given[f"adam_{k}"] for k in ("learning_rate", "b1", "b2"))
        decay = 0.75 * lr if name == "speedrun" else 0.0
        w, m, v = np.array([1.0, -2.0, 3.0]), 0.0, 0.0
        gradients = [np.array([0.1, 0.2, 0.3]), np.array([-0.3, 0.1, 1e-9])]
        found = train(recipe(), {"bias": w}, [{"bias": g} for g in gradients])
        for t, g in enumerate(gradients, 1):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + given["adam_eps"])
            w = w - lr * (u + decay * (u * w >= 0) * w)
        np.testing.assert_allclose(found["bias"], w, rtol=0, atol=ATOL)

    def test_speedrun(self):
        """Momentum grows, decay is cautious and goes with the squared rate."""

        def published(w, gradients):
            m, v = np.zeros_like(w), np.zeros((1, w.shape[1]))
            width = np.sqrt(max(1, w.shape[1] / w.shape[0]))
            for t, g in enumerate(gradients):
                b = 0.85 + 0.1 * t / 300
                m = b * m + (1 - b) * g
                d = b * m + (1 - b) * g
                o = references.chain(d, self.rows("polar_express_modded"))
                v = 0.9 * v + 0.1 * (o**2).mean(axis=0, keepdims=True)
                n = o / np.sqrt(v)
                n = n * np.linalg.norm(o) / np.linalg.norm(n)
                keep = n * w >= 0
                rate = 0.023 * width
                w = w - rate * n - keep * (1.2 * 0.023) * rate * w
            return w

        assert_follows(optax_muon.speedrun(matrix_axes=AXES), published, atol=1e-6)

    def test_the_speedruns_momentum_falls_at_the_end(self):
        tx = optax_muon.speedrun(total_steps=400)
        params = {"kernel": jnp.ones((2, 3))}
        state = tx.init(params)
        traces = []
        for count in (300, 350, 400):
            moved = jax.tree.map(
                lambda x, count=count: jnp.full_like(x, count) if x.ndim == 0 else x,
                state,
            )
            _, after = tx.update(params, moved, params)
            trace = optax_muon.find_state(after).momentum["kernel"]
            traces.append(float(1 - trace[0, 0]))  # from zero: 1 - mu of ones
        np.testing.assert_allclose(traces, [0.95, 0.95, 0.85])

    @pytest.mark.parametrize("steps", [100, 1.5])
    def test_too_few_steps_for_a_speedrun(self, steps):
        with pytest.raises(ValueError, match="total_steps="):
            optax_muon.speedrun(total_steps=steps)
