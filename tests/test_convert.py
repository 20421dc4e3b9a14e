"""States of optax.contrib.muon become ours and go back, bit by bit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from optax.contrib import muon as theirs

import optax_muon
from optax_muon import find_state, from_optax_state, like_optax, muon, to_optax_state
from tests.optax_pair import NUMBERS, assert_alike, draw, train
from tests.recipes import assert_identical

PARAMS = {name: draw(0)[name] for name in ("tall", "layers", "bias")}
AXES = {
    "muon_weight_dimension_numbers": {name: NUMBERS[name] for name in PARAMS},
}
OUR_AXES = {
    "tall": optax_muon.MatrixAxes(0, 1),
    "layers": optax_muon.MatrixAxes(1, 2),
    "bias": None,
}
SCHEDULE = optax.linear_schedule(0.1, 0.01, 10)


def filled(state, seed=0):
    """`state` with random leaves, so that a leaf in the wrong place shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(1, 100, x.shape), x.dtype), state
    )


OPTIONS = {
    "learning_rate": (0.1, SCHEDULE),
    "adam_learning_rate": (None, SCHEDULE),
    "weight_decay": (0.0, SCHEDULE),
    "weight_decay_mask": (None, {"tall": True, "layers": False, "bias": True}),
    "mu_dtype": (None, jnp.bfloat16),
    "ns_coeffs": ("standard", "dion"),
    "muon_weight_dimension_numbers": (None, *AXES.values()),
}


@pytest.mark.parametrize("mu_dtype", OPTIONS["mu_dtype"])
def test_bit_by_bit_whatever_the_options(mu_dtype):
    for values in itertools.product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True))
        if options["mu_dtype"] != mu_dtype:
            continue
        there, here = (
            jax.eval_shape(f(**options).init, PARAMS) for f in (theirs, like_optax)
        )
        state = filled(there)
        converted = from_optax_state(state, here)
        assert jax.tree.structure(converted) == jax.tree.structure(here)
        [muon_state] = [
            x for x in jax.tree.leaves(state, is_leaf=is_theirs) if is_theirs(x)
        ]
        assert_identical(find_state(converted).momentum, muon_state.mu)
        assert find_state(converted).count == muon_state.count
        assert_identical(to_optax_state(converted, state), state)


def is_theirs(node):
    return isinstance(node, optax.contrib.MuonState)


TRAINED = {
    "plain": {},
    "schedules, mask, dtype": {
        "learning_rate": SCHEDULE,
        "weight_decay": SCHEDULE,
        "weight_decay_mask": OPTIONS["weight_decay_mask"][1],
        "mu_dtype": jnp.bfloat16,
    },
}


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
def test_training_goes_on(options):
    """Five steps and five more, in either order, are ten of either."""
    options = {"learning_rate": 0.1} | AXES | options
    there, here = theirs(**options), like_optax(**options)
    first, state, params = train(there, there.init(PARAMS), PARAMS, range(5))
    all_there = first + train(there, state, params, range(5, 10))[0]
    state = from_optax_state(state, here.init(PARAMS))
    assert_alike(first + train(here, state, params, range(5, 10))[0], all_there)

    first, state, params = train(here, here.init(PARAMS), PARAMS, range(5))
    assert_alike(first + train(here, state, params, range(5, 10))[0], all_there)
    state = to_optax_state(state, there.init(PARAMS))
    assert_alike(first + train(there, state, params, range(5, 10))[0], all_there)


def test_restored_states():
    """As records of NumPy arrays, and without a target as plain dictionaries."""
    there, here = theirs(SCHEDULE).init(PARAMS), like_optax(SCHEDULE).init(PARAMS)
    state = filled(there)
    expected = from_optax_state(state, here)
    stored = serialization.to_bytes(state)
    for restored in (
        serialization.from_bytes(there, stored),
        serialization.msgpack_restore(stored),
        jax.tree.map(np.asarray, state),
    ):
        assert_identical(from_optax_state(restored, here), expected)
    stored = serialization.to_bytes(expected)
    for restored in (
        serialization.from_bytes(here, stored),
        serialization.msgpack_restore(stored),
    ):
        assert_identical(to_optax_state(restored, state), state)


WRAPPERS = {
    "chain": lambda f: optax.chain(optax.clip_by_global_norm(1.0), f(0.1)),
    "MultiSteps": lambda f: optax.MultiSteps(f(0.1), 2),
    "inject_hyperparams": lambda f: optax.inject_hyperparams(f)(SCHEDULE),
    "masked": lambda f: optax.masked(
        f(0.1), {"tall": True, "layers": False, "bias": True}
    ),
    "partition of two": lambda f: optax.partition(
        {"a": f(0.1), "b": f(SCHEDULE)}, {"tall": "a", "layers": "b", "bias": "a"}
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_inside_wrappers(wrap):
    there, here = wrap(theirs).init(PARAMS), wrap(like_optax).init(PARAMS)
    state = filled(there)
    converted = from_optax_state(state, here)
    assert jax.tree.structure(converted) == jax.tree.structure(here)
    assert_identical(to_optax_state(converted, state), state)


def test_the_core_alone():
    matrices = {"tall": PARAMS["tall"]}
    there = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers={"tall": NUMBERS["tall"]}),
        optax.scale_by_learning_rate(SCHEDULE),
    ).init(matrices)
    here = optax.chain(
        optax_muon.scale_by_muon(), optax.scale_by_learning_rate(SCHEDULE)
    ).init(matrices)
    state = filled(there)
    converted = from_optax_state(state, here)
    assert_identical(converted[0].momentum, state[0].mu)
    assert_identical(to_optax_state(converted, state), state)


