"""monitor: its numbers against float64, its schedule, its cost, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_muon
from optax_muon import MatrixAxes, find_state, monitor, muon, read_records
from tests import followed
from tests.recipes import assert_identical, gradients, matrices, model, run

EVERY_METRIC = {
    "update_rms",
    "update_nonfinite",
    "gradient_nonfinite",
    "update_sigma_min",
    "update_sigma_max",
    "update_orthogonality_error",
    "update_cosine",
    "momentum_spectral_norm",
    "momentum_stable_rank",
    "weight_spectral_norm",
    "weight_stable_rank",
}
SIZE = {"update_rms", "update_nonfinite", "gradient_nonfinite"}


def metrics_of(records, path):
    """The metrics of one leaf."""
    return {
        key.removeprefix(f"{path}/"): np.asarray(value)
        for key, value in records.items()
        if key.startswith(f"{path}/")
    }


def expected(update, before, momentum, weight):
    """The metrics of one finite matrix, by their definitions, but for the error."""
    found = {
        "update_rms": np.sqrt((update**2).mean()),
        "update_nonfinite": 0,
        "gradient_nonfinite": 0,
        "update_cosine": (update * before).sum()
        / (np.linalg.norm(update) * np.linalg.norm(before)),
    }
    s = np.linalg.svd(update, compute_uv=False)
    found["update_sigma_min"], found["update_sigma_max"] = s[[-1, 0]] / np.sqrt(
        (s**2).mean()
    )
    for name, x in (("momentum", momentum), ("weight", weight)):
        s = np.linalg.svd(x, compute_uv=False)
        found[f"{name}_spectral_norm"] = s[0]
        found[f"{name}_stable_rank"] = (s**2).sum() / s[0] ** 2
    return found


def test_numbers_of_every_matrix():
    """After three steps, matrix by matrix, of leaves with batches and with parts.

    Their Krylov spaces are exhausted; 2e-3 is rounding, see test_singular_values, and
    of the cosine bfloat16's, 2^-9 of each entry.
    """
    params = followed.draw(0)
    tx = monitor(
        muon(0.1, matrix_axes=followed.AXES), every=3, matrix_axes=followed.AXES
    )
    steps = run(tx, params, [followed.draw(seed) for seed in (1, 2, 3)])
    records = read_records(steps.states[-1])
    assert records["step"] == 3
    trees = (
        steps.updates[2],
        steps.updates[1],
        find_state(steps.states[-1]).momentum,
        steps.params[2],
    )
    for name, (shape, axes) in followed.LEAVES.items():
        found = metrics_of(records, name)
        assert set(found) == EVERY_METRIC
        columns = [followed.matrices_of(tree[name], axes) for tree in trees]
        batch = axes.view(shape).matrices[0]
        for i, of_matrix in enumerate(zip(*columns, strict=True)):
            place = i % batch * (len(columns[0]) // batch) + i // batch
            for metric, value in expected(*map(np.float64, of_matrix)).items():
                np.testing.assert_allclose(
                    found[metric].ravel()[place], value, rtol=2e-3, atol=2e-3
                )


def test_shapes_of_records():
    axes = {
        "one": MatrixAxes(0, 1),
        "layers": MatrixAxes(2, 3),
        "fused": MatrixAxes(1, 2, fan_out_parts=(4, 2)),
    }
    params = {
        "one": jnp.ones((3, 4)),
        "layers": jnp.ones((5, 2, 3, 4)),
        "fused": jnp.ones((5, 4, 6)),
    }
    tx = monitor(muon(0.1, matrix_axes=axes), matrix_axes=axes)
    records = jax.eval_shape(lambda params: read_records(tx.init(params)), params)
    expected = {"step": (), "one": (), "layers": (5, 2), "fused": (5, 2)}
    for path, value in records.items():
        assert value.shape == expected[path.split("/")[0]], path


def test_leaves_of_adamw_have_sizes_alone():
    params = model()
    tx = monitor(muon(0.1), every=1)
    [grad] = gradients(params, 1)
    records = read_records(run(tx, params, [grad]).states[-1])
    assert set(metrics_of(records, "up/bias")) == SIZE
    assert set(metrics_of(records, "embed/embedding")) == SIZE
    assert set(metrics_of(records, "up/kernel")) == EVERY_METRIC


def test_updates_pass_through_and_every_third_is_measured():
    params = model()
    grads = gradients(params, 7)
    plain = run(muon(0.1), params, grads, jit=False)
    steps = run(monitor(muon(0.1), every=3), params, grads, jit=False)
    assert_identical(steps.updates, plain.updates)
    assert_identical(steps.states[-1].inner, plain.states[-1])
    taken = [int(read_records(state)["step"]) for state in steps.states]
    assert taken == [0, 0, 0, 3, 3, 3, 6, 6]
    assert_identical(steps.states[4].records, steps.states[3].records)
    assert not any(map(np.any, read_records(steps.states[2]).values()))


def test_shares_that_are_not_finite():
    params = matrices()
    [grad] = gradients(params, 1)
    grad["up"]["kernel"] = grad["up"]["kernel"].at[0, :2].set(jnp.nan)
    tx = monitor(muon(0.1), every=1)
    records = read_records(run(tx, params, [grad]).states[-1])
    np.testing.assert_allclose(records["up/kernel/gradient_nonfinite"], 2 / 24)
    assert records["up/kernel/update_nonfinite"] == 1  # all of a polar factor
    assert np.isnan(records["up/kernel/update_sigma_max"])
    assert np.isfinite(records["up/kernel/weight_spectral_norm"])
    assert all(map(np.isfinite, metrics_of(records, "down/kernel").values()))


def test_no_step_before_and_no_step_at_all():
    params = matrices()
    grads = [optax.tree.zeros_like(params), *gradients(params, 1)]
    steps = run(monitor(muon(0.1), every=1), params, grads)
    still, moved = map(read_records, steps.states[1:])
    for metric in ("rms", "sigma_min", "sigma_max", "cosine"):
        assert still[f"up/kernel/update_{metric}"] == 0
    assert moved["up/kernel/update_cosine"] == 0
    assert moved["up/kernel/update_sigma_max"] >= 1


def test_inside_of_a_chain_and_partly():
    """Beside a polar factor's band that of a decayed step, and metrics picked out."""
    params = matrices()
    svd = optax_muon.scale_by_muon(orthogonalizer=optax_muon.Svd())
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        monitor(svd, every=1, metrics=("band",)),
        optax.add_decayed_weights(1.0),
    )
    records = read_records(run(tx, params, gradients(params, 1)).states[-1])
    assert len(records) == 1 + 2 * 3
    for name in ("up/kernel", "down/kernel"):  # to float32's rounding
        np.testing.assert_allclose(records[f"{name}/update_sigma_min"], 1, atol=1e-5)
        np.testing.assert_allclose(records[f"{name}/update_sigma_max"], 1, atol=1e-5)
        assert records[f"{name}/update_orthogonality_error"] < 1e-5


