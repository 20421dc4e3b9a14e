"""The states as trees: records, names, types, and how to find them."""

import collections.abc
import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_muon
from tests.recipes import every_kind, gradients, matrices, model, types


def records(state):
    """The dataclasses in a state: the library's own, as optax's are named tuples."""
    leaves = jax.tree.leaves(state, is_leaf=dataclasses.is_dataclass)
    return [leaf for leaf in leaves if dataclasses.is_dataclass(leaf)]


def leaf_paths(state):
    return [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]


@every_kind
def test_records_are_frozen_and_do_not_unpack(recipe):
    for state in records(recipe.make().init(recipe.params())):
        field = dataclasses.fields(state)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(state, field, None)
        assert not isinstance(state, collections.abc.Mapping)
        with pytest.raises(TypeError, match="not iterable"):
            iter(state)
        assert getattr(dataclasses.replace(state, **{field: "new"}), field) == "new"


def test_muon_state_takes_its_fields_by_position_and_by_name():
    assert optax_muon.MuonState(1, 2) == optax_muon.MuonState(momentum=2, count=1)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        optax_muon.MuonState(1)


@every_kind
def test_every_leaf_has_a_path_of_names(recipe):
    names = jax.tree_util.GetAttrKey, jax.tree_util.DictKey
    for path in leaf_paths(recipe.plain.states[0]):
        unnamed = [key for key in path if not isinstance(key, names)]
        assert len(unnamed) < len(path)
        # optax.chain's state is a tuple; everything else has names.
        assert all(isinstance(key, jax.tree_util.SequenceKey) for key in unnamed)


def test_names_of_muon():
    tx = optax_muon.muon(1e-2, normalizer=optax_muon.normalize_neurons())
    chain = ".inner_states['muon'].inner_state"
    paths = map(jax.tree_util.keystr, leaf_paths(tx.init(model())))
    assert {path for path in paths if path.startswith(chain)} == {
        f"{chain}[0].count",
        f"{chain}[0].momentum['down']['kernel']",
        f"{chain}[0].momentum['up']['kernel']",
        f"{chain}[1].second_moment['down']['kernel']",
        f"{chain}[1].second_moment['up']['kernel']",
    }


def test_names_of_shampoo():
    paths = leaf_paths(optax_muon.scale_by_shampoo().init(matrices()))
    assert {jax.tree_util.keystr(path) for path in paths} == {
        f".{side}['{owner}']['kernel']"
        for side in ("left", "right")
        for owner in ("down", "up")
    }


def test_find_state_needs_exactly_one():
    tx = optax.partition(
        {"a": optax_muon.scale_by_muon(), "b": optax_muon.scale_by_muon()},
        {"up": "a", "down": "b"},
    )
    state = tx.init(matrices())
    with pytest.raises(ValueError, match="holds 2 MuonState, expected exactly one"):
        optax_muon.find_state(state)
    part = optax_muon.find_state(state.inner_states["a"])
    assert part.momentum["up"]["kernel"].shape == (4, 6)
    with pytest.raises(ValueError, match="holds 0 MuonState, expected exactly one"):
        optax_muon.find_state(optax.adamw(1e-2).init(model()))


def test_optax_tree_get_does_not_find_the_momentum():
    """Why there is `find_state`; its docstring says this of optax."""
    state = optax_muon.muon(1e-2).init(model())
    assert optax.tree.get(state, "momentum") is None
    assert optax.tree.get(state, "mu") is not None


@every_kind
def test_map_params_maps_all_but_the_counters(recipe):
    """As `optax.tree.map_params` is used to shard a state like the parameters."""
    kinds = optax.tree.map_params(
        recipe.make(),
        lambda leaf: "like a parameter",
        recipe.plain.states[0],
        transform_non_params=lambda leaf: "other",
    )
    for path, kind in jax.tree_util.tree_flatten_with_path(kinds)[0]:
        counter = getattr(path[-1], "name", None) in ("count", "step")
        assert kind == ("other" if counter else "like a parameter")


@every_kind
def test_abstract_init_is_the_real_one(recipe):
    params = recipe.plain.params[0]
    assert types(jax.eval_shape(recipe.make().init, params)) == types(
        recipe.make().init(params)
    )


FLOATS = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


@every_kind
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)
def test_types_stay_from_step_to_step(recipe, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params, tx = recipe.params(dtype), recipe.make()
        (grad,) = gradients(params, 1)
        state = jax.eval_shape(tx.init, params)
        updates, new_state = jax.eval_shape(tx.update, grad, state, params)
        assert types(new_state) == types(state)
        assert types(updates) == types(grad)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            if jax.tree_util.GetAttrKey("momentum") in path:
                assert leaf.dtype == dtype


def narrow_matrices(dtype):
    """A model with matrices of `dtype`; the rest is of float32."""
    return {**model(), "down": matrices(dtype)["down"]}


@pytest.mark.parametrize("params", [model, narrow_matrices])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("argument", ["learning_rate", "momentum", "weight_decay"])
def test_arrays_do_not_widen_the_updates(argument, dtype, params):
    arguments = {"learning_rate": 1e-2, argument: 0.1}
    array = optax_muon.muon(**{**arguments, argument: jnp.float32(0.1)})
    # It turns all numbers into arrays, of the widest dtype among the parameters.
    injected = optax.inject_hyperparams(optax_muon.muon)(**arguments)
    params = params(dtype)
    (grad,) = gradients(params, 1)
    for tx in (array, injected):
        state = jax.eval_shape(tx.init, params)
        updates, new_state = jax.eval_shape(tx.update, grad, state, params)
        assert types(updates) == types(grad)
        assert types(new_state) == types(state)


@pytest.mark.parametrize("stored", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_stored_dtypes(stored, dtype):
    params = model(dtype)
    tx = optax_muon.muon(1e-2, momentum_dtype=stored, adam_dtype=stored)
    state = jax.eval_shape(tx.init, params)
    (grad,) = gradients(params, 1)
    updates, new_state = jax.eval_shape(tx.update, grad, state, params)
    assert types(new_state) == types(state)
    assert types(updates) == types(grad)
    trees = {
        "momentum": optax_muon.find_state(state).momentum,
        "mu": optax.tree.get(state, "mu"),
        "nu": optax.tree.get(state, "nu"),
    }
    dtypes = {
        name: {leaf.dtype for leaf in jax.tree.leaves(tree)}
        for name, tree in trees.items()
    }
    stored, dtype = jnp.dtype(stored), jnp.dtype(dtype)
    assert dtypes == {"momentum": {stored}, "mu": {stored}, "nu": {dtype}}


@pytest.mark.parametrize(
    "tx",
    [
        optax_muon.scale_by_muon(),
        optax_muon.scale_by_shampoo(),
        optax_muon.scale_by_shampoo(accumulate=False),
        optax_muon.normalize_neurons(),
        optax_muon.scale_by_shape("width"),
    ],
    ids=["muon", "shampoo", "shampoo, one step", "neurons", "shape"],
)
@pytest.mark.parametrize("gradient_dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_are_of_the_gradients_dtype(tx, dtype, gradient_dtype):
    state = jax.eval_shape(tx.init, matrices(dtype))
    (grad,) = gradients(matrices(gradient_dtype), 1)
    updates, new_state = jax.eval_shape(tx.update, grad, state)
    assert types(updates) == types(grad)
    assert types(new_state) == types(state)
