"""Every recipe inside optax's wrappers and Flax's trainers: the same steps as alone."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optax_muon
from tests.recipes import (
    NARROW,
    RECIPES,
    assert_close,
    assert_identical,
    every_recipe,
    gradients,
    matrices,
    model,
    run,
    types,
)
from tests.wide import wide_unless


def times(factor, tree):
    return jax.tree.map(lambda x: factor * x, tree)


def assert_holds(recipe, state, expected_state):
    """`find_state` finds the `MuonState` that the recipe alone would have by now."""
    if not recipe.has_muon_state:
        with pytest.raises(ValueError, match="holds 0 MuonState"):
            optax_muon.find_state(state)
        return
    found = optax_muon.find_state(state)
    expected = optax_muon.find_state(expected_state)
    assert found.count == expected.count
    # By leaves: masks add MaskedNodes, and NNX wraps each array into a variable.
    assert_close(jax.tree.leaves(found), jax.tree.leaves(expected))


@every_recipe
def test_chain(recipe):
    plain, alone = recipe.plain, recipe.make()
    tx = optax.chain(optax.scale(2.0), recipe.make(), optax.scale(0.5))
    steps = run(tx, plain.params[0], plain.gradients, jit=False)
    state = alone.init(plain.params[0])
    for k, grad in enumerate(plain.gradients):
        updates, state = alone.update(times(2, grad), state, steps.params[k])
        assert_close(steps.updates[k], times(0.5, updates))
        assert_holds(recipe, steps.states[k + 1], state)


@every_recipe
def test_named_chain(recipe):
    plain = recipe.plain
    tx = optax.named_chain(("ours", recipe.make()), ("rest", optax.identity()))
    steps = run(tx, plain.params[0], plain.gradients, jit=False)
    assert_close(steps.updates, plain.updates)
    assert_holds(recipe, steps.states[-1], plain.states[-1])


def with_a_stranger(tree):
    """`tree`, and beside it a leaf that the recipe must neither see nor touch."""
    return {**tree, "stranger": jnp.arange(3.0)}


def without_strangers(tree):
    return {key: part for key, part in tree.items() if key != "stranger"}


def mask(tree):
    """True for the recipe's own leaves."""
    own = jax.tree.map(lambda _: True, without_strangers(tree))
    return {**own, "stranger": False}


def labels(tree):
    return jax.tree.map(lambda own: "recipe" if own else "frozen", mask(tree))


@every_recipe
@pytest.mark.parametrize("as_function", [False, True])
def test_partition(recipe, as_function):
    plain = recipe.plain
    params = with_a_stranger(plain.params[0])
    tx = optax.partition(
        {"recipe": recipe.make(), "frozen": optax.set_to_zero()},
        labels if as_function else labels(params),
    )
    grads = [with_a_stranger(grad) for grad in plain.gradients]
    steps = run(tx, params, grads, jit=False)
    assert_close([without_strangers(u) for u in steps.updates], plain.updates)
    assert_identical(steps.params[-1]["stranger"], params["stranger"])
    assert_holds(recipe, steps.states[-1], plain.states[-1])


@every_recipe
@pytest.mark.parametrize("as_function", [False, True])
def test_masked(recipe, as_function):
    plain = recipe.plain
    params = with_a_stranger(plain.params[0])
    tx = optax.masked(recipe.make(), mask if as_function else mask(params))
    grads = [with_a_stranger(grad) for grad in plain.gradients]
    steps = run(tx, params, grads, jit=False)
    assert_close([without_strangers(u) for u in steps.updates], plain.updates)
    for grad, updates in zip(grads, steps.updates, strict=True):
        assert_identical(updates["stranger"], grad["stranger"])
    assert_holds(recipe, steps.states[-1], plain.states[-1])