def test_records_of_an_nnx_optimizer_are_arrays():
    module = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, monitor(muon(0.1), every=1), wrt=nnx.Param)
    optimizer.update(module, nnx.grad(lambda m: (m(jnp.eye(4)) ** 2).sum())(module))
    records = read_records(optimizer.opt_state)
    assert all(isinstance(value, jax.Array) for value in records.values())
    assert records["step"] == 1
    assert set(metrics_of(records, "kernel")) == EVERY_METRIC


def test_other_optimizers():
    """SOAP has a momentum elsewhere, Shampoo none."""
    params = matrices()
    soap, shampoo = (
        read_records(monitor(tx).init(params))
        for tx in (optax_muon.scale_by_soap(), optax_muon.scale_by_shampoo())
    )
    assert set(metrics_of(soap, "up/kernel")) == EVERY_METRIC
    without = {name for name in EVERY_METRIC if not name.startswith("momentum")}
    assert set(metrics_of(shampoo, "up/kernel")) == without


def test_what_has_no_entries_has_no_records():
    params = {"empty": jnp.ones((0, 4)), "full": jnp.ones((3, 4))}
    tx = monitor(muon(0.1), every=1)
    records = read_records(run(tx, params, [params]).states[-1])
    assert not metrics_of(records, "empty")
    assert metrics_of(records, "full")


def test_without_the_cosine_no_update_is_kept():
    tx = monitor(muon(0.1), metrics=["size", "band", "momentum", "weight"])
    assert not jax.tree.leaves(tx.init(model()).previous)
    kept = monitor(muon(0.1)).init(model()).previous
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    assert len(jax.tree.leaves(kept)) == 2


def test_extra_arguments_reach_inner():
    def scaled(updates, state, params=None, *, value, **extra_args):
        return optax.tree.scale(value, updates), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, scaled)
    params = matrices()
    tx = monitor(inner, every=1, metrics=["size"])
    updates, _ = tx.update(params, tx.init(params), value=2.0)
    assert_identical(updates, optax.tree.scale(2.0, params))


REFUSED = {
    "every": (r"every=0 must be a positive int", {"every": 0}),
    "an array": (r"every=.*static_args", {"every": jnp.int32(3)}),
    "a name": (r"metrics='bands' is not known; valid names", {"metrics": ["bands"]}),
    "a string": (r"metrics='band' must be a collection", {"metrics": "band"}),
    "nothing": (r"names nothing to record", {"metrics": []}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_are_checked(name):
    message, arguments = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        monitor(muon(0.1), **arguments)


def test_inner_must_be_a_transformation():
    with pytest.raises(TypeError, match=r"inner=.*such as optax_muon.muon"):
        monitor(muon)


def test_a_momentum_that_is_not_there():
    tx = monitor(optax_muon.scale_by_shampoo(), metrics=["momentum"])
    with pytest.raises(ValueError, match=r"(?s)no MuonState.*down/kernel.*up/kernel"):
        tx.init(matrices())


def test_two_momenta_of_one_leaf():
    twice = optax.chain(optax_muon.accumulate_momentum(), optax_muon.scale_by_muon())
    with pytest.raises(ValueError, match=r"more than one momentum of \['down/kernel'"):
        monitor(twice).init(matrices())


def test_weights_need_params():
    params = matrices()
    tx = monitor(muon(0.1))
    with pytest.raises(ValueError, match=r"without params; .* leave 'weight' out"):
        tx.update(params, tx.init(params))


def test_a_state_of_other_metrics_or_parameters():
    params = matrices()
    state = monitor(muon(0.1), metrics=["size"]).init(params)
    with pytest.raises(ValueError, match=r"the state holds \['size'\]"):
        monitor(muon(0.1)).update(params, state, params)
    tx = monitor(optax.sgd(0.1), metrics=["size"])
    with pytest.raises(ValueError, match=r"holds 'size' of 2 leaves, but 1 have"):
        tx.update({"up": params["up"]}, tx.init(params), {"up": params["up"]})


def test_read_records_needs_exactly_one():
    with pytest.raises(ValueError, match=r"0 MonitorState.*wrap the optimizer"):
        read_records(muon(0.1).init(matrices()))
    two = optax.chain(monitor(optax.sgd(0.1)), monitor(optax.sgd(0.1)))
    with pytest.raises(ValueError, match="2 MonitorState"):
        read_records(two.init(matrices()))