def test_to_muon_and_back():
    """Its traces too: of "ema" as they are, of "heavy_ball" over 1 - mu."""
    there = filled(theirs(0.1, beta=0.75, **AXES).init(PARAMS))
    steps = []
    for form, told in (("ema", None), ("heavy_ball", 0.75)):
        tx = muon(0.1, momentum=0.75, momentum_form=form, matrix_axes=OUR_AXES)
        like = tx.init(PARAMS)
        converted = from_optax_state(there, like, heavy_ball=told)
        assert jax.tree.structure(converted) == jax.tree.structure(like)
        factor = 1 if told is None else 4  # exact, so that all is
        for name in ("tall", "layers"):
            np.testing.assert_array_equal(
                find_state(converted).momentum[name],
                factor * there.inner_states["muon"].inner_state[0].mu[name],
            )
        assert_identical(
            converted.inner_states["adamw"].inner_state[0],
            there.inner_states["adam"].inner_state[0],
        )
        assert_identical(to_optax_state(converted, there, heavy_ball=told), there)
        steps.append(tx.update(PARAMS, converted, PARAMS)[0])
    assert_alike(*steps)


def test_a_state_of_like_optax_is_one_of_muon():
    here = like_optax(SCHEDULE, **AXES).init(PARAMS)
    assert jax.tree.structure(here) == jax.tree.structure(
        muon(SCHEDULE, matrix_axes=OUR_AXES).init(PARAMS)
    )


def test_in_nnx():
    def trained(model, tx):
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        def loss(model):
            return jnp.square(model(jnp.eye(4)) - 1).mean()

        return optimizer, lambda: optimizer.update(model, nnx.grad(loss)(model))

    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    optimizer, step = trained(model, theirs(0.1))
    step()
    ours = nnx.clone(model)
    converted, step_of_ours = trained(ours, like_optax(0.1))
    converted.opt_state = from_optax_state(optimizer.opt_state, converted.opt_state)
    step()
    step_of_ours()
    assert find_state(converted.opt_state).count == 2
    assert_alike(*(nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (ours, model)))


def errors(function, *arguments, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_errors_name_what_does_not_fit():
    there, here = theirs(0.1, **AXES).init(PARAMS), like_optax(0.1, **AXES).init(PARAMS)
    assert "state holds no state of optax.contrib.muon" in errors(
        from_optax_state, here, there
    )
    assert "like holds no state of optax.contrib.muon" in errors(
        to_optax_state, there, here
    )

    narrow = like_optax(0.1, mu_dtype=jnp.bfloat16, **AXES).init(PARAMS)
    text = errors(from_optax_state, there, narrow)
    for line in (
        "inner_states/muon/inner_state/0/momentum/tall: float32[6, 4] in `state`, "
        "bfloat16[6, 4] in `like`\n",
        "inner_states/adamw/inner_state/0/mu/bias: float32[6] in `state`",
    ):
        assert f"\n  {line}" in text

    elsewhere = like_optax(0.1).init(PARAMS)  # layers go to AdamW
    text = errors(from_optax_state, there, elsewhere)
    for line in (
        "inner_states/adamw/inner_state/0/mu/layers: in `like`, but not in `state`",
        "inner_states/muon/inner_state/0/mu/layers: in `state`, but not in `like`",
    ):
        assert f"\n  {line}\n" in text

    scheduled = like_optax(SCHEDULE, **AXES).init(PARAMS)
    text = errors(from_optax_state, there, scheduled)
    assert "inner_states/muon/inner_state/4/count: in `like`, but not" in text
    text = errors(to_optax_state, scheduled, there)
    assert "inner_states/adamw/inner_state/2/count: in `state`, but not" in text

    neurons = optax_muon.normalize_neurons(matrix_axes=OUR_AXES)
    normalized = muon(0.1, normalizer=neurons, matrix_axes=OUR_AXES).init(PARAMS)
    assert "/1/second_moment/tall: in `like`" in errors(
        from_optax_state, there, normalized
    )
    assert "/1/second_moment/tall: in `state`" in errors(
        to_optax_state, normalized, there
    )

    assert "heavy_ball=1.0 is out of range" in errors(
        from_optax_state, there, here, heavy_ball=1.0
    )
    abstract = jax.eval_shape(theirs(0.1, **AXES).init, PARAMS)
    with pytest.raises(TypeError, match="like has no values, but optax's coefficients"):
        to_optax_state(here, abstract)


def test_nothing_moves_or_is_copied():
    there = filled(theirs(0.1).init(PARAMS))
    converted = from_optax_state(there, like_optax(0.1).init(PARAMS))
    mu = there.inner_states["muon"].inner_state[0].mu["tall"]
    assert find_state(converted).momentum["tall"] is mu


def test_a_heavy_balls_trace_must_be_known():
    """In a dictionary nothing tells which leaves are the momentum."""
    tx = muon(0.1, momentum_form="heavy_ball", matrix_axes=OUR_AXES)
    plain = serialization.to_state_dict(tx.init(PARAMS))
    there = theirs(0.1, **AXES).init(PARAMS)
    with pytest.raises(ValueError, match="holds no MuonState"):
        from_optax_state(there, plain, heavy_ball=0.95)
