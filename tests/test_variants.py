"""Parts before and after the polar factor, against their papers' equations."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from optax_muon import MatrixAxes, Svd
from tests.followed import (
    ATOL,
    AXES,
    LR,
    assert_follows,
    draw,
    matrices_of,
    muon,
    reference,
    train,
)

pytestmark = pytest.mark.usefixtures("x64")


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


class TestDegenerate:
    def test_one_head_is_the_whole_matrix(self):
        w = {"query": draw(0)["wide"][:, None]}
        gradients = [{"query": draw(seed)["wide"][:, None]} for seed in range(1, 4)]
        alone, merged = (
            train(muon(matrix_axes=axes), w, gradients)
            for axes in (MatrixAxes(0, 2), MatrixAxes(0, (1, 2)))
        )
        np.testing.assert_array_equal(alone["query"], merged["query"])
