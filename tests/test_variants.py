"""Every variant against its paper's equations in float64, over ten steps.

Tolerances of 1e-9 leave a factor of a thousand or more for what ten steps of float64
decompositions round, of matrices with condition numbers below 1000. Where polynomials
take the place of exact polar factors it is 1e-6: their slopes at 0, up to 2e3 in sum,
magnify what the Gram form rounds.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from optax_muon import MatrixAxes, NormBall, Svd
from tests import references

pytestmark = pytest.mark.usefixtures("x64")

STEPS, LR, ATOL = 10, 0.1, 1e-9

# Wide and tall; layers whose outputs are heads; a matrix for each head; three in one.
LEAVES = {
    "wide": ((4, 6), MatrixAxes(0, 1)),
    "tall": ((6, 4), MatrixAxes(0, 1)),
    "layers": ((2, 5, 2, 3), MatrixAxes(1, (2, 3))),
    "per_head": ((6, 2, 3), MatrixAxes(0, 2)),
    "fused": ((4, 9), MatrixAxes(0, 1, fan_out_parts=(5, 2, 2))),
    "outputs": ((9, 4), MatrixAxes(0, 1, fan_in_parts=(5, 4))),
}
AXES = {name: axes for name, (_, axes) in LEAVES.items()}


def draw(seed, leaves=LEAVES):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape)) for name, (shape, _) in leaves.items()
    }


def matrices_of(leaf, axes):
    """The leaf's matrices, parts and all, as a list of arrays [fan_in, fan_out]."""
    view = axes.view(leaf.shape)
    order = view.batch_axes + view.fan_in_axes + view.fan_out_axes
    stack = np.asarray(leaf).transpose(order).reshape(view.matrices)
    side = 1 if view.fan_in_parts else 2
    parts = np.split(stack, np.cumsum(view.parts)[:-1], side) if view.parts else [stack]
    return [matrix for part in parts for matrix in part]


def train(tx, params, gradients):
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_follows(tx, reference, leaves=LEAVES, atol=ATOL):
    """Ten steps of `tx` are those of the reference, matrix by matrix."""
    params = draw(0, leaves)
    gradients = [draw(seed, leaves) for seed in range(1, STEPS + 1)]
    found = train(tx, params, gradients)
    for name, (_, axes) in leaves.items():
        columns = zip(*(matrices_of(g[name], axes) for g in gradients), strict=True)
        for w, result, of_matrix in zip(
            matrices_of(params[name], axes),
            matrices_of(found[name], axes),
            columns,
            strict=True,
        ):
            expected = reference(w, of_matrix)
            np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


def muon(**arguments):
    arguments = {"orthogonalizer": Svd(), "matrix_axes": AXES} | arguments
    return optax_muon.muon(LR, **arguments)


def reference(name, **arguments):
    return functools.partial(getattr(references, name), **({"lr": LR} | arguments))


class TestBefore:
    @pytest.mark.parametrize("side", ["fan_out", "fan_in", "both"])
    def test_muoneq(self, side):
        tx = muon(
            momentum_form="heavy_ball",
            preconditioner=optax_muon.equilibrate(side, matrix_axes=AXES),
        )
        assert_follows(tx, reference("muoneq", side=side))

    def test_a_part_of_the_strength(self):
        part = optax_muon.equilibrate("both", strength=0.5, matrix_axes=AXES)
        tx = muon(preconditioner=part)
        assert_follows(tx, reference("muoneq", side="both", strength=0.5))

    def test_no_strength_is_plain_muon(self):
        part = optax_muon.equilibrate(strength=0.0, matrix_axes=AXES)
        assert_follows(
            muon(preconditioner=part, scale=None, momentum_form="heavy_ball"),
            reference("muon", ema=False),
        )

    @pytest.mark.parametrize("size", [1e-160, 1e-20, 1e160])
    def test_any_magnitude(self, size):
        x = draw(0)["wide"].at[:, 2].set(0)
        tx = optax_muon.equilibrate()
        found, _ = tx.update(size * x, tx.init(x))
        expected = np.ones(6)
        expected[2] = 0  # a neuron without a direction gets none
        np.testing.assert_allclose(np.linalg.norm(found, axis=0), expected, atol=ATOL)


