"""axes_from_logical: matrices by logical names of axes, in Linen and NNX."""

import re

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_muon
from optax_muon import LOGICAL_RULES, MatrixAxes, axes_from_logical, stacked
from tests import logical_models as sizes
from tests.routing_cases import adamw, linen, muon, probe, random_like, table_of, under

WIDTH, HIDDEN, EXPERTS, LAYERS = 10, 14, 5, 3
QUERIES, KEYS = 4 * 6, 2 * 6


def linen_layer(layers=1):
    return {
        **muon(WIDTH, QUERIES, "query/kernel", batch=layers),
        **muon(WIDTH, KEYS, "key/kernel", "value/kernel", batch=layers),
        **muon(QUERIES, WIDTH, "out", batch=layers),
        **muon(WIDTH, HIDDEN, "wi", batch=2 * layers),  # gate and up
        **muon(HIDDEN, WIDTH, "wo", batch=layers),
        **muon(WIDTH, EXPERTS, "router", batch=layers),
        **muon(WIDTH, HIDDEN, "up", batch=EXPERTS * layers),
        **muon(HIDDEN, WIDTH, "down", batch=EXPERTS * layers),
        **adamw("query/bias", "key/bias", "value/bias", "bias", "norm/rms/scale"),
    }


def nnx_layer(layers=1):
    return {
        **muon(WIDTH, 8, "wq_a/kernel", batch=layers),
        **muon(8, QUERIES, "wq_b/kernel", batch=layers),
        **muon(WIDTH, QUERIES, "wkv", batch=2 * layers),  # keys and values
        **muon(QUERIES, WIDTH, "out/kernel", batch=layers),
        **muon(WIDTH, HIDDEN, "wi", batch=EXPERTS * layers),
        **muon(HIDDEN, WIDTH, "wo", batch=EXPERTS * layers),
        **adamw("wq_a/bias", "wq_b/bias", "out/bias", "norm/scale"),
    }


def separate(prefix, layer):
    return {
        k: v for i in range(LAYERS) for k, v in under(f"{prefix}{i}", layer).items()
    }


def linen_params(scan_axis=None):
    return linen(sizes.LinenLlama(scan_axis), 1, sizes.TIME, dtype=jnp.int32)()


def nnx_model(scan_axis=None):
    with nnx.use_eager_sharding(False):  # logical names are no mesh axes
        return nnx.eval_shape(lambda: sizes.NNXLlama(nnx.Rngs(0), scan_axis))


LINEN_ENDS = adamw("embed/embedding", "to_tokens/kernel", "to_tokens/bias")


@pytest.mark.parametrize("scan_axis", [None, 0, 1])
@pytest.mark.parametrize("wrap", [dict, flax.core.freeze])
def test_linen(scan_axis, wrap):
    params = wrap(linen_params(scan_axis))
    axes = axes_from_logical()(params)
    layers = separate("layer_", linen_layer())
    if scan_axis is not None:
        layers = under("layers", linen_layer(LAYERS))
    expected = LINEN_ENDS | layers
    assert table_of(optax_muon.plan(nn.unbox(params), axes)) == expected
    assert table_of(optax_muon.plan(params, axes)) == expected  # still boxed


@pytest.mark.parametrize("scan_axis", [None, 0, 1])
@pytest.mark.parametrize("state", [False, True], ids=["model", "state"])
def test_nnx(scan_axis, state):
    model = nnx_model(scan_axis)
    params = nnx.state(model, nnx.Param)
    # The biases of wq_a and out have no names, and are of rank 2 in stacks.
    others = None if scan_axis is None else stacked("layers", axis=scan_axis)
    axes = axes_from_logical(others=others)(params if state else model)
    layers = separate("blocks/", nnx_layer())
    if scan_axis is not None:
        layers = under("layers", nnx_layer(LAYERS))
    expected = adamw("embed/embedding") | layers
    assert table_of(optax_muon.plan(params, axes)) == expected
    assert table_of(optax_muon.plan(nnx.to_pure_dict(params), axes)) == expected


