"""axes_from_equinox: every leaf of Equinox's models, by a table of what it computes."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_muon
from optax_muon import MatrixAxes, axes_from_equinox
from tests.routing_cases import adamw, muon, probe, random_like, table_of, under

KEY = jax.random.key(0)
nn = eqx.nn


class Model(eqx.Module):
    """Fields of any names, made by a function of the key."""

    parts: dict[str, Any]

    def __init__(self, make, key=KEY):
        self.parts = make(key)


def shapes(make):
    return eqx.filter_eval_shape(lambda: Model(make)).parts


def parameters(model):
    """As eqx.is_inexact_array, but of shapes as well."""
    return eqx.filter(
        model,
        lambda x: hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact),
    )


def planned(make, **options):
    model = shapes(make)
    return optax_muon.plan(parameters(model), axes_from_equinox(model, **options))


def mlps(key):
    return {
        "mlp": nn.MLP(3, 4, 5, 2, key=key),
        "scanned": nn.MLP(3, 4, 5, 3, nn.PReLU(), scan=True, key=key),
        "scalar": nn.Linear("scalar", 6, key=key),
        "layers": [nn.Linear(3, 4, key=key), nn.Lambda(jax.nn.relu), nn.LayerNorm(4)],
        "lm_head": nn.Linear(4, 7, key=key),
        "classifier": nn.Sequential([nn.Linear(4, 7, key=key)]),
        "embed": nn.Linear(3, 8, key=key),
    }


MLPS = {
    **muon(3, 5, "mlp/layers/0/weight", "scanned/layers/0/weight"),
    **muon(5, 5, "mlp/layers/1/weight"),
    **muon(5, 5, "scanned/layers/1/weight", batch=2),
    **muon(5, 4, "mlp/layers/2/weight", "scanned/layers/2/weight"),
    **adamw(*(f"{x}/layers/{i}/bias" for x in ("mlp", "scanned") for i in range(3))),
    **adamw("scanned/activation/negative_slope"),
    **muon(1, 6, "scalar/weight"),
    **muon(3, 4, "layers/0/weight"),
    **adamw("scalar/bias", "layers/0/bias", "layers/2/weight", "layers/2/bias"),
    **adamw("lm_head/weight", "lm_head/bias", "embed/weight", "embed/bias"),
    **muon(4, 7, "classifier/layers/0/weight"),  # of names the last one counts
    **adamw("classifier/layers/0/bias"),
}


def convolutions(key):
    return {
        "first": nn.Conv2d(1, 4, 3, key=key),
        "second": nn.Conv2d(4, 6, (3, 2), key=key),
        "grouped": nn.Conv2d(6, 8, 3, groups=2, key=key),
        "depthwise": nn.Conv1d(6, 12, 3, groups=6, key=key),
        "third": nn.Conv3d(2, 5, (1, 2, 3), key=key),
        "transposed": nn.ConvTranspose2d(4, 7, (2, 3), use_bias=False, key=key),
        "norms": (nn.GroupNorm(2, 6), nn.BatchNorm(6, "batch", mode="batch")),
    }


CONVOLUTIONS = {
    **adamw("first/weight", "depthwise/weight"),
    **muon(4 * 3 * 2, 6, "second/weight"),
    **muon(3 * 3 * 3, 8, "grouped/weight"),
    **muon(2 * 1 * 2 * 3, 5, "third/weight"),
    **muon(4 * 2 * 3, 7, "transposed/weight"),
    **adamw(*(f"{x}/bias" for x in ("first", "second", "grouped", "depthwise"))),
    **adamw(
        "third/bias", *(f"norms/{i}/{x}" for i in "01" for x in ("weight", "bias"))
    ),
}


def attention(key):
    return {
        "tokens": nn.Embedding(11, 8, key=key),
        "pos_embed": jnp.zeros((5, 8)),
        "attention": nn.MultiheadAttention(
            2, 8, qk_size=3, vo_size=5, use_key_bias=True, key=key
        ),
        "norm": nn.RMSNorm((5, 8)),
        "normed": nn.WeightNorm(nn.Linear(3, 4, key=key)),
    }


ATTENTION = {
    **adamw("tokens/weight", "pos_embed", "attention/key_proj/bias"),
    **muon(8, 2 * 3, "attention/query_proj/weight", "attention/key_proj/weight"),
    **muon(8, 2 * 5, "attention/value_proj/weight"),
    **muon(2 * 5, 8, "attention/output_proj/weight"),
    **adamw("norm/weight", "norm/bias"),
    **muon(3, 4, "normed/layer/weight"),
    **adamw("normed/g", "normed/layer/bias"),
}


def cells(key):
    return {"lstm": nn.LSTMCell(3, 5, key=key), "gru": nn.GRUCell(3, 6, key=key)}


CELLS = {
    **muon(3, 4 * 5, "lstm/weight_ih"),
    **muon(5, 4 * 5, "lstm/weight_hh"),
    **muon(3, 3 * 6, "gru/weight_ih"),
    **muon(6, 3 * 6, "gru/weight_hh"),
    **adamw("lstm/bias", "gru/bias", "gru/bias_n"),
}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (mlps, MLPS),
        (convolutions, CONVOLUTIONS),
        (attention, ATTENTION),
        (cells, CELLS),
    ],
)
def test_models(make, expected):
    found = table_of(planned(make))
    running = {path for path in found if "_index/" in path}  # means, of BatchNorm
    assert {k: v for k, v in found.items() if k not in running} == expected
    assert {found[path] for path in running} <= {("adamw", None, None)}


def test_gates_and_groups_are_matrices_of_their_own():
    def make(key):
        transposed = nn.ConvTranspose1d(4, 6, 3, groups=2, key=key)
        return {**cells(key), **convolutions(key), "up": transposed}

    parts = {x.path: x.parts for x in planned(make).leaves if x.parts}
    assert parts == {
        "lstm/weight_ih": ((3, 5),) * 4,
        "lstm/weight_hh": ((5, 5),) * 4,
        "gru/weight_ih": ((3, 6),) * 3,
        "gru/weight_hh": ((6, 6),) * 3,
        "grouped/weight": ((3 * 3 * 3, 4),) * 2,
        "up/weight": ((2 * 3, 3),) * 2,
    }


def test_layers_made_by_vmap():
    def make(key):
        def layer(key):
            return {**cells(key), "conv": nn.Conv1d(2, 3, 4, key=key)}

        keys = jax.random.split(key, (7, 2))
        return {"layers": eqx.filter_vmap(eqx.filter_vmap(layer))(keys)}

    one = {**CELLS, **muon(2 * 4, 3, "conv/weight"), **adamw("conv/bias")}
    expected = {k: (*v[:2], v[2] and 7 * 2) for k, v in under("layers", one).items()}
    plan = planned(make)
    assert table_of(plan) == expected
    assert {len(x.parts) for x in plan.leaves} == {0, 3, 4}


def test_a_field_may_be_called_value():
    """As the arrays in NNX's variables are, whose names are not part of a path."""

    class Attention(eqx.Module):
        key: jax.Array
        value: jax.Array

    def make(key):
        return {"attention": Attention(jnp.zeros((3, 4)), jnp.zeros((5, 6)))}

    axes = {"key": MatrixAxes(0, 1), "value": MatrixAxes(1, 0)}
    plan = planned(make, others=lambda path, leaf: axes[path[-1].key])
    assert [leaf.matrix for leaf in plan.leaves] == [(3, 4), (6, 5)]
    by_name = {f"attention/{name}": entry for name, entry in axes.items()}
    plan = planned(make, others=by_name)
    assert [leaf.matrix for leaf in plan.leaves] == [(3, 4), (6, 5)]
    with pytest.raises(ValueError, match=r"attention/value  \(5, 6\)"):
        planned(make)