class TestAfter:
    def test_normuon_as_published(self):
        normalizer = optax.chain(
            optax_muon.normalize_neurons(0.9, matrix_axes=AXES),
            optax_muon.snap_frobenius(matrix_axes=AXES),
        )
        tx = muon(nesterov=False, normalizer=normalizer, weight_decay=0.1)
        assert_follows(tx, reference("normuon", paper=True))

    def test_normuon_as_coded(self):
        tx = optax_muon.normuon(
            LR,
            beta2=0.9,
            orthogonalizer=Svd(),
            matrix_axes=AXES,
            weight_decay=0.1,
        )
        assert_follows(tx, reference("normuon", paper=False))

    def test_adamuon(self):
        tx = muon(
            nesterov=False,
            momentum_form="heavy_ball",
            preconditioner=optax.scale_by_sign(),
            normalizer=optax.chain(
                optax_muon.normalize_entries(matrix_axes=AXES),
                optax_muon.snap_frobenius(matrix_axes=AXES),
            ),
            weight_decay=0.1,
        )
        assert_follows(tx, reference("adamuon"))

    def test_entries_that_never_moved_stay(self):
        tx, zeros = optax_muon.normalize_entries(), jnp.zeros((3, 4))
        state = tx.init(zeros)
        for _ in range(2):
            update, state = tx.update(zeros, state)
            np.testing.assert_array_equal(update, 0)

    def test_snap_to_a_norm_of_ones_own(self):
        part = optax_muon.snap_frobenius(lambda i, o: i + o, matrix_axes=AXES)
        x = draw(0)
        found, _ = part.update(x, part.init(x))
        for name, axes in AXES.items():
            for matrix in matrices_of(found[name], axes):
                assert np.linalg.norm(matrix) == pytest.approx(sum(matrix.shape))

    def test_snapped_zeros_stay(self):
        tx, zeros = optax_muon.snap_frobenius(), jnp.zeros((3, 4))
        np.testing.assert_array_equal(tx.update(zeros, tx.init(zeros))[0], 0)

    def test_dual_norm(self):
        """The nuclear norm is each matrix's own, however many a leaf holds."""
        matrices = optax.chain(
            optax_muon.accumulate_momentum(nesterov=False),
            optax_muon.scale_by_dual_norm(
                optax_muon.orthogonalize_updates(Svd(), matrix_axes=AXES),
                matrix_axes=AXES,
            ),
            optax.scale_by_learning_rate(LR),
        )
        assert_follows(matrices, reference("polargrad"))


class TestDecay:
    @pytest.mark.parametrize("cautious", [False, True])
    @pytest.mark.parametrize("form", ["decoupled", "independent", "lr_squared"])
    @pytest.mark.parametrize("scheduled", [False, True])
    def test_forms(self, form, cautious, scheduled):
        def rate(t):
            return LR / (1 + t) if scheduled else LR

        tx = optax_muon.muon(
            rate if scheduled else LR,
            orthogonalizer=Svd(),
            scale=None,
            weight_decay=0.3,
            weight_decay_form=form,
            cautious=cautious,
        )
        expected = functools.partial(
            references.decayed, lr=rate, form=form, decay=0.3, cautious=cautious
        )
        assert_follows(tx, expected, {"wide": LEAVES["wide"]})  # entry by entry

    @pytest.mark.parametrize("cautious", [False, True])
    def test_entries_without_a_step_decay(self, cautious):
        """Cautious decay spares what grows, not what stands still (its eq. 1: >=)."""
        params = {"kernel": jnp.ones((3, 2))}
        tx = optax_muon.muon(0.1, weight_decay=0.5, cautious=cautious)
        still = jax.tree.map(jnp.zeros_like, params)
        update, _ = tx.update(still, tx.init(params), params)
        np.testing.assert_allclose(update["kernel"], -0.05)

    def test_adamw_gets_the_form_too(self):
        params = {"bias": jnp.ones(3)}
        tx = optax_muon.muon(0.0, weight_decay=0.5, weight_decay_form="independent")
        update, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(update["bias"], -0.5)

    @pytest.mark.parametrize("form", ["decoupled", "independent", "lr_squared"])
    def test_injected_numbers(self, form):
        tx = optax.inject_hyperparams(optax_muon.muon)(
            0.1, weight_decay=0.5, weight_decay_form=form
        )
        params = {"kernel": jnp.ones((3, 2))}
        update, _ = tx.update(params, tx.init(params), params)
        plain = optax_muon.muon(0.1, weight_decay=0.5, weight_decay_form=form)
        expected, _ = plain.update(params, plain.init(params), params)
        np.testing.assert_allclose(update["kernel"], expected["kernel"], atol=ATOL)

    def test_unknown_form(self):
        with pytest.raises(ValueError, match="weight_decay_form='l2'"):
            optax_muon.muon(0.1, weight_decay_form="l2")


