"""`route`: what `muon` does with its two chains, for chains of a user's own."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_muon import (
    MatrixAxes,
    equilibrate,
    flax_matrix_axes,
    flax_norm_balls,
    muon,
    normalize_neurons,
    plan,
    route,
    scale_by_lmo,
    scale_by_muon,
    scale_by_shape,
)
from tests.recipes import assert_close, gradients, model, run


def hand_made(**where):
    matrices = optax.chain(
        scale_by_muon(0.9, scale=None, **where),
        scale_by_shape("adam_rms", **where),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(1e-2),
    )
    others = optax.adamw(1e-3, b2=0.95, weight_decay=0.1)
    return route(matrices, others, **where)


@pytest.mark.parametrize("axes", [None, lambda path, leaf: MatrixAxes(1, 0)])
def test_muon_made_by_hand(axes):
    params = model()
    if axes is not None:
        params = {"up": params["up"]["kernel"], "down": params["down"]["kernel"]}
    ready = muon(1e-2, weight_decay=0.1, adam_learning_rate=1e-3, matrix_axes=axes)
    ours, theirs = (
        run(tx, params, gradients(params))
        for tx in (hand_made(matrix_axes=axes), ready)
    )
    assert_close(ours.updates, theirs.updates)


def transposed(path, leaf):
    """Kernels [out, in], as no Flax model has them."""
    del path, leaf
    return MatrixAxes(1, 0)


def none_at_all(path, leaf):
    del path, leaf


def kernels():
    params = model()
    return {"up": params["up"]["kernel"], "down": params["down"]["kernel"]}


def steps_of(tx):
    params = kernels()
    return run(tx, params, gradients(params)).updates


def assert_same(steps, others):
    jax.tree.map(np.testing.assert_array_equal, steps, others)


def by_muon(**told):
    return muon(
        1e-2,
        matrix_axes=transposed,
        preconditioner=equilibrate(**told),
        normalizer=normalize_neurons(**told),
    )


def by_route(**told):
    matrices = optax.chain(
        scale_by_muon(scale=None, **told), scale_by_shape("mup", **told)
    )
    return route(matrices, optax.identity(), matrix_axes=transposed)


@pytest.mark.parametrize("make", [by_muon, by_route])
def test_parts_take_the_axes_of_what_they_are_in(make):
    untold = steps_of(make())
    assert_same(untold, steps_of(make(matrix_axes=transposed)))
    others = steps_of(make(matrix_axes=flax_matrix_axes))  # a part's own count
    assert not np.allclose(untold[0]["up"], others[0]["up"])


def test_axes_are_told_to_no_other_parts():
    shaped = scale_by_shape("mup")
    inner = route(shaped, optax.identity(), matrix_axes=transposed)
    for outer in (transposed, flax_matrix_axes):  # the innermost axes count
        nested = route(inner, optax.identity(), matrix_axes=outer)
        assert_same(steps_of(nested), steps_of(inner))
    through = route(
        route(shaped, optax.identity()), optax.identity(), matrix_axes=transposed
    )
    assert_same(steps_of(through), steps_of(inner))

    failing = scale_by_shape("mup", matrix_axes=none_at_all)
    with pytest.raises(ValueError, match="sends these leaves to AdamW"):
        route(failing, optax.identity(), matrix_axes=transposed).init(kernels())
    flax = steps_of(scale_by_shape("mup", matrix_axes=flax_matrix_axes))
    beside = route(optax.identity(), shaped, matrix_axes=none_at_all)
    for alone in (shaped, beside):
        assert_same(steps_of(alone), flax)
    assert not np.allclose(flax[0]["up"], steps_of(inner)[0]["up"])


@pytest.mark.parametrize("cached", [jax.jit, jax.checkpoint])
def test_traces_in_one_route_serve_no_other(cached):
    shaped = scale_by_shape("mup")
    update = cached(lambda updates, state, params=None: shaped.update(updates, state))
    part = optax.GradientTransformation(shaped.init, update)
    here = steps_of(route(part, optax.identity(), matrix_axes=transposed))
    there = steps_of(route(part, optax.identity()))
    assert_same(there, steps_of(route(shaped, optax.identity())))
    assert not np.allclose(here[0]["up"], there[0]["up"])


def test_norm_balls_take_the_axes_of_what_they_are_in():
    told = scale_by_lmo(flax_norm_balls(inner=transposed))
    untold = route(scale_by_lmo(), optax.identity(), matrix_axes=transposed)
    assert_same(steps_of(untold), steps_of(told))
    assert not np.allclose(steps_of(untold)[0]["up"], steps_of(scale_by_lmo())[0]["up"])


def test_a_plan_is_the_same_wherever_it_is_asked_for():
    found = []

    def mask(params):
        found.append(plan(kernels()))
        return jax.tree.map(lambda _: True, params)

    tx = muon(1e-2, matrix_axes=transposed, weight_decay=0.1, weight_decay_mask=mask)
    tx.init(kernels())
    assert len(found) > 0
    assert all(one == plan(kernels()) for one in found)


def test_transformations_can_be_pickled_by_value():
    """In an interpreter whose functions no type checker has wrapped."""
    code = (
        "import cloudpickle, jax.numpy as jnp, optax, optax_muon as m\n"
        "params = {'kernel': jnp.eye(2, 3)}\n"
        "by_hand = m.route(m.scale_by_muon(), optax.adam(1e-3))\n"
        "for tx in m.muon(1e-3), m.normuon(1e-3), by_hand:\n"
        "    tx = cloudpickle.loads(cloudpickle.dumps(tx))\n"
        "    tx.update(params, tx.init(params), params)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_extra_arguments_reach_both_chains():
    def shifted(updates, state, params=None, *, by, **extra_args):
        return jax.tree.map(lambda x: x + by, updates), state

    part = optax.GradientTransformationExtraArgs(optax.init_empty_state, shifted)
    params = model()
    tx = route(part, part)
    updates, _ = tx.update(params, tx.init(params), params, by=1.0)
    assert_close(updates, jax.tree.map(lambda x: x + 1, params))


def test_what_cannot_be_routed():
    for name, parts in (
        ("matrices", (0.1, optax.adam(1e-3))),
        ("others", (scale_by_muon(), optax.adam)),
    ):
        with pytest.raises(
            TypeError, match=rf"{name}=.* is no optax.Gradient.*such as"
        ):
            route(*parts)
    tx, params = hand_made(), model()
    with pytest.raises(ValueError, match=r"(?s)strange.*matrix_axes"):
        tx.init({"strange": jnp.ones((2, 3, 4))})
    state, (gradient,) = tx.init(params), gradients(params, 1)
    with pytest.raises(ValueError, match=r"route got gradients unlike the parameters"):
        tx.update({"up": gradient["up"]}, state, params)
