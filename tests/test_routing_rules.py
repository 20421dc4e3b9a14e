"""Rules, the default one and others: what they decide and what they refuse."""

import dataclasses
import pickle
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_muon
from optax_muon import MatrixAxes, UndecidedLeafError, flax_matrix_axes, plan, stacked
from tests.routing_cases import (
    CASES,
    LINEN_MLP,
    adamw,
    complaints,
    muon,
    shaped,
    table_of,
)

MLP = CASES["linen mlp"].build()


def at(path, leaf):
    """`leaf` at the end of a path of dicts."""
    for name in reversed(path.split("/")):
        leaf = {name: leaf}
    return leaf


def decide(path, *shape, rule=None):
    """(optimizer, matrix, batch) of one leaf of that shape."""
    return table_of(plan(at(path, shaped(*shape)), rule))[path]


def outcome(matrix, batch=1):
    return ("adamw", None, None) if matrix is None else ("muon", matrix, batch)


# --- the default rule ---------------------------------------------------------------

BY_NAME = {
    # (shape, matrix; None is AdamW): paths
    ((6, 4), (6, 4)): "Dense_0/kernel up/kernel ahead/kernel head_norm/kernel w 0 "
    "position_wise_ffn/kernel pos_proj/kernel ahead head_norm headless/w",
    ((3, 6, 4), (18, 4)): "Conv_0/kernel conv1/kernel convs/0/kernel my_conv/kernel",
    ((3, 2, 6, 4), (36, 4)): "Conv_0/kernel block/ConvTranspose_1/kernel",
    ((2, 3, 2, 6, 4), (72, 4)): "Conv_0/kernel",
    ((6, 2, 4), (6, 8)): "query/kernel a/key/kernel self/a/value/kernel value/0/w",
    ((2, 4, 6), (8, 6)): "out/kernel attention/out/kernel",
    ((6, 4), None): "head/kernel lm_head/kernel LMHead/kernel MLPHead_0/kernel "
    "logits/kernel classifier_1/kernel unembed/kernel readout/kernel x/head/0/kernel "
    "pos pos_embed W_pos wte Embed_0/embedding wpe/weight embed_tokens/weight "
    "lm_head/weight query/bias norm/scale logits_dense/kernel LogitDense_0/kernel "
    "logitdense/kernel heads/0/kernel lm_heads/kernel positional_encoding position "
    "x/positions posemb/w tok_emb/weight emb/kernel embeds norm/gamma norm/beta "
    "head heads lm_head LMHead classifier readout unembed W_unembed logits vocab_proj "
    "head_w lm_head_kernel a/lm_head mlp.lm_head a/heads/0",
    ((5, 6, 4), None): "bias norm/scale pos_embed embedder/kernel head/kernel",
    ((6,), None): "w weight gamma Dense_0/kernel",
    ((), None): "temperature weight",
    ((3, 1, 4), None): "Conv_0/kernel",
    ((3, 2, 1, 4), None): "Conv_0/kernel",
}
DECIDED = [
    (path, shape, matrix)
    for (shape, matrix), paths in BY_NAME.items()
    for path in paths.split()
]


@pytest.mark.parametrize(("path", "shape", "matrix"), DECIDED)
def test_names_and_rank_decide(path, shape, matrix):
    assert decide(path, *shape) == outcome(matrix)


@pytest.mark.parametrize(
    ("path", "shape", "reason"),
    [
        ("Dense_0/weight", (6, 4), "'weight' may be [fan_out, fan_in], as in PyTorch"),
        ("Dense_0/kernel", (3, 6, 4), "rank 3: no attention or convolution"),
        ("experts/kernel", (3, 6, 4), "rank 3: no attention or convolution"),
        ("query/kernel", (3, 6, 2, 4), "rank 4: no attention or convolution"),
        ("out/kernel", (3, 2, 4, 6), "rank 4: no attention or convolution"),
        ("Conv_0/kernel", (2, 2, 2, 2, 6, 4), "rank 6: no attention or convolution"),
        ("convex/kernel", (3, 6, 4), "rank 3: no attention or convolution"),
        ("query", (6, 2, 4), "rank 3: no attention or convolution"),
    ],
)
def test_what_names_and_rank_leave_open_is_refused(path, shape, reason):
    assert complaints(at(path, shaped(*shape)))[path].startswith(reason)