class TestScion:
    @pytest.mark.parametrize("constrained", [False, True])
    @pytest.mark.parametrize("ball", ["spectral", "sign", "column", "row"])
    def test_norm_balls(self, ball, constrained):
        balls = {
            name: NormBall(
                ball,
                radius=2.0,
                fan_in=axes.fan_in,
                fan_out=axes.fan_out,
                fan_in_parts=axes.fan_in_parts,
                fan_out_parts=axes.fan_out_parts,
            )
            for name, axes in AXES.items()
        }
        tx = optax_muon.scion(
            LR, norm_balls=balls, constrained=constrained, orthogonalizer=Svd()
        )
        expected = reference("scion", ball=ball, radius=2.0, constrained=constrained)
        assert_follows(tx, expected)

    def test_every_leaf_of_a_model_by_its_names(self):
        params = {
            "embed": {"embedding": jnp.ones((7, 4))},
            "positions": {"pos_embedding": jnp.ones((1, 5, 4))},
            "up": {"kernel": jnp.eye(4, 6), "bias": jnp.ones(6)},
            "query": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((2, 2))},
            "norm": {"scale": jnp.ones(4)},
            "lm_head": {"kernel": jnp.ones((4, 7))},
        }
        tx = optax_muon.scale_by_lmo(orthogonalizer=Svd())
        steps, _ = tx.update(params, tx.init(params))
        np.testing.assert_allclose(steps["embed"]["embedding"], 50)
        np.testing.assert_allclose(steps["positions"]["pos_embedding"], 50)
        spectrum = np.linalg.svd(steps["up"]["kernel"], compute_uv=False)
        np.testing.assert_allclose(spectrum, 50 * np.sqrt(6 / 4))
        for vector in ("up", "query", "norm"):
            name = "scale" if vector == "norm" else "bias"
            np.testing.assert_allclose(steps[vector][name], 1)
        np.testing.assert_allclose(steps["lm_head"]["kernel"], 3000 / 4)

    def test_a_tied_embedding_is_the_head(self):
        table = {"embed": {"embedding": jnp.ones((7, 4))}}
        table["positions"] = {"embedding": jnp.ones((5, 4))}
        tx = optax_muon.scale_by_lmo(optax_muon.flax_norm_balls(tied=True))
        steps, _ = tx.update(table, tx.init(table))
        np.testing.assert_allclose(steps["embed"]["embedding"], 3000 / 4)
        np.testing.assert_allclose(steps["positions"]["embedding"], 50)

    def test_stacked_layers(self):
        rule = optax_muon.stacked("layers", inner=optax_muon.flax_norm_balls())
        params = {
            "layers": {
                "up": {
                    "kernel": jnp.ones((3, 4, 6)),
                    "bias": draw(0, {"b": ((3, 6), None)})["b"],
                }
            }
        }
        tx = optax_muon.scale_by_lmo(rule)
        bias = tx.update(params, tx.init(params))[0]["layers"]["up"]["bias"]
        np.testing.assert_allclose((bias**2).mean(axis=1), 1)

    def test_leaves_without_a_ball_are_listed(self):
        params = {"conv": {"kernel": jnp.ones((3, 3, 1, 4))}, "x": jnp.ones((2, 3))}
        with pytest.raises(ValueError, match=r"(?s)conv/kernel.*no embedding, head"):
            optax_muon.scale_by_lmo().init(params)
        with pytest.raises(ValueError, match=r"(?s)conv/kernel.*\n.*gave None.*balls"):
            optax_muon.scale_by_lmo(lambda path, leaf: None).init(params)
        with pytest.raises(TypeError, match="flax_norm_balls makes rules"):
            optax_muon.scale_by_lmo(optax_muon.flax_norm_balls)
        with pytest.raises(TypeError, match="norm_balls holds leaves that are neither"):
            optax_muon.scale_by_lmo({"conv": MatrixAxes(), "x": None}).init(params)

    def test_muon_does_not_take_a_ball_for_axes(self):
        with pytest.raises(TypeError, match="must return a MatrixAxes"):
            optax_muon.muon(0.1, matrix_axes=NormBall("sign")).init(jnp.ones((2, 3)))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [({"norm": "inf"}, "norm='inf'"), ({"radius": 0.0}, "radius=0.0")],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            NormBall(**arguments)


SEPARATE = {
    name: leaf for name, leaf in LEAVES.items() if name not in ("fused", "outputs")
}