def test_a_tree_of_modules_that_can_be_called_is_no_rule():
    model = nn.MLP(3, 4, 5, 0, key=KEY)
    axes = jax.tree.map(lambda x: MatrixAxes(1, 0), parameters(model))
    axes = eqx.tree_at(lambda m: m.layers[0].bias, axes, None)
    found = table_of(optax_muon.plan(parameters(model), axes))
    assert found == {**muon(3, 4, "layers/0/weight"), **adamw("layers/0/bias")}


def test_others_decides_arrays_of_no_layer():
    def make(key):
        return {"mixer": jnp.zeros((3, 4)), "linear": nn.Linear(3, 4, key=key)}

    seen = []

    def rule(path, leaf):
        seen.append((path, leaf.shape))
        return MatrixAxes(0, 1)

    expected = {**muon(3, 4, "mixer", "linear/weight"), **adamw("linear/bias")}
    assert table_of(planned(make, others=rule)) == expected
    assert [shape for _, shape in seen] == [(3, 4)]
    assert seen[0][0] == (jax.tree_util.DictKey("mixer"),)
    assert table_of(planned(make, others={"mixer": MatrixAxes(0, 1)})) == expected
    with pytest.raises(ValueError, match="does not fit a leaf of shape"):
        planned(make, others={"mixer": MatrixAxes(0, 2)})


