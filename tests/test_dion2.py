"""Dion2: the rows that step, and what becomes of the others."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_muon
from optax_muon import Svd
from tests.followed import AXES, LEAVES, LR, SEPARATE, assert_follows, draw, reference

pytestmark = pytest.mark.usefixtures("x64")


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