class TestDion2:
    @staticmethod
    def optimizer(fraction, axes):
        return optax.chain(
            optax_muon.scale_by_dion2(fraction, orthogonalizer=Svd(), matrix_axes=axes),
            optax_muon.scale_by_shape("mup", axes),
            optax.scale_by_learning_rate(LR),
        )

    @pytest.mark.parametrize("fraction", [0.1, 0.4, 1.0])
    def test_ten_steps(self, fraction):
        axes = {name: axes for name, (_, axes) in SEPARATE.items()}
        assert_follows(
            self.optimizer(fraction, axes),
            reference("dion2", fraction=fraction),
            SEPARATE,
        )

    def test_all_slices_are_heavy_ball_muon(self):
        leaves = {"wide": LEAVES["wide"]}
        tx = optax.chain(
            optax_muon.scale_by_dion2(1.0, orthogonalizer=Svd()),
            optax.scale_by_learning_rate(LR),
        )
        expected = reference("muon", ema=False, nesterov=False)
        assert_follows(tx, expected, leaves)

    def test_empty_leaves(self):
        params = {"a": jnp.ones((0, 4)), "b": jnp.ones((4, 0)), "c": jnp.ones((4, 3))}
        tx = optax_muon.scale_by_dion2()
        update, _ = tx.update(params, tx.init(params))
        assert [x.shape for x in jax.tree.leaves(update)] == [(0, 4), (4, 0), (4, 3)]

    def test_parts_are_refused_by_name(self):
        tx = optax_muon.scale_by_dion2(matrix_axes=AXES)
        with pytest.raises(ValueError, match=r"(?s)scale_by_dion2.*fused.*\(5, 2, 2\)"):
            tx.init(draw(0))

    @pytest.mark.parametrize("fraction", [0.0, 1.5, "half"])
    def test_fractions(self, fraction):
        with pytest.raises(ValueError, match="fraction="):
            optax_muon.scale_by_dion2(fraction)


class TestHyperball:
    def test_ten_steps(self):
        tx = optax_muon.muon_hyperball(LR, orthogonalizer=Svd(), matrix_axes=AXES)
        assert_follows(tx, reference("muonh"))

    def test_a_scale_by_shape_has_no_effect(self):
        parts = optax_muon.scale_by_muon(
            0.95,
            momentum_form="heavy_ball",
            orthogonalizer=Svd(),
            scale="sqrt_max",
            matrix_axes=AXES,
        )
        tx = optax.chain(parts, optax_muon.step_on_hyperball(LR, matrix_axes=AXES))
        assert_follows(tx, reference("muonh"))

    def test_without_a_step_weights_return_to_their_sphere(self):
        w = draw(0)["wide"]
        tx = optax_muon.step_on_hyperball(LR)
        update, _ = tx.update(jnp.zeros_like(w), tx.init(w), 1.5 * w)
        np.testing.assert_allclose(1.5 * w + update, w, atol=ATOL)

    def test_bfloat16_weights_do_not_drift(self):
        w = draw(0)["wide"].astype(jnp.bfloat16)
        tx = optax_muon.muon_hyperball(0.02)
        state, update = tx.init({"kernel": w}), jax.jit(tx.update)
        params, before = {"kernel": w}, np.linalg.norm(np.asarray(w, float))
        for seed in range(40):
            gradient = {"kernel": draw(seed)["wide"].astype(jnp.bfloat16)}
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        after = np.linalg.norm(np.asarray(params["kernel"], float))
        # One rounding of weights and updates, not forty: they do not add up.
        assert after == pytest.approx(before, rel=2 * float(jnp.finfo("bfloat16").eps))

    @pytest.mark.parametrize("jit", [False, True])
    def test_matrices_of_zeros_are_named(self, jit):
        params = {
            "up": {"kernel": jnp.ones((2, 3, 4)).at[1].set(0)},
            "down": {"kernel": jnp.ones((2, 4, 3))},
        }
        tx = optax_muon.step_on_hyperball(LR, matrix_axes=MatrixAxes(1, 2))
        init = jax.jit(tx.init) if jit else tx.init

        def wait():
            jax.block_until_ready(init(params))
            jax.effects_barrier()

        with pytest.raises((ValueError, RuntimeError), match="up/kernel: 1 of 2"):
            wait()

    def test_a_state_for_other_axes_is_refused(self):
        """One sphere for all heads, or one for each: they would broadcast."""
        w = jnp.ones((6, 2, 3))
        together = optax_muon.step_on_hyperball(LR, matrix_axes=MatrixAxes(0, (1, 2)))
        each = optax_muon.step_on_hyperball(LR, matrix_axes=MatrixAxes(0, 2))
        for one, other in ((together, each), (each, together)):
            with pytest.raises(ValueError, match="step_on_hyperball got gradients"):
                one.update(w, other.init(w), w)

    def test_params_are_needed(self):
        tx, w = optax_muon.step_on_hyperball(LR), jnp.ones((2, 3))
        with pytest.raises(ValueError, match="pass params"):
            tx.update(w, tx.init(w))


class TestDegenerate:
    def test_one_head_is_the_whole_matrix(self):
        w = {"query": draw(0)["wide"][:, None]}
        gradients = [{"query": draw(seed)["wide"][:, None]} for seed in range(1, 4)]
        alone, merged = (
            train(muon(matrix_axes=axes), w, gradients)
            for axes in (MatrixAxes(0, 2), MatrixAxes(0, (1, 2)))
        )
        np.testing.assert_array_equal(alone["query"], merged["query"])


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

    @pytest.mark.parametrize("name", ["keller_jordan", "muon_hyperball", "speedrun"])
    def test_what_adamw_makes_of_them(self, name):
        """Three steps of a bias, by AdamW's equations with the recipe's values."""
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