def test_the_error_shows_what_names_decided_beside_the_undecided():
    """Layers stacked unbeknown to the rule: `up` is refused, `query` only seems 3-D."""
    params = at("layers/query/kernel", shaped(3, 8, 8))
    params["layers"]["up"] = {"kernel": shaped(3, 8, 16)}
    with pytest.raises(
        ValueError, match=r"up/kernel[\s\S]*These were decided"
    ) as caught:
        plan(params)
    seeming = "  layers/query/kernel  (3, 8, 8): as 1 x (3, 64)"
    assert seeming in str(caught.value).splitlines()
    leaves = plan(params, stacked("layers")).leaves
    assert [(leaf.matrix, leaf.batch) for leaf in leaves] == [((8, 8), 3), ((8, 16), 3)]


def test_local_convolutions_have_a_matrix_for_each_position():
    assert decide("ConvLocal_0/kernel", 5, 18, 4) == ("muon", (18, 4), 5)
    assert decide("ConvLocal_0/kernel", 5, 7, 18, 4) == ("muon", (18, 4), 5 * 7)


def test_a_weight_is_decided_by_its_axes():
    params = {"linear": {"weight": shaped(5, 3), "bias": shaped(5)}}
    axes = {"linear": {"weight": MatrixAxes(fan_in=1, fan_out=0), "bias": None}}
    expected = {**muon(3, 5, "linear/weight"), **adamw("linear/bias")}
    assert table_of(plan(params, axes)) == expected


# --- stacked ------------------------------------------------------------------------


def looks_whole(path, shape):
    """A vector by its rank alone, a stack of which looks like a matrix."""
    return len(shape) == 1 and path in ("w", "Dense_0/kernel")


STACKS = [(path, *row) for path, *row in DECIDED if not looks_whole(path, row[0])]


@settings(deadline=None)
@given(st.sampled_from(STACKS), st.integers(1, 4), st.data())
def test_stacked_leaves_are_batches_of_what_one_layer_is(row, length, data):
    path, shape, matrix = row
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    whole = list(shape)
    whole.insert(axis % (len(shape) + 1), length)
    rule = stacked("layers", axis=axis)
    leaves = {"layers": at(path, shaped(*whole)), "others": at(path, shaped(*shape))}
    assert table_of(plan(leaves, rule)) == {
        f"layers/{path}": outcome(matrix, length),
        f"others/{path}": outcome(matrix),
    }


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("layers", "layers/up/kernel", True),
        ("layers", "decoder/layers/up/kernel", True),
        ("layers", "layers_0/up/kernel", False),
        ("layers", "my_layers/up/kernel", False),
        ("block_.*", "block_0/up/kernel", True),
        (r"block_\d", "block_a/up/kernel", False),
        ("decoder/layers", "decoder/layers/up/kernel", True),
        ("decoder/layers", "encoder/layers/up/kernel", False),
        ("a|b", "b/up/kernel", True),
        ("a|b", "ab/up/kernel", False),
        ("kernel", "up/kernel", True),
    ],
)
def test_stacked_matches_whole_components(pattern, path, matches):
    leaf = at(path, shaped(7, 6, 4))
    if matches:
        assert table_of(plan(leaf, stacked(pattern)))[path] == ("muon", (6, 4), 7)
        return
    message = rf"cannot decide[\s\S]*  {path}  [\s\S]*\nmatrix_axes has a pattern that "
    message += r"matches no parameter: " + re.escape(f"stacked({pattern!r})")
    with pytest.raises(ValueError, match=message):
        plan(leaf, stacked(pattern))


def test_a_list_of_separate_layers_is_no_stack():
    """Without the error, a layer's kernel would lose its fan-in and go to AdamW."""
    layers = {"layers": {"0": {"up": {"kernel": shaped(6, 4)}}}}
    message = complaints(layers, stacked("layers"))["layers/0/up/kernel"]
    assert "list of separate layers" in message
    assert decide("layers/0/up/kernel", 6, 4) == ("muon", (6, 4), 1)
    rule = stacked("layers/[0-9]+")
    assert decide("layers/0/up/kernel", 7, 6, 4, rule=rule) == ("muon", (6, 4), 7)


