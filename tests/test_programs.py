"""Every recipe in what JAX makes of its step: loops, batches, compiled, exported."""

import contextlib

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_muon
from tests.recipes import (
    assert_close,
    every_kind,
    gradients,
    matrices,
    model,
    run,
    types,
)

COMPILED = "/jax/core/compile/backend_compile_duration"
TRACED = "/jax/core/compile/jaxpr_trace_duration"


@contextlib.contextmanager
def compilations():
    """A list of the functions that JAX traces or compiles in the block."""
    found = []

    def listen(event, duration, fun_name="", **details):
        if event in (COMPILED, TRACED):
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_compilations_are_counted():
    double = jax.jit(lambda x: 2 * x)
    x, y = jnp.ones(3), jnp.ones(4)
    with compilations() as found:
        double(x)
        seen = len(found)
        double(x)
        assert seen > 0
        assert len(found) == seen
        double(y)
        assert len(found) > seen


def train_step(tx):
    def step(params, state, grad):
        updates, state = tx.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    return step


def wrap(recipe, wrapper):
    if wrapper == "alone":
        return recipe.make()
    factory = optax.inject_hyperparams(recipe.factory, static_args=recipe.static_args)
    return factory(**recipe.arguments)


@every_kind
@pytest.mark.parametrize("wrapper", ["alone", "injected"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_later_steps_compile_nothing(recipe, wrapper, jit):
    plain, tx = recipe.plain, wrap(recipe, wrapper)
    step = jax.jit(train_step(tx)) if jit else train_step(tx)
    params, state = step(plain.params[0], tx.init(plain.params[0]), plain.gradients[0])
    with compilations() as found:
        for grad in plain.gradients[1:]:
            params, state = step(params, state, grad)
    assert found == []


def test_equal_optimizers_share_one_program():
    """What an eager `optax.inject_hyperparams`, which rebuilds them, relies on."""
    params = matrices()
    (grad,) = gradients(params, 1)
    tx = optax_muon.scale_by_muon(0.9, orthogonalizer=optax_muon.NewtonSchulz("cubic"))
    tx.update(grad, tx.init(params))
    with compilations() as found:
        for momentum in (0.9, 0.8):
            cubic = optax_muon.NewtonSchulz("cubic")
            tx = optax_muon.scale_by_muon(momentum, orthogonalizer=cubic)
            tx.update(grad, tx.init(params))
    assert found == []


@every_kind
def test_scan(recipe):
    plain = recipe.plain
    step = train_step(recipe.make())

    @jax.jit
    def train(params, state, grads):
        def body(carry, grad):
            return step(*carry, grad), None

        return jax.lax.scan(body, (params, state), grads)[0]

    stacked = jax.tree.map(lambda *grads: jnp.stack(grads), *plain.gradients)
    params, state = train(plain.params[0], plain.states[0], stacked)
    assert_close(params, plain.params[-1])
    assert_close(state, plain.states[-1])


@every_kind
def test_vmap_over_an_ensemble(recipe):
    plain, tx = recipe.plain, recipe.make()
    # The second member starts elsewhere and gets the gradients in another order.
    start = jax.tree.map(lambda p: p / 2, plain.params[0])
    second = run(tx, start, plain.gradients[::-1])

    def stack(*trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    params = stack(plain.params[0], start)
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(train_step(tx)))
    for grads in zip(plain.gradients, second.gradients, strict=True):
        params, state = step(params, state, stack(*grads))
    assert_close(params, stack(plain.params[-1], second.params[-1]))
    assert_close(state, stack(plain.states[-1], second.states[-1]))


@every_kind
def test_ahead_of_time(recipe):
    plain = recipe.plain
    step = jax.jit(train_step(recipe.make()))
    arguments = plain.params[0], plain.states[0], plain.gradients[0]
    abstract = jax.eval_shape(lambda: arguments)
    params, state = step.lower(*abstract).compile()(*arguments)
    assert_close(params, plain.params[1])
    assert_close(state, plain.states[1])


@every_kind
def test_donation(recipe):
    plain = recipe.plain
    # A warning, here an error, if a buffer is of no use for an output.
    step = jax.jit(train_step(recipe.make()), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, plain.params[0])
    state = recipe.make().init(params)
    for grad in plain.gradients:
        given = jax.tree.leaves((params, state))
        params, state = step(params, state, grad)
        assert all(leaf.is_deleted() for leaf in given)
    assert_close(params, plain.params[-1])
    assert_close(state, plain.states[-1])


def flat_step(recipe):
    """The step on a list of leaves, for jax.export knows no types of states."""
    plain = recipe.plain
    arguments = plain.params[0], plain.states[0], plain.gradients[0]
    leaves, treedef = jax.tree.flatten(arguments)
    step = train_step(recipe.make())

    def flat(*leaves):
        return jax.tree.leaves(step(*jax.tree.unflatten(treedef, leaves)))

    return jax.jit(flat), leaves


@every_kind
def test_export_and_call(recipe):
    step, leaves = flat_step(recipe)
    stored = jax.export.export(step)(*leaves).serialize()
    results = jax.export.deserialize(stored).call(*leaves)
    expected = jax.tree.leaves((recipe.plain.params[1], recipe.plain.states[1]))
    assert_close(list(results), expected)


@every_kind
@pytest.mark.parametrize(
    "platforms", [["tpu"], ["cuda"], ["cpu", "tpu", "cuda"]], ids="+".join
)
def test_export_for_other_platforms(recipe, platforms):
    step, leaves = flat_step(recipe)
    exported = jax.export.export(step, platforms=platforms)(*leaves)
    assert exported.platforms == tuple(platforms)
    assert exported.serialize()


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_export_takes_the_dtype_of_the_platform(platform):
    """Not that of the platform that exports: bfloat16 operands on TPU and GPU."""
    tx, params = optax_muon.scale_by_muon(), matrices()
    update = jax.jit(lambda grad: tx.update(grad, tx.init(grad))[0])
    module = jax.export.export(update, platforms=[platform])(params).mlir_module()
    assert ("bf16" in module) == (platform != "cpu")


def test_a_state_of_weak_types_would_be_noticed():
    """`types` tells apart what jit compiles twice for."""
    state = optax_muon.find_state(optax_muon.muon(1e-2).init(model()))
    weak = state.replace(count=jnp.asarray(0))
    assert types(weak) != types(state.replace(count=jnp.int32(0)))
