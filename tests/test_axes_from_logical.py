"""axes_from_logical on Llama-like models, in Linen and NNX: every leaf of them."""

import flax.core
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import optax_muon
from optax_muon import MatrixAxes, axes_from_logical, stacked
from tests.logical_models import NNXLayer, linen_params, nnx_model
from tests.routing_cases import adamw, muon, probe, random_like, table_of, under

WIDTH, HIDDEN, EXPERTS, LAYERS = 10, 14, 5, 3
QUERIES, KEYS = 4 * 6, 2 * 6


def linen_layer(layers=1):
    return {
        **muon(WIDTH, QUERIES, "query/kernel", batch=layers),
        **muon(WIDTH, KEYS, "key/kernel", "value/kernel", batch=layers),
        **muon(QUERIES, WIDTH, "out", batch=layers),
        **muon(WIDTH, HIDDEN, "wi", batch=2 * layers),  # gate and up
        **muon(HIDDEN, WIDTH, "wo", batch=layers),
        **muon(WIDTH, EXPERTS, "router", batch=layers),
        **muon(WIDTH, HIDDEN, "up", batch=EXPERTS * layers),
        **muon(HIDDEN, WIDTH, "down", batch=EXPERTS * layers),
        **adamw("query/bias", "key/bias", "value/bias", "bias", "norm/rms/scale"),
    }


def nnx_layer(layers=1):
    return {
        **muon(WIDTH, 8, "wq_a/kernel", batch=layers),
        **muon(8, QUERIES, "wq_b/kernel", batch=layers),
        **muon(WIDTH, QUERIES, "wkv", batch=2 * layers),  # keys and values
        **muon(QUERIES, WIDTH, "out/kernel", batch=layers),
        **muon(WIDTH, HIDDEN, "wi", batch=EXPERTS * layers),
        **muon(HIDDEN, WIDTH, "wo", batch=EXPERTS * layers),
        **adamw("wq_a/bias", "wq_b/bias", "out/bias", "norm/scale"),
    }


def separate(prefix, layer):
    return {
        k: v for i in range(LAYERS) for k, v in under(f"{prefix}{i}", layer).items()
    }


LINEN_ENDS = adamw("embed/embedding", "to_tokens/kernel", "to_tokens/bias")


@pytest.mark.parametrize("scan_axis", [None, 0, 1])
@pytest.mark.parametrize("wrap", [dict, flax.core.freeze])
def test_linen(scan_axis, wrap):
    params = wrap(linen_params(scan_axis))
    axes = axes_from_logical()(params)
    layers = separate("layer_", linen_layer())
    if scan_axis is not None:
        layers = under("layers", linen_layer(LAYERS))
    expected = LINEN_ENDS | layers
    assert table_of(optax_muon.plan(nn.unbox(params), axes)) == expected
    assert table_of(optax_muon.plan(params, axes)) == expected  # still boxed


@pytest.mark.parametrize("scan_axis", [None, 0, 1])
@pytest.mark.parametrize("state", [False, True], ids=["model", "state"])
def test_nnx(scan_axis, state):
    model = nnx_model(scan_axis)
    params = nnx.state(model, nnx.Param)
    # The biases of wq_a and out have no names, and are of rank 2 in stacks.
    others = None if scan_axis is None else stacked("layers", axis=scan_axis)
    axes = axes_from_logical(others=others)(params if state else model)
    layers = separate("blocks/", nnx_layer())
    if scan_axis is not None:
        layers = under("layers", nnx_layer(LAYERS))
    expected = adamw("embed/embedding") | layers
    assert table_of(optax_muon.plan(params, axes)) == expected
    assert table_of(optax_muon.plan(nnx.to_pure_dict(params), axes)) == expected


def test_updates_are_those_of_axes_written_by_hand():
    boxed = {"layer_0": linen_params()["layer_0"]}
    query, out = MatrixAxes(0, (1, 2)), MatrixAxes((0, 1), 2)
    by_hand = {
        **{x: {"kernel": query, "bias": None} for x in ("query", "key", "value")},
        **{"out": out, "wi": MatrixAxes(0, 2), "wo": MatrixAxes(0, 1)},
        **{"up": MatrixAxes(1, 2), "down": MatrixAxes(1, 2), "bias": None},
        **{"router": MatrixAxes(0, 1), "norm": None},
    }
    params = random_like(nn.unbox(boxed))
    updates = []
    for axes in (axes_from_logical()(boxed), {"layer_0": by_hand}):
        tx = optax_muon.muon(0.1, orthogonalizer=probe, matrix_axes=axes)
        updates.append(tx.update(params, tx.init(params), params)[0])
    # The same program on the same numbers.
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_in_nnx_optimizer_the_axes_hold_in_init_and_update():
    """It hands variables to `init` and bare arrays to `update`, which have no names."""
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: NNXLayer(nnx.Rngs(0)))
        nnx.update(model, random_like(nnx.state(model, nnx.Param)))
        axes = axes_from_logical()(model)
        tx = optax_muon.muon(0.1, orthogonalizer=probe, matrix_axes=axes)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        gradients = random_like(nnx.state(model, nnx.Param), seed=1)
        bare = nnx.to_pure_dict(gradients)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        optimizer.update(model, gradients)
    updates, _ = tx.update(bare, tx.init(params), params)
    expected = optax.apply_updates(params, updates)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, after, expected)