@pytest.mark.parametrize("name", ["kernel", "w", "up"])
@pytest.mark.parametrize("axis", [0, -1])
def test_layers_that_are_not_stacked(name, axis):
    """Without an axis their matrices look like vectors, which are AdamW's."""
    layers = {f"block_{i}": {name: shaped(8, 8), "bias": shaped(8)} for i in range(2)}
    found = complaints(layers, stacked("block_.*/(kernel|w|up)", axis=axis))
    assert found.keys() == {f"block_{i}/{name}" for i in range(2)}
    for reason in found.values():
        assert reason.startswith("rank 2 under stacked('block_.*/(kernel|w|up)')")
        assert "is it stacked? One layer's would be (8,)" in reason


def test_stacks_of_vectors():
    """By their names, or by what `inner` says of them."""
    vectors = {"bias": shaped(3, 8), "scale": shaped(3, 8), "weight": shaped(3, 8)}
    layers = {"layers": vectors | {"kernel": shaped(3, 8, 4)}}
    found = {leaf.path: leaf.matrix for leaf in plan(layers, stacked("layers")).leaves}
    assert found.pop("layers/kernel") == (8, 4)
    assert found == dict.fromkeys(f"layers/{name}" for name in vectors)

    def inner(path, leaf):
        return None if path[-1].key == "gain" else flax_matrix_axes(path, leaf)

    gains = {"layers": {"gain": shaped(3, 8)}}
    assert complaints(gains, stacked("layers")).keys() == {"layers/gain"}
    assert plan(gains, stacked("layers", inner=inner)).leaves[0].optimizer == "adamw"


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (stacked("layers"), "stacked('layers')"),
        (optax_muon.fused("qkv", (4, 4)), "fused('qkv')"),
    ],
    ids=["stacked", "fused"],
)
def test_rules_that_are_taken_for_schedules(rule, name):
    params = at("layers/up", jnp.ones((3, 4, 4)))
    muon_of = optax.inject_hyperparams(optax_muon.muon)
    with pytest.raises(TypeError, match="matrix_axes, in static_args") as error:
        muon_of(0.1, matrix_axes=rule).init(params)
    assert str(error.value).startswith(f"{name} was called without a leaf")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inner": MatrixAxes(0, 1)}, TypeError, "is no rule"),
        ({"inner": MatrixAxes}, TypeError, "is no rule"),
        ({"axis": "0"}, TypeError, "axis='0' must be an int"),
        ({"axis": True}, TypeError, "axis=True must be an int"),
        ({"pattern": "layers("}, ValueError, "is no regular expression"),
    ],
)
def test_stacked_checks_its_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        stacked(**{"pattern": "layers", **arguments})


def test_flat_keys_are_read_as_paths():
    """As Haiku writes them, and others: one dictionary, separators in its keys."""
    params = {
        "block/lm_head/kernel": shaped(6, 4),
        "block/query/kernel": shaped(6, 2, 4),
        "block.up.bias": shaped(3, 4),
    }
    leaves = {leaf.path: leaf.matrix for leaf in plan(params).leaves}
    assert leaves == {
        "block/lm_head/kernel": None,
        "block/query/kernel": (6, 8),
        "block.up.bias": None,
    }
    assert complaints({"block.up.weight": shaped(6, 4)}).keys() == {"block.up.weight"}


def test_a_rules_own_mistake_is_not_taken_for_indecision():
    with pytest.raises(ValueError, match=r"\Ainvalid literal"):
        plan({"w": shaped(2, 3)}, lambda path, leaf: int("not a number"))


def test_stacks_of_stacks():
    rule = stacked("stages", inner=stacked("layers", axis=1))
    # One stage's leaf is [fan_in, layers, fan_out].
    stages = {"layers": {"up": shaped(2, 6, 3, 4)}, "up": shaped(2, 6, 4)}
    found = plan({"stages": stages, "layers": {"up": shaped(6, 3, 4)}}, rule)
    assert table_of(found) == {
        **muon(6, 4, "stages/layers/up", batch=2 * 3),
        **muon(6, 4, "stages/up", batch=2),
        **muon(6, 4, "layers/up", batch=3),
    }