def test_updates_are_those_of_axes_written_by_hand():
    boxed = {"layer_0": linen_params()["layer_0"]}
    query, out = MatrixAxes(0, (1, 2)), MatrixAxes((0, 1), 2)
    by_hand = {
        **{x: {"kernel": query, "bias": None} for x in ("query", "key", "value")},
        **{"out": out, "wi": MatrixAxes(0, 2), "wo": MatrixAxes(0, 1)},
        **{"up": MatrixAxes(1, 2), "down": MatrixAxes(1, 2), "bias": None},
        **{"router": MatrixAxes(0, 1), "norm": None},
    }
    params = random_like(nn.unbox(boxed))
    updates = []
    for axes in (axes_from_logical()(boxed), {"layer_0": by_hand}):
        tx = optax_muon.muon(0.1, orthogonalizer=probe, matrix_axes=axes)
        updates.append(tx.update(params, tx.init(params), params)[0])
    # The same program on the same numbers.
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_in_nnx_optimizer_the_axes_hold_in_init_and_update():
    """It hands variables to `init` and bare arrays to `update`, which have no names."""
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: sizes.NNXLayer(nnx.Rngs(0)))
        nnx.update(model, random_like(nnx.state(model, nnx.Param)))
        axes = axes_from_logical()(model)
        tx = optax_muon.muon(0.1, orthogonalizer=probe, matrix_axes=axes)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        gradients = random_like(nnx.state(model, nnx.Param), seed=1)
        bare = nnx.to_pure_dict(gradients)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        optimizer.update(model, gradients)
    updates, _ = tx.update(bare, tx.init(params), params)
    expected = optax.apply_updates(params, updates)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, after, expected)


def boxed(*names, shape=None, box=nn.LogicallyPartitioned):
    shape = shape or tuple(range(2, 2 + len(names)))
    return box(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def of(*names, rules=LOGICAL_RULES, **options):
    return axes_from_logical(rules)({"w": boxed(*names, **options)})["w"]


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        ("embed heads kv", MatrixAxes(0, (1, 2))),
        ("heads kv embed", MatrixAxes((0, 1), 2)),
        ("embed kv", MatrixAxes(0, 1)),  # one key head for all
        ("embed embed", MatrixAxes(0, 1)),
        ("mlp heads kv", MatrixAxes(0, (1, 2))),
        ("heads kv heads kv", MatrixAxes((0, 1), (2, 3))),
        ("kv heads", MatrixAxes(0, 1)),  # no heads of a head_dim that comes first
        ("layers embed mlp", MatrixAxes(1, 2)),
        ("embed mlp layers", MatrixAxes(0, 1)),
        ("heads layers kv embed", MatrixAxes((0, 2), 3)),
        ("stage layers experts mlp embed", MatrixAxes(3, 4)),
        ("embed experts", MatrixAxes(0, 1)),
        ("layers embed layers experts", MatrixAxes(1, 3)),
        ("embed qkv heads head_dim", MatrixAxes(0, (2, 3))),
        ("layers heads kv", None),
        ("experts mlp", None),
        ("layers experts", None),
        ("layers stage", None),
        ("vocab embed", None),
        ("embed layers vocab", None),
        ("relpos_buckets heads", None),
    ],
)
def test_kinds_in_their_order(names, axes):
    assert of(*names.split()) == axes


def test_vectors_need_no_names():
    shapes = {"a": (), "b": (3,)}
    params = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    params |= {"c": boxed("unheard_of"), "d": boxed("embed", "mlp")}
    assert axes_from_logical()(params) == dict.fromkeys("abc") | {"d": MatrixAxes()}


def test_partitioned_boxes_are_read_as_well():
    assert of("embed", "mlp", box=nn.Partitioned) == MatrixAxes(0, 1)


def test_sharding_of_older_nnx_code():
    deprecated = pytest.warns(DeprecationWarning, match="use 'out_sharding'")
    with nnx.use_eager_sharding(False), deprecated:
        param = nnx.Param(jnp.ones((2, 3)), sharding=("mlp", "embed"))
    assert axes_from_logical()({"w": param}) == {"w": MatrixAxes(0, 1)}


def test_modules_of_nnx_inside_linen():
    def make(rngs):
        init = nnx.with_partitioning(nnx.initializers.ones, ("embed", "mlp"))
        return nnx.Linear(2, 3, kernel_init=init, rngs=rngs)

    module = nnx.bridge.to_linen(make)
    with nnx.use_eager_sharding(False):
        variables = module.init(jax.random.key(0), jnp.ones((1, 2)))
    expected = {"kernel": MatrixAxes(0, 1), "bias": None}
    assert axes_from_logical()(variables["params"]) == expected


