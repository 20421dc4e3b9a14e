"""Norm balls and Scion: each leaf's step, and which leaf takes which."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_muon
from optax_muon import MatrixAxes, NormBall, Svd
from tests.followed import AXES, LR, assert_follows, draw, reference

pytestmark = pytest.mark.usefixtures("x64")


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