# A misspelt pattern: without the error, the kernel would be one matrix.
MISSPELT = optax_muon.fused("qvk", (4, 4))
FUSED = {"qkv": {"kernel": jnp.ones((6, 8)), "bias": jnp.ones(8)}}


@pytest.mark.parametrize(
    "tx",
    [
        optax_muon.muon(0.1, matrix_axes=MISSPELT),
        optax_muon.muon(0.1, matrix_axes=stacked("qkv/bias", inner=MISSPELT)),
        optax_muon.route(
            optax_muon.scale_by_muon(), optax.sgd(0.1), matrix_axes=MISSPELT
        ),
        optax_muon.scale_by_muon(matrix_axes=MISSPELT),
        optax_muon.scale_by_lmo(stacked("qvk", inner=optax_muon.flax_norm_balls())),
        optax_muon.scale_by_lmo(optax_muon.flax_norm_balls(inner=MISSPELT)),
    ],
    ids=["muon", "inner", "route", "part", "lmo", "inner of lmo"],
)
def test_patterns_that_match_no_parameter(tx):
    message = r"a pattern that matches no parameter: \w+\('qvk'\)\. [\s\S]* 'qkv/\w+'"
    with pytest.raises(ValueError, match=message):
        tx.init(FUSED)


@pytest.mark.parametrize(
    "mask",
    [
        {"encoder": True, "decoder": False},
        {"encoder": True, "decoder": {"qkv": {"kernel": False, "bias": False}}},
        lambda params: {"encoder": True, "decoder": False},
    ],
    ids=["branch", "leaves", "function"],
)
def test_patterns_that_match_masked_leaves_alone(mask):
    """As where one optimizer has the attentions, and this one has the rest."""
    rule = optax_muon.fused("decoder/qkv", (4, 4))
    params = {"encoder": jnp.ones((6, 4)), "decoder": FUSED}
    tx = optax_muon.muon(0.1, matrix_axes=rule)
    optax.masked(tx, mask).init(params)
    names = {"encoder": "a", "decoder": "b"}
    both = optax.partition({"a": tx, "b": tx}, names)
    updates, _ = both.update(params, both.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    part = optax_muon.scale_by_muon(matrix_axes=rule)
    part.init({"encoder": params["encoder"], "decoder": {"qkv": None}})
    with pytest.raises(ValueError, match="decoder/qkv"):
        part.init({"encoder": params["encoder"]})


def test_combinators_are_as_good_as_functions():
    """Any callable may be asked, and rules be sent to other processes."""

    @dataclasses.dataclass  # not frozen, so without a hash
    class Mine:
        def __call__(self, path, leaf):
            return optax_muon.flax_matrix_axes(path, leaf)

    assert hash(stacked("layers", inner=Mine())) is not None
    rule = pickle.loads(pickle.dumps(optax_muon.fused("qkv", (4, 4))))
    assert plan(FUSED, rule).leaves[1].parts == ((6, 4), (6, 4))


def test_a_rule_for_several_models_is_a_function_of_ones_own():
    rule = stacked("layers")
    params = {"up": shaped(6, 4)}
    with pytest.raises(ValueError, match="lambda path, leaf: rule"):
        plan(params, rule)
    assert plan(params, lambda path, leaf: rule(path, leaf)).leaves[0].matrix == (6, 4)


def test_stacked_hands_one_layer_to_the_rule_of_the_user():
    seen = {}

    def inner(path, leaf):
        seen[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
        return MatrixAxes(fan_in=-1, fan_out=0)

    params = at("layers/w", jax.ShapeDtypeStruct((4, 3, 5), jnp.bfloat16))
    leaf = plan(params, stacked("layers", axis=1, inner=inner)).leaves[0]
    assert (leaf.matrix, leaf.batch) == ((5, 4), 3)
    assert (seen["layers/w"].shape, seen["layers/w"].dtype) == ((4, 5), jnp.bfloat16)


@pytest.mark.parametrize("axis", [1, -2])
def test_stacked_names_leaves_that_lack_the_axis(axis):
    params = {"layers": {"a": shaped(3), "b": shaped(), "w": shaped(4, 3, 5)}}
    reason = f"stacked('layers', axis={axis}): no such axis"
    found = complaints(params, stacked("layers", axis=axis))
    assert found == {"layers/a": reason, "layers/b": reason}


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["0", 1.0, None, True, (0, "1"), (0.0,), (True,)])
@pytest.mark.parametrize("side", ["fan_in", "fan_out"])
def test_axes_that_are_no_integers(wrong, side):
    with pytest.raises(
        TypeError, match=r"fan_\w+=.* must be an int or a tuple of ints"
    ):
        MatrixAxes(**{side: wrong})


def test_axes_compare_and_hash_by_value():
    assert MatrixAxes(0, 1) == MatrixAxes((0,), (1,)) == MatrixAxes()
    assert len({MatrixAxes(0, (1, 2)), MatrixAxes((0,), (1, 2)), MatrixAxes(0, 1)}) == 2


RUBBISH = [(0, 1), 0, True, "muon", [MatrixAxes()], {}, MatrixAxes]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=str)
@pytest.mark.parametrize("wrap", [lambda rule: rule, lambda r: stacked("a", inner=r)])
def test_a_rule_that_returns_rubbish(rubbish, wrap):
    params = {"a": {"w": shaped(2, 3, 4)}}
    with pytest.raises(TypeError, match=r"'a/w'.*must return a MatrixAxes, or None"):
        plan(params, wrap(lambda path, leaf: rubbish))