def test_rules_of_a_user():
    more = LOGICAL_RULES | {"width": "side", ("embed", None): MatrixAxes(1, 0)}
    assert of("embed", "width", rules=more) == MatrixAxes(0, 1)
    assert of("embed", None, rules=more) == MatrixAxes(1, 0)
    assert of("embed", "mlp", rules=more | {("embed", "mlp"): None}) is None
    assert of("a", "b", rules={"a": "side", "b": "side"}) == MatrixAxes(0, 1)


def test_others_decides_leaves_without_names_and_no_others():
    bare = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    params = {"head": {"kernel": bare}, "up": {"kernel": bare}, "w": boxed("mlp", "kv")}
    rule = axes_from_logical(LOGICAL_RULES, others=optax_muon.flax_matrix_axes)
    assert rule(params) == {
        "head": {"kernel": None},
        "up": {"kernel": MatrixAxes(0, 1)},
        "w": MatrixAxes(0, 1),
    }


# --- refusals -----------------------------------------------------------------------


def test_one_error_lists_every_leaf_that_is_not_decided():
    bare = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    params = {
        "unknown": boxed("embed", "width", None, ("fsdp", "tensor")),
        "sides": boxed("embed", "heads", "kv", "mlp"),
        "short": boxed("embed", "mlp", shape=(2, 3, 4)),
        "bare": {"kernel": bare},
        "rule": boxed("a", "b"),
        "several": nn.LogicallyPartitioned((bare, bare), ("embed", "mlp")),
        "good": boxed("embed", "mlp"),
    }
    rules = LOGICAL_RULES | {("a", "b"): MatrixAxes(0, 2)}
    with pytest.raises(ValueError, match=r"\Aaxes_from_logical cannot") as caught:
        axes_from_logical(rules)(params)
    _, *lines, remedy = str(caught.value).splitlines()
    found = [re.fullmatch(r"  (\S+)  (\(.*\)|.* no names): (.*)", x) for x in lines]
    reasons = {match[1]: match[3] for match in found}
    assert len(lines) == len(reasons)
    assert reasons == {
        "unknown": "the rules do not say what ['width', None, ('fsdp', 'tensor')] are",
        "sides": "3 sides, where a matrix has two: embed, heads kv, mlp",
        "short": "2 names for 3 axes; transforms name new axes by their metadata, "
        "partition_name",
        "bare/kernel": "nothing says what its axes are",
        "rule": f"{MatrixAxes(0, 2)} does not fit a leaf of shape (2, 3)",
        "several": "one box around 2 arrays",
    }
    assert "(2, 3, 4) ('embed', 'mlp')" in str(caught.value)
    assert "LOGICAL_RULES | {name: kind}" in remedy


@pytest.mark.parametrize("unboxed", [True, False], ids=["unboxed", "nnx"])
def test_names_at_no_leaf_at_all(unboxed):
    if unboxed:
        named = nn.unbox(linen_params())
    else:
        named = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"at none of \d+ leaves.*before nn.unbox"):
        axes_from_logical()(named)


def test_no_leaf_at_all():
    assert axes_from_logical()({}) == {}


def test_used_as_a_rule_it_says_what_to_do():
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(TypeError, match=r"axes_from_logical\(rules\)\(model\)"):
        optax_muon.plan(params, axes_from_logical())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (linen_params(), r"axes_from_logical\(rules\)\(parameters\)"),
        (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), r"\(rules\)\(parameters\)"),
        ([("embed", "fsdp")], "no mapping.*Mesh axes"),
        ({"embed": "fsdp"}, "hold\n  'embed': 'fsdp'\nMesh axes"),
        ({"mlp": "side", "a": None, 3: "side"}, "\n  'a': None\n  3: 'side'\nMesh"),
        ({("embed", "mlp"): "side"}, r"\n  \('embed', 'mlp'\): 'side'\n"),
    ],
)
def test_rules_that_are_none(rules, message):
    with pytest.raises(TypeError, match=f"(?s){message}"):
        axes_from_logical(rules)


@pytest.mark.parametrize("others", [MatrixAxes(), MatrixAxes, "stacked"])
def test_others_that_is_no_rule(others):
    with pytest.raises(TypeError, match=r"others=.* is no rule"):
        axes_from_logical(others=others)