def test_adamw_by_names_classes_and_modules():
    model = shapes(lambda key: {"mlp": nn.MLP(3, 4, 5, 2, key=key), **cells(key)})
    last = model["mlp"].layers[-1]
    for choices, paths in (
        (last, ["mlp/layers/2/weight"]),
        ([nn.LSTMCell, "mlp/layers/2"], ["lstm/weight_ih", "mlp/layers/2/weight"]),
        ("gru/weight_.*", ["gru/weight_ih", "gru/weight_hh"]),
    ):
        axes = axes_from_equinox(model, adamw=choices)
        found = table_of(optax_muon.plan(parameters(model), axes))
        assert {path: found[path] for path in paths} == adamw(*paths)
        assert found["mlp/layers/0/weight"] == ("muon", (3, 5), 1)
    with pytest.raises(ValueError, match="meet no parameter"):
        axes_from_equinox(model, adamw="mlp/layers/3")


@pytest.mark.parametrize("kept", [0, 1])
def test_a_tied_table_is_adamws_wherever_it_is_kept(kept):
    def make(key):
        pair = (nn.Embedding(11, 8, key=key), nn.Linear(8, 11, key=key))
        tied = nn.Shared(pair, lambda x: x[1 - kept].weight, lambda x: x[kept].weight)
        mixed = (nn.Linear(4, 4, key=key), [jnp.zeros((4, 4))])
        return {
            "tied": tied,
            "twice": nn.Shared(
                (nn.Linear(3, 4, key=key), nn.Linear(3, 4, key=key)),
                lambda x: x[1].weight,
                lambda x: x[0].weight,
            ),
            "mixed": nn.Shared(mixed, lambda x: x[1][0], lambda x: x[0].weight),
        }

    rule = {"mixed": MatrixAxes(0, 1)}
    assert table_of(planned(make, others=rule)) == {
        **adamw(f"tied/pytree/{kept}/weight", "tied/pytree/1/bias"),
        **muon(3, 4, "twice/pytree/0/weight"),
        **adamw("twice/pytree/0/bias", "twice/pytree/1/bias", "mixed/pytree/0/bias"),
        **muon(4, 4, "mixed/pytree/0/weight"),
    }
    with pytest.raises(ValueError, match="shared with a module that is no known layer"):
        planned(make)


def linears(*names):
    return {name: nn.Linear(8, 8, use_bias=False, key=KEY) for name in names}


def test_a_tie_through_a_function_is_a_tie():
    """Of a table; what else a layer reads through one, nobody can tell."""

    def tied(other):
        pair = (other, nn.Linear(8, 11, use_bias=False, key=KEY))
        return nn.Shared(pair, lambda x: x[0].weight, lambda x: x[1].weight * 2)

    table = shapes(lambda key: tied(nn.Embedding(11, 8, key=key)))
    assert axes_from_equinox(table)["pytree"]["1"]["weight"] is None
    layer = shapes(lambda key: tied(nn.Linear(8, 11, use_bias=False, key=key)))
    with pytest.raises(ValueError, match=r"reads what eqx\.nn\.Shared makes of it"):
        axes_from_equinox(layer)


def test_ties_inside_ties():
    def make(key):
        embedding = nn.Embedding(11, 8, key=key)
        inner = (nn.Linear(8, 11, use_bias=False, key=key), embedding)
        inside = nn.Shared(inner, lambda x: x[1].weight, lambda x: x[0].weight)
        layer = nn.Linear(8, 11, use_bias=False, key=key)
        return nn.Shared(
            {"layer": layer, "inside": inside},
            lambda x: x["inside"].pytree[0].weight,
            lambda x: x["layer"].weight,
        )

    assert table_of(planned(make)) == adamw("pytree/layer/weight")


def test_choices_meet_all_places_of_a_tie():
    pair = linears("up", "other")
    pair["other"] = nn.Sequential([pair["other"]])
    tied = nn.Shared(pair, lambda x: x["other"][0].weight, lambda x: x["up"].weight)
    for choice in ("other", nn.Sequential, tied.pytree["other"], tied.pytree["up"]):
        axes = axes_from_equinox(tied, adamw=choice)
        assert axes["pytree"]["up"]["weight"] is None
    muons = axes_from_equinox(tied)["pytree"]["up"]["weight"]
    assert muons == MatrixAxes(1, 0)


def test_vectors_may_be_shared_with_anything():
    pair = (nn.LayerNorm(8), [jnp.zeros(8)])
    tied = nn.Shared(pair, lambda x: x[1][0], lambda x: x[0].weight)
    assert axes_from_equinox(tied)["pytree"]["0"]["weight"] is None


def test_shared_that_cannot_be_called():
    tied = nn.Shared(
        linears("a", "b"), lambda x: x["b"].weight, lambda x: x["a"].weight
    )
    with pytest.raises(ValueError, match=r"(?s)calling the eqx.*not eqx\.filter of it"):
        axes_from_equinox(eqx.filter(tied, eqx.is_inexact_array))