def test_reasons_of_a_rule_of_the_user_are_reported():
    def rule(path, leaf):
        if leaf.shape == (9, 10):
            raise UndecidedLeafError("nine by ten")
        return flax_matrix_axes(path, leaf)

    assert complaints(MLP, rule) == {"Dense_1/kernel": "nine by ten"}


def test_errors_in_a_rule_of_the_user_stay_what_they_are():
    with pytest.raises(KeyError, match="typo"):
        plan(MLP, lambda path, leaf: {}["typo"])


def test_all_bad_leaves_of_every_kind_in_one_error():
    params = {
        "bool": jnp.ones((2, 2), bool),
        "complex": {"kernel": jnp.ones((2, 2), jnp.complex64)},
        "cube": {"kernel": jnp.ones((2, 3, 4))},
        "fine": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "float8": {"kernel": jnp.ones((2, 3), jnp.float8_e4m3fn)},
        "ints": [jnp.ones(3, jnp.int32), jnp.ones((2, 2), jnp.uint8)],
        "key": jax.random.key(0),
        "torch": {"weight": jnp.ones((2, 3))},
    }
    no_gradient = "no floating dtype, so it has no gradient"
    starts = {
        "bool": no_gradient,
        "complex/kernel": "complex leaves are not supported",
        "cube/kernel": "rank 3",
        "float8/kernel": "nothing can be computed in this dtype",
        "ints/0": no_gradient,
        "ints/1": no_gradient,
        "key": no_gradient,
        "torch/weight": "'weight' may be [fan_out, fan_in]",
    }
    found = complaints(params)
    assert list(found) == list(starts)
    assert all(found[path].startswith(start) for path, start in starts.items())


def test_dtypes_are_refused_whatever_the_rule_says():
    params = {"i": jnp.ones((2, 2), jnp.int32), "c": jnp.ones(2, jnp.complex64)}
    assert complaints(params, lambda path, leaf: None).keys() == {"i", "c"}
    assert complaints(params, {"i": MatrixAxes(), "c": None}).keys() == {"i", "c"}


def test_transformations_for_matrices_list_the_leaves_that_are_none():
    for make in (optax_muon.scale_by_muon, optax_muon.normalize_neurons):
        with pytest.raises(
            ValueError, match=f"{make.__name__} takes matrices"
        ) as caught:
            make().init(jax.tree.map(lambda x: jnp.zeros(x.shape), MLP))
        lines = str(caught.value).splitlines()[1:-1]
        assert [line.split()[0] for line in lines] == sorted(
            path for path, row in LINEN_MLP.items() if row[0] == "adamw"
        )
        assert "Use optax_muon.muon" in str(caught.value)
