"""like_optax moves a model as optax.contrib.muon does, whatever the options."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_muon
from optax_muon import like_optax
from optax_muon._optax_iteration import optax_iteration
from tests.optax_pair import NUMBERS, assert_alike, draw, train


def ramp(start, end):
    return optax.linear_schedule(start, end, 10)


def large(tree):
    return jax.tree.map(lambda x: x.size > 24, tree)


# Leaves, and options that do not meet: optax compiles an iteration for each leaf.
CASES = {
    "defaults": ("tall wide layers query bias", {}),
    "no nesterov, adaptive, spectral": (
        "query bias",
        {
            "nesterov": False,
            "adaptive": True,
            "preconditioning": "spectral",
            "eps": 0.3,  # beside norms of about 5
        },
    ),
    "dion, aol, decay, mask": (
        "tall square bias",
        {
            "ns_coeffs": "dion",
            "preconditioning": "aol",
            "weight_decay": 0.1,
            "weight_decay_mask": {"tall": False, "square": True, "bias": True},
        },
    ),
    "three steps, schatten, schedules, consistent_rms": (
        "wide layers bias",
        {
            "ns_steps": 3,
            "preconditioning": "schatten",
            "learning_rate": ramp(0.1, 0.01),
            "weight_decay": ramp(0.0, 0.3),
            "weight_decay_mask": large,
            "consistent_rms": 0.2,
        },
    ),
    "fewer rows than steps, beta, eps, bfloat16 momentum": (
        "tall layers bias",
        {
            "ns_coeffs": ((3.0, -3.2, 1.2), (2.0, -1.5, 0.5)),
            "ns_steps": 8,
            "beta": 0.5,
            "eps": 0.3,
            "weight_decay": jnp.float32(0.1),
            "mu_dtype": jnp.bfloat16,
        },
    ),
    "adaptive, float16 momentum, adam's": (
        "layers bias",
        {
            "ns_coeffs": "standard",
            "adaptive": True,
            "mu_dtype": "float16",
            "adam_b1": 0.5,
            "adam_b2": 0.6,
            "adam_eps_root": 0.1,
            "adam_weight_decay": 0.3,
            "adam_learning_rate": ramp(0.5, 0.1),
        },
    ),
    "no steps, aol, array beta, bfloat16 momentum": (
        "tall bias",
        {
            "ns_steps": 0,
            "preconditioning": "aol",
            "beta": jnp.float32(0.999),
            "mu_dtype": jnp.bfloat16,
            "learning_rate": jnp.float32(0.1),
        },
    ),
    "every leaf of rank 2": (
        "tall layers bias",
        {"muon_weight_dimension_numbers": None},
    ),
}


@pytest.mark.parametrize(("names", "options"), CASES.values(), ids=CASES)
def test_twenty_steps(names, options):
    params = {name: draw(0)[name] for name in names.split()}
    numbers = {name: NUMBERS[name] for name in params}
    options = {
        "learning_rate": 0.1,
        "muon_weight_dimension_numbers": numbers,
    } | options
    ours, theirs = (
        train(tx, tx.init(params), params, range(20))
        for tx in (like_optax(**options), optax.contrib.muon(**options))
    )
    assert_alike(ours[0], theirs[0])
    momentum = optax_muon.find_state(ours[1]).momentum
    assert_alike(momentum, optax.tree.get(theirs[1].inner_states["muon"], "mu"))


@pytest.mark.parametrize("jit", [False, True])
def test_inject_hyperparams_without_a_change(jit):
    """It turns ns_steps and eps into arrays, traced under jit."""
    params = {name: draw(0)[name] for name in ("tall", "bias")}
    gradient = {name: draw(1)[name] for name in params}
    results = []
    for factory in (like_optax, optax.contrib.muon):
        tx = optax.inject_hyperparams(factory)(ramp(0.1, 0.01), ns_steps=4)
        state = tx.init(params)
        state.hyperparams["ns_steps"] = jnp.int32(3)
        state.hyperparams["eps"] = jnp.float32(0.5)
        update = jax.jit(tx.update) if jit else tx.update
        results.append(update(gradient, state, params)[0])
    assert_alike(*results)


def test_inject_hyperparams_of_rows():
    params = {"w": draw(0)["tall"]}
    tx = optax.inject_hyperparams(like_optax)(0.1, "dion")
    steps, _ = jax.jit(tx.update)(params, tx.init(params), params)
    plain = like_optax(0.1, "dion")
    assert_alike(steps, plain.update(params, plain.init(params), params)[0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_leaves(dtype):
    """Of their own dtype throughout; sums are float32, so optax's are coarser."""
    params, gradient = (
        {"w": jnp.eye(6, 4, dtype=dtype) + draw(seed, dtype)["tall"] / 10}
        for seed in range(2)
    )
    steps = []
    for factory in (like_optax, optax.contrib.muon):
        # A chain that contracts, unlike Keller Jordan's; and float16 has no 1e-8.
        tx = factory(0.1, (1.875, -1.25, 0.375), eps=1e-3)
        update = jax.jit(tx.update)
        step, state = update(gradient, tx.init(params), params)
        steps.append(update(step, state, params)[0])
        assert steps[-1]["w"].dtype == dtype
    # bfloat16 rounds to 2^-9: directions, and each of optax's products.
    assert_alike(*steps, tolerance=1e-2)