@every_recipe
def test_multi_steps(recipe):
    plain = recipe.plain
    tx = optax.MultiSteps(recipe.make(), every_k_schedule=2)
    # Each gradient comes as 1/2 and 3/2 of itself, whose mean it is.
    halves = [times(part, g) for g in plain.gradients[:2] for part in (0.5, 1.5)]
    steps = run(tx, plain.params[0], halves)
    zeros = optax.tree.zeros_like(plain.gradients[0])
    assert_close(steps.updates[0::2], [zeros, zeros])
    assert_close(steps.updates[1::2], plain.updates[:2])
    assert_holds(recipe, steps.states[1], plain.states[0])
    assert_holds(recipe, steps.states[-1], plain.states[2])


@every_recipe
def test_apply_if_finite(recipe):
    plain = recipe.plain
    tx = optax.apply_if_finite(recipe.make(), max_consecutive_errors=3)
    first, second, third = plain.gradients
    broken = {**second, "up": {**second["up"], "kernel": jnp.full((4, 6), jnp.nan)}}
    steps = run(tx, plain.params[0], [first, broken, second, third])
    assert steps.states[2].total_notfinite == 1
    assert_identical(steps.states[2].inner_state, steps.states[1].inner_state)
    assert_identical(steps.params[2], steps.params[1])
    del steps.updates[1]
    assert_close(steps.updates, plain.updates)
    assert_holds(recipe, steps.states[-1], plain.states[-1])


@every_recipe
def test_schedule_free(recipe):
    plain, alone = recipe.plain, recipe.make()
    tx = optax.contrib.schedule_free(recipe.make(), learning_rate=1e-2, b1=0.9)
    steps = run(tx, plain.params[0], plain.gradients, jit=False)
    # Its z moves by the recipe's steps from the parameters, where the gradients are.
    state, z = alone.init(plain.params[0]), plain.params[0]
    for k, grad in enumerate(plain.gradients):
        updates, state = alone.update(grad, state, steps.params[k])
        z = optax.apply_updates(z, updates)
        assert_close(steps.states[k + 1].z, z)
        assert_holds(recipe, steps.states[k + 1], state)


