"""States through Flax's serialization, Orbax and pickle: every bit comes back."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import optax_muon
from tests.recipes import (
    RECIPES,
    assert_close,
    assert_identical,
    every_kind,
    matrices,
    model,
    types,
)


def trained(recipe):
    """Parameters and state after two steps."""
    return {"params": recipe.plain.params[2], "state": recipe.plain.states[2]}


def fresh(recipe):
    """The same tree before training, of other values."""
    params = jax.tree.map(jnp.ones_like, recipe.plain.params[0])
    return {"params": params, "state": recipe.make().init(params)}


def assert_continues(recipe, restored):
    """The third step from what was restored is that of a run without interruption.

    Eager, since Flax restores NumPy arrays, which jit would turn into JAX's.
    """
    tx, plain = recipe.make(), recipe.plain
    updates, state = tx.update(
        plain.gradients[2], restored["state"], restored["params"]
    )
    assert_close(updates, plain.updates[2])
    assert_close(state, plain.states[3])
    assert types(state) == types(plain.states[3])


@every_kind
def test_flax_bytes(recipe):
    stored = serialization.to_bytes(trained(recipe))
    restored = serialization.from_bytes(fresh(recipe), stored)
    assert_identical(restored, trained(recipe))
    assert_continues(recipe, restored)


@every_kind
def test_flax_state_dict(recipe):
    stored = serialization.to_state_dict(trained(recipe))
    # Nested dicts down to the arrays: a type unknown to Flax would be left as it is.
    sizes = sorted(x.size for x in jax.tree.leaves(stored))
    assert sizes == sorted(x.size for x in jax.tree.leaves(trained(recipe)))
    flat, _ = jax.tree_util.tree_flatten_with_path(stored)
    assert all(isinstance(k, jax.tree_util.DictKey) for path, _ in flat for k in path)
    restored = serialization.from_state_dict(fresh(recipe), stored)
    assert_identical(restored, trained(recipe))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_flax_bytes_keep_the_dtypes(dtype):
    tx = optax_muon.muon(1e-2, momentum_dtype=dtype, adam_dtype=dtype)
    state = tx.init(model())
    restored = serialization.from_bytes(tx.init(model()), serialization.to_bytes(state))
    assert_identical(restored, state)


def test_train_state():
    recipe = RECIPES["muon_cautious_neurons"]
    plain, tx = recipe.plain, recipe.make()
    start = TrainState.create(apply_fn=None, params=plain.params[0], tx=tx)
    state = start.apply_gradients(grads=plain.gradients[0])
    restored = serialization.from_bytes(start, serialization.to_bytes(state))
    assert_identical(restored.opt_state, state.opt_state)
    for grad in plain.gradients[1:]:
        restored = restored.apply_gradients(grads=grad)
    assert_close(restored.params, plain.params[-1])


NEURONS = optax_muon.normalize_neurons()


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        pytest.param(
            optax_muon.scale_by_muon().init(matrices()),
            optax_muon.scale_by_shampoo().init(matrices()),
            r"stored ShampooState has fields \['count', 'momentum'\], expected",
            id="another transformation",
        ),
        pytest.param(
            optax_muon.muon(1e-2).init(model()),
            optax_muon.muon(1e-2, normalizer=NEURONS).init(model()),
            r"stored SecondMomentState has fields \[\], expected \['second_moment'\]",
            id="without the normalizer",
        ),
        pytest.param(
            optax_muon.muon(1e-2, normalizer=NEURONS).init(model()),
            optax_muon.muon(1e-2).init(model()),
            "do not match, got {'second_moment'}",
            id="with a normalizer too many",
        ),
        pytest.param(
            optax_muon.scale_by_muon().init(matrices()),
            optax_muon.scale_by_muon().init({"other": jnp.ones((2, 3))}),
            "keys do not match.*momentum",
            id="other parameters",
        ),
        pytest.param(
            [jnp.int32(3)],
            [optax_muon.scale_by_muon().init(matrices())],
            "stored MuonState has fields ndarray, expected .* at path ./0",
            id="an array",
        ),
        pytest.param(
            [None],
            [optax_muon.scale_by_muon().init(matrices())],
            "stored MuonState has fields NoneType, expected .* at path ./0",
            id="nothing",
        ),
    ],
)
def test_flax_bytes_of_another_state_raise(written, read, message):
    with pytest.raises(ValueError, match=message):
        serialization.from_bytes(read, serialization.to_bytes(written))


def test_restored_shapes_are_checked_at_the_next_update():
    """Flax restores arrays of any shape, so `update` has to notice."""
    tx = optax_muon.scale_by_muon()
    wide = {"kernel": jnp.ones((4, 6))}
    tall = {"kernel": jnp.ones((6, 4))}
    stored = serialization.to_bytes(tx.init(tall))
    state = serialization.from_bytes(tx.init(wide), stored)
    with pytest.raises(ValueError, match=r"kernel: \(4, 6\) against \(6, 4\)"):
        tx.update(wide, state)


@every_kind
def test_orbax_into_an_abstract_tree(recipe, tmp_path):
    saved = trained(recipe)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", saved)
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(lambda: fresh(recipe))
        restored = checkpointer.restore(tmp_path / "checkpoint", abstract)
    assert_identical(restored, saved)
    assert types(restored) == types(saved)
    assert_continues(recipe, restored)


@every_kind
def test_orbax_manager(recipe, tmp_path):
    plain = recipe.plain
    with ocp.CheckpointManager(tmp_path) as manager:
        for step in (1, 2):
            saved = {"params": plain.params[step], "state": plain.states[step]}
            manager.save(step, args=ocp.args.StandardSave(saved))
        manager.wait_until_finished()
        abstract = jax.eval_shape(lambda: fresh(recipe))
        restore = ocp.args.StandardRestore(abstract)
        restored = manager.restore(manager.latest_step(), args=restore)
    assert_identical(restored, trained(recipe))


def test_orbax_into_another_state_raises(tmp_path):
    muon, shampoo = (
        transformation.init(matrices())
        for transformation in (
            optax_muon.scale_by_muon(),
            optax_muon.scale_by_shampoo(),
        )
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", muon)
        checkpointer.wait_until_finished()
        with pytest.raises(ValueError, match="momentum"):
            checkpointer.restore(tmp_path / "checkpoint", shampoo)


def test_nnx_optimizer_through_orbax(tmp_path):
    def make(seed):
        module = nnx.Linear(4, 6, rngs=nnx.Rngs(seed))
        return module, nnx.Optimizer(module, optax_muon.muon(1e-2), wrt=nnx.Param)

    def step(module, optimizer):
        grad = nnx.grad(lambda module: jnp.sum(module(jnp.eye(4)) ** 2))(module)
        optimizer.update(module, grad)

    (module, optimizer), (other, other_optimizer) = make(0), make(1)
    step(module, optimizer)
    with ocp.StandardCheckpointer() as checkpointer:
        saved = nnx.to_pure_dict(nnx.state((module, optimizer)))
        checkpointer.save(tmp_path / "checkpoint", saved)
        checkpointer.wait_until_finished()
        target = nnx.to_pure_dict(nnx.state((other, other_optimizer)))
        restored = checkpointer.restore(tmp_path / "checkpoint", target)
    state = nnx.state((other, other_optimizer))
    nnx.replace_by_pure_dict(state, restored)
    nnx.update((other, other_optimizer), state)
    for pair in (module, optimizer), (other, other_optimizer):
        step(*pair)
    assert_identical(
        jax.tree.leaves(nnx.state(other)), jax.tree.leaves(nnx.state(module))
    )


def pickled(x):
    return pickle.loads(pickle.dumps(x))


copies = pytest.mark.parametrize("duplicate", [pickled, copy.copy, copy.deepcopy])


@every_kind
@copies
def test_copies_of_states(recipe, duplicate):
    assert_identical(duplicate(trained(recipe)), trained(recipe))


CONFIGURATIONS = {
    "NewtonSchulz": lambda: optax_muon.NewtonSchulz(),
    "by name": lambda: optax_muon.NewtonSchulz("cubic", steps=3, dtype="bfloat16"),
    "by rows": lambda: optax_muon.NewtonSchulz([[3, -4, 2.0], [1.5, -0.5, 0]]),
    "by table": lambda: optax_muon.NewtonSchulz(optax_muon.COEFFICIENTS["modula"]),
    "Svd": lambda: optax_muon.Svd(),
    "Qdwh": lambda: optax_muon.Qdwh(),
    "MatrixAxes": lambda: optax_muon.MatrixAxes(),
    "merged axes": lambda: optax_muon.MatrixAxes(fan_in=(0, 1), fan_out=-1),
}


@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@copies
def test_copies_of_configurations(make, duplicate):
    original = make()
    for other in (duplicate(original), make()):
        assert type(other) is type(original)
        assert other == original
        assert hash(other) == hash(original)
        assert repr(other) == repr(original)


def test_different_configurations_differ():
    made = [make() for make in CONFIGURATIONS.values()]
    assert len(set(made)) == len(made)


def test_equal_configurations_are_equal_however_written():
    assert optax_muon.NewtonSchulz(dtype="float32") == optax_muon.NewtonSchulz(
        dtype=jnp.float32
    )
    assert optax_muon.NewtonSchulz([[1.5, -0.5, 0]]) == optax_muon.NewtonSchulz(
        np.array([[1.5, -0.5, 0.0]])
    )
    assert optax_muon.MatrixAxes(0, [1, 2]) == optax_muon.MatrixAxes((0,), (1, 2))


@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configurations_are_frozen_and_not_callable(make):
    """Callables would be schedules to `optax.inject_hyperparams`."""
    configuration = make()
    assert not callable(configuration)
    with pytest.raises(dataclasses.FrozenInstanceError):
        configuration.attribute = 1