def test_products_have_the_leafs_dtype():
    params = {"w": jnp.ones((4, 6), jnp.bfloat16)}
    tx = like_optax(0.1)
    program = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products
    assert all("(tensor<4x" in line and "xbf16>, " in line for line in products)


def test_coefficients_are_rounded_to_the_leafs_dtype():
    """Keller Jordan's 3.4445 is 3.4375 in bfloat16, and so in each of optax's steps."""
    x = jnp.eye(4, dtype=jnp.bfloat16)
    twice = optax_iteration((3.4445, 0.0, 0.0), 2, 0.0, "spectral")
    # 3.4445^2 would be nearest to 11.875.
    np.testing.assert_array_equal(twice.polar_factor(x), 11.8125 * x)


@pytest.mark.parametrize(
    "preconditioning", ["frobenius", "spectral", "aol", "schatten"]
)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_zeros_stay_zeros(preconditioning, dtype):
    params = {"w": jnp.zeros((4, 6), dtype)}
    tx = like_optax(0.1, preconditioning=preconditioning, adaptive=True)
    steps, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(steps["w"], 0)


def test_the_program_does_not_grow_with_the_number_of_leaves():
    def products(count):
        params = {f"layer_{i}": jnp.ones((4, 6)) for i in range(count)}
        params |= {f"back_{i}": jnp.ones((6, 4)) for i in range(count)}
        tx = like_optax(0.1)
        program = jax.jit(tx.update).lower(params, tx.init(params), params)
        return program.as_text().count("dot_general")

    assert products(1) == products(5) > 0


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_it_lowers_for_accelerators(platform):
    params = {"w": jnp.ones((4, 6))}
    tx = like_optax(0.1, adaptive=True)
    traced = jax.jit(tx.update).trace(params, tx.init(params), params)
    assert "dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_in_nnx():
    results = []
    for factory in (like_optax, optax.contrib.muon):
        model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, factory(0.1, "dion"), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            def loss(model):
                return jnp.square(model(jnp.eye(4)) - 1).mean()

            optimizer.update(model, nnx.grad(loss)(model))

        for _ in range(3):
            step(model, optimizer)
        results.append(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
        if factory is like_optax:
            assert optax_muon.find_state(optimizer.opt_state).count == 3
    # Gradients follow the parameters, so that the steps' 1e-5 adds up over three.
    assert_alike(*results, tolerance=3e-5)