@every_recipe
def test_lookahead(recipe):
    plain = recipe.plain
    tx = optax.lookahead(recipe.make(), sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(plain.params[0])
    steps = run(tx, params, plain.gradients, jit=False)
    assert_close([pair.fast for pair in steps.params[:3]], plain.params[:3])
    start, end = plain.params[0], plain.params[3]
    halfway = jax.tree.map(lambda a, b: (a + b) / 2, start, end)
    assert_close(steps.params[3].fast, halfway)
    assert_close(steps.params[3].slow, halfway)
    assert_holds(recipe, steps.states[-1], plain.states[-1])


@every_recipe
def test_train_state(recipe):
    plain, tx = recipe.plain, recipe.make()
    state = TrainState.create(apply_fn=None, params=plain.params[0], tx=tx)
    for grad in plain.gradients:
        state = state.apply_gradients(grads=grad)
    assert_close(state.params, plain.params[-1])
    assert_holds(recipe, state.opt_state, plain.states[-1])


class Holder(nnx.Module):
    """A module whose parameters are the leaves of a nested dict."""

    def __init__(self, tree):
        for key, value in tree.items():
            part = Holder(value) if isinstance(value, dict) else nnx.Param(value)
            setattr(self, key, part)


@every_recipe
def test_nnx_optimizer(recipe):
    plain = recipe.plain
    module = Holder(plain.params[0])
    optimizer = nnx.Optimizer(module, recipe.make(), wrt=nnx.Param)

    def loss(module, grad):  # linear in the parameters, so that its gradient is `grad`
        params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        return optax.tree.vdot(params, grad)

    @nnx.jit
    def step(module, optimizer, grad):
        optimizer.update(module, nnx.grad(loss)(module, grad))

    for grad in plain.gradients:
        step(module, optimizer, grad)
    assert_close(nnx.to_pure_dict(nnx.state(module, nnx.Param)), plain.params[-1])
    assert_holds(recipe, optimizer.opt_state, plain.states[-1])


def injected(recipe):
    factory = optax.inject_hyperparams(recipe.factory, static_args=recipe.static_args)
    return factory(**recipe.arguments)


@every_recipe
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_inject_hyperparams(recipe, jit):
    plain = recipe.plain
    steps = run(injected(recipe), plain.params[0], plain.gradients, jit=jit)
    assert_close(steps.updates, plain.updates)
    assert_holds(recipe, steps.states[-1], plain.states[-1])


def with_number(argument):
    """Each recipe that takes a number for `argument`, together with that name."""
    return [
        pytest.param(
            recipe,
            argument,
            id=f"{name}-{argument}",
            marks=() if name in NARROW else pytest.mark.wide,
        )
        for name, recipe in RECIPES.items()
        if argument in inspect.signature(recipe.factory).parameters
        and not callable(recipe.arguments.get(argument))
    ]


@pytest.mark.parametrize(
    ("recipe", "argument"),
    with_number("learning_rate")
    + with_number("momentum")
    + with_number("weight_decay")
    + with_number("adam_b1"),
)
def test_injected_numbers_can_be_set_between_steps(recipe, argument):
    plain, tx = recipe.plain, injected(recipe)
    update = jax.jit(tx.update)
    _, state = update(plain.gradients[0], tx.init(plain.params[0]), plain.params[0])
    state.hyperparams[argument] = jnp.float32(0.5)
    updates, _ = update(plain.gradients[1], state, plain.params[1])
    other = recipe.factory(**{**recipe.arguments, argument: 0.5})
    expected, _ = other.update(plain.gradients[1], plain.states[1], plain.params[1])
    assert_close(updates, expected)


def test_a_rule_needs_static_args():
    """Why `static_args`: optax calls each function with a step count, as a schedule."""
    rule = optax_muon.flax_matrix_axes
    tx = optax.inject_hyperparams(optax_muon.muon)(1e-2, matrix_axes=rule)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        tx.init(matrices())


@every_recipe
def test_numpy_arrays(recipe):
    plain = recipe.plain
    arguments = plain.gradients[1], plain.states[1], plain.params[1]
    updates, state = recipe.make().update(*jax.tree.map(np.asarray, arguments))
    assert_close((updates, state), (plain.updates[1], plain.states[2]))


@pytest.mark.parametrize(
    "name",
    wide_unless(
        NARROW.__contains__, [n for n, r in RECIPES.items() if r.params is model]
    ),
)
def test_narrow_gradients_round_no_step(name):
    """Parameters of float32: a step is not rounded to the gradients' bfloat16, 2^-9."""
    recipe = RECIPES[name]
    params = recipe.params()
    narrow = jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradients(params))
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), narrow)
    of_narrow, of_wide = (run(recipe.make(), params, grads) for grads in (narrow, wide))
    assert_close(of_narrow.updates, of_wide.updates)
    assert types(of_narrow.states) == types(of_wide.states)


@every_recipe
def test_update_takes_extra_arguments(recipe):
    plain, tx = recipe.plain, recipe.make()
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    updates, state = tx.update(
        plain.gradients[0], plain.states[0], plain.params[0], value=1.0, other=None
    )
    assert_close(updates, plain.updates[0])
    assert_holds(recipe, state, plain.states[1])


def test_extra_arguments_reach_the_normalizer():
    def multiply(updates, state, params=None, *, value, **extra_args):
        return times(value, updates), state

    scaling = optax.GradientTransformationExtraArgs(optax.init_empty_state, multiply)
    params = matrices()
    (grad,) = gradients(params, 1)
    plain, scaled = (
        tx.update(grad, tx.init(params), params, value=2.0)[0]
        for tx in (optax_muon.muon(1e-2), optax_muon.muon(1e-2, normalizer=scaling))
    )
    assert_identical(scaled, times(2, plain))