def test_fields_that_are_dtypes():
    class Typed(eqx.Module):
        layer: nn.Linear
        dtype: Any = jnp.float32

    axes = axes_from_equinox(Typed(nn.Linear(3, 4, key=KEY)))
    assert axes == {"layer": {"weight": MatrixAxes(1, 0), "bias": None}}


def test_wrappers_do_not_hide_the_name_of_an_output_layer():
    def make(key):
        state = nn.StateIndex(jnp.zeros(()))
        linear = nn.Linear(4, 7, key=key)
        spectral = nn.SpectralNorm(linear, "weight", key=key)
        return {"head": nn.WeightNorm(linear), "logits": spectral, "state": state}

    assert {row[0] for row in table_of(planned(make)).values()} == {"adamw"}


def test_stacks_whose_lengths_coincide_are_an_error():
    def make(key):
        layer = eqx.filter_vmap(lambda key: nn.Linear(4, 4, key=key))
        return {"layers": layer(jax.random.split(key, 4))}

    with pytest.raises(ValueError, match="the stacked axes may be any of"):
        planned(make)
    axes = MatrixAxes(2, 1)
    found = table_of(planned(make, others={"layers/weight": axes}))
    assert found["layers/weight"] == ("muon", (4, 4), 4)


def test_one_error_lists_every_leaf_that_is_not_decided():
    def make(key):
        linear = nn.Linear(3, 4, key=key)
        return {
            "mixer": jnp.zeros((3, 4)),
            "deep": {"weights": [jnp.zeros((2, 3, 4))]},
            "vector": jnp.zeros(3),
            "wrapped": eqx.tree_at(lambda x: x.weight, linear, {"a": linear.weight}),
            "linear": linear,
            "changed": eqx.tree_at(lambda x: x.weight, linear, jnp.zeros((4, 5))),
        }

    with pytest.raises(ValueError, match=r"\Aaxes_from_equinox cannot") as caught:
        axes_from_equinox(shapes(make))
    _, *lines, remedy = str(caught.value).splitlines()
    found = [
        re.fullmatch(r"  (\S+)  (\(.*?\)) float32 of [\w ]+: (.*)", line)
        for line in lines
    ]
    nothing = "made by no layer that says what it is"
    assert {match[1]: (match[2], match[3]) for match in found} == {
        "mixer": ("(3, 4)", nothing),
        "deep/weights/0": ("(2, 3, 4)", nothing),
        "wrapped/weight/a": ("(4, 3)", nothing),
        "changed/weight": ("(4, 5)", "one layer's would be (4, 3)"),
    }
    assert "others=" in remedy


@pytest.mark.parametrize("model", [3, None, jnp.ones((2, 3)), {"w": jnp.ones(3)}])
def test_what_is_no_model(model):
    with pytest.raises(TypeError, match=r"holds no equinox\.Module"):
        axes_from_equinox(model)


def test_each_gate_moves_as_a_kernel_of_its_own():
    model = random_like(parameters(nn.LSTMCell(3, 5, use_bias=False, key=KEY)))
    kernels = {
        name: [gate.T for gate in jnp.split(getattr(model, name), 4)]
        for name in ("weight_ih", "weight_hh")
    }
    updates = []
    for params, axes in (
        (model, axes_from_equinox(model)),
        (kernels, MatrixAxes(0, 1)),
    ):
        tx = optax_muon.muon(0.1, orthogonalizer=probe, matrix_axes=axes)
        updates.append(tx.update(params, tx.init(params), params)[0])
    ours, expected = updates
    for name, gates in expected.items():
        joined = jnp.concatenate([gate.T for gate in gates])
        # Both add float32 numbers of one size, in another order.
        np.testing.assert_allclose(getattr(ours, name), joined, rtol=1e-5, atol=1e-5)


def test_a_model_trains():
    model = nn.MLP(6, 1, 16, 2, key=KEY)
    axes = axes_from_equinox(model)
    axes["layers"]["2"]["weight"] = None  # the output layer
    tx = optax_muon.muon(0.02, matrix_axes=axes)
    x = jax.random.normal(jax.random.key(1), (32, 6))

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            return jnp.mean((jax.vmap(model)(x) - x.sum(-1, keepdims=True)) ** 2)

        value, gradients = eqx.filter_value_and_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(gradients, state, params)
        return eqx.apply_updates(model, updates), state, value

    state, losses = tx.init(eqx.filter(model, eqx.is_inexact_array)), []
    first, _, last = optax_muon.find_state(state).momentum.layers
    assert first.weight.shape == (16, 6)
    assert isinstance(last.weight, optax.MaskedNode)
    for _ in range(20):
        model, state, value = step(model, state)
        losses.append(value)
    assert losses[-1] < 0.5 * losses[0]
