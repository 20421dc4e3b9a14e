"""What a plan says of cost, against compiled programs and states that are made."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_muon
from optax_muon import MatrixAxes, NewtonSchulz, Qdwh, Svd, explain, muon, plan
from tests.routing_cases import CASES, shaped

KELLER = NewtonSchulz("keller_jordan")
DTYPES = [(None, None), ("bfloat16", None), (None, "bfloat16"), ("float32", "float16")]
every_dtype = pytest.mark.parametrize(("momentum", "adam"), DTYPES)


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def mixed(dtype):
    """Matrices and vectors of which both optimizers keep moments."""
    kernels = {"up": shaped(24, 64), "down": shaped(64, 24), "heads": shaped(8, 16, 8)}
    tree = kernels | {"bias": shaped(64), "embedding": shaped(40, 24)}
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def mixed_axes(path, leaf):
    if path[0].key in ("bias", "embedding"):
        return None
    return MatrixAxes(-2, -1)


def moments(state):
    """All arrays of a state but its counts."""
    arrays = jax.tree.leaves(state)
    return [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]


class TestState:
    @every_dtype
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_bytes_are_those_of_the_state(self, dtype, momentum, adam):
        params = mixed(dtype)
        dtypes = {"momentum_dtype": momentum, "adam_dtype": adam}
        found = plan(params, mixed_axes, **dtypes)
        tx = muon(0.1, matrix_axes=mixed_axes, **dtypes)
        made = moments(jax.eval_shape(tx.init, params))
        assert len(made) == 3 + 2 * 2
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in made)
        assert found.state_bytes == found.total_state_bytes == size

    def test_counts_are_all_that_is_left_out(self):
        params = mixed("float32")
        state = jax.eval_shape(muon(0.1, matrix_axes=mixed_axes).init, params)
        rest = set(map(id, jax.tree.leaves(state))) - set(map(id, moments(state)))
        counts = [x for x in jax.tree.leaves(state) if id(x) in rest]
        assert {(x.shape, x.dtype) for x in counts} == {((), np.dtype("int32"))}

    def test_on_a_device_and_in_total(self, mesh):
        specs = {
            "up": P("fsdp", "tensor"),
            "down": P(None, "fsdp"),
            "heads": P("tensor"),
            "bias": P(),
            "embedding": P(("fsdp", "tensor")),
        }
        sharding = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        params = jax.tree.map(
            lambda x, s: jax.device_put(jnp.ones(x.shape, x.dtype), s),
            mixed("float32"),
            sharding,
        )
        arguments = {"matrix_axes": mixed_axes, "sharding": sharding}
        found = plan(params, **arguments, momentum_dtype="bfloat16")
        tx = muon(0.1, **arguments, momentum_dtype="bfloat16")
        made = moments(jax.jit(tx.init)(params))
        assert found.total_state_bytes == sum(x.nbytes for x in made)
        on_one = [x.addressable_shards[0].data.nbytes for x in made]
        assert found.state_bytes == sum(on_one) < found.total_state_bytes
        assert found.devices == 8


FUSED = MatrixAxes(0, 1, fan_out_parts=(48, 16))
WORK = {
    "direct and gram": ({"a": (64, 64), "b": (3, 32, 128), "c": (64, 32)}, KELLER),
    "polar express": ({"a": (64, 64), "b": (3, 32, 128)}, NewtonSchulz()),
    "direct": ({"b": (32, 128)}, NewtonSchulz("cubic", 3, method="direct")),
    "a product for two halves": ({"a": (512, 600)}, KELLER),
    "restarts": (
        {"b": (32, 128)},
        NewtonSchulz("keller_jordan", method="gram", restarts=(0, 1, 2)),
    ),
    "parts in two forms": ({"fused": (48, 64)}, KELLER),
}


@pytest.mark.parametrize(("shapes", "orthogonalizer"), WORK.values(), ids=WORK)
def test_flops_are_those_of_the_compiled_update(
    shapes, orthogonalizer, benchmark_modules
):
    import hlo

    params = {name: shaped(*shape) for name, shape in shapes.items()} | {
        "bias": shaped(64)
    }
    axes = {name: MatrixAxes(-2, -1) for name in shapes} | {"bias": None}
    axes |= {"fused": FUSED} if "fused" in shapes else {}
    tx = muon(0.1, matrix_axes=axes, orthogonalizer=orthogonalizer, weight_decay=0.1)
    state = jax.eval_shape(tx.init, params)
    program = jax.jit(tx.update).lower(params, state, params).compile()
    found = plan(params, axes, orthogonalizer=orthogonalizer, platform="cpu")
    assert found.flops == hlo.Program(program.as_text()).flops()
    assert found.flops == sum(bucket.flops for bucket in found.buckets)


def test_a_step_on_a_mesh_computes_and_sends_what_its_program_does(
    mesh, benchmark_modules
):
    import hlo

    specs = {"up": P("fsdp", "tensor"), "down": P("tensor"), "heads": P("tensor")}
    sharding = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    sharding |= {name: NamedSharding(mesh, P()) for name in ("bias", "embedding")}
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        mixed("float32"),
        sharding,
    )
    arguments = {"matrix_axes": mixed_axes, "sharding": sharding}
    tx = muon(0.1, **arguments)
    state = jax.eval_shape(tx.init, params)
    program = jax.jit(tx.update).lower(params, state, params).compile()
    compiled = hlo.Program(program.as_text())
    found = plan(params, **arguments, platform="cpu")
    assert found.flops == compiled.flops()
    sent = sum(one.sent * one.times for one in compiled.collectives())
    assert found.bytes_sent == sent > 0


class TestForms:
    @pytest.mark.parametrize("platform", ["cpu", "tpu"])
    @pytest.mark.parametrize("method", ["auto", "direct", "gram"])
    def test_are_what_explain_says(self, method, platform):
        configuration = NewtonSchulz("keller_jordan", method=method)
        arguments = {"orthogonalizer": configuration, "platform": platform}
        for shape in ((64, 64), (256, 64), (600, 700)):
            [bucket] = plan(shaped(*shape), **arguments).buckets
            choice = explain(shape, configuration, platform=platform)
            [form] = bucket.forms
            assert (form.name, form.restarts, form.dtype) == (
                choice.method,
                choice.restarts,
                choice.dtype,
            )
            assert bucket.flops == choice.flops

    def test_of_parts_are_each_their_own(self):
        [bucket] = plan({"fused": shaped(48, 64)}, {"fused": FUSED}).buckets
        assert [form.name for form in bucket.forms] == ["direct", "gram"]

    def test_of_shared_columns_are_gram_whatever_a_whole_matrix_takes(self, mesh):
        """Of a shape that is iterated directly on one device."""
        sharding = NamedSharding(mesh, P(None, ("fsdp", "tensor")))
        arguments = {"orthogonalizer": KELLER, "platform": "tpu"}
        params = {"kernel": shaped(8192, 8192)}
        [whole] = plan(params, **arguments).buckets
        [shared] = plan(params, sharding=sharding, **arguments).buckets
        assert shared.division.column_axes
        assert [form.name for form in whole.forms] == ["direct"]
        assert [str(form) for form in shared.forms] == [
            "gram in bfloat16, restarts (1, 3)"
        ]

    def test_of_others_have_names_and_products_that_are_not_counted(self):
        def my_own(x):
            return x

        for orthogonalizer, text in (
            (Svd(), "svd in float32"),
            (Qdwh(), "qdwh in float32"),
            (my_own, "my_own"),
        ):
            found = plan(shaped(8, 8), orthogonalizer=orthogonalizer, tokens=4)
            assert [str(form) for form in found.buckets[0].forms] == [text]
            assert found.buckets[0].flops is found.flops is found.overhead is None


class TestTokens:
    @pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
    def test_overhead_of_direct_squares_is_steps_times_side_over_tokens(self, platform):
        """T m / B, as Jordan et al. derive it."""
        configuration = NewtonSchulz("keller_jordan", method="direct")
        found = plan(
            {"a": shaped(3, 128, 128)},
            MatrixAxes(1, 2),
            orthogonalizer=configuration,
            platform=platform,
            tokens=1000,
        )
        assert found.overhead == pytest.approx(5 * 128 / 1000, rel=1e-15)

    def test_training_is_what_a_compiled_pass_computes(self, benchmark_modules):
        """Three products for each matrix; an embedding looked up has none."""
        import hlo

        params = mixed("float32")

        def loss(params, tokens):
            x = params["embedding"][tokens]  # whose gradient asks for one of "up"
            return jnp.sum(jnp.tanh(x @ params["up"]) @ params["down"] * x)

        tokens = jax.ShapeDtypeStruct((80,), "int32")
        program = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
        dense = {name: params[name] for name in ("up", "down", "embedding", "bias")}
        found = plan(dense, mixed_axes, tokens=80)
        assert found.training_flops == hlo.Program(program.as_text()).flops()

    def test_a_rule_counts_each_of_muons_leaves(self):
        params = {"router": shaped(16, 8), "experts": shaped(8, 16, 32), "b": shaped(9)}
        axes = {
            "router": MatrixAxes(),
            "experts": MatrixAxes(1, 2),
            "b": None,
        }
        seen = []

        def tokens(path, leaf):
            seen.append((path[0].key, leaf.shape))
            return np.float32(25.0) if path[0].key == "experts" else 100

        found = plan(params, axes, tokens=tokens)
        assert sorted(seen) == [("experts", (8, 16, 32)), ("router", (16, 8))]
        expected = 6 * (100 * 16 * 8 + 25 * 8 * 16 * 32)
        assert found.training_flops == expected
        assert found.overhead == found.flops / expected

    def test_on_a_mesh_a_device_trains_its_share(self, mesh):
        params = CASES["linen mlp"].build()
        alone = plan(params, tokens=64)
        shared = plan(params, sharding=NamedSharding(mesh, P()), tokens=64)
        assert shared.training_flops == alone.training_flops / 8
        assert shared.overhead == shared.flops / shared.training_flops

    def test_nothing_to_train_and_nothing_asked(self):
        assert plan({"b": shaped(3)}, tokens=8).overhead == 0
        assert plan(shaped(3, 4)).training_flops is None
        assert plan(shaped(3, 4)).overhead is None

    @pytest.mark.parametrize("tokens", [0, -1, True, "many", math.nan, math.inf])
    def test_must_be_positive_numbers(self, tokens):
        with pytest.raises(ValueError, match=r"\Atokens=.* must be a positive int"):
            plan({"b": shaped(3)}, tokens=tokens)
        params = {"a": shaped(3, 4), "b": shaped(3), "c": shaped(4, 4)}
        with pytest.raises(ValueError, match=r"for a; tokens=.* for c: must be"):
            plan(params, tokens=lambda path, leaf: tokens)


@pytest.mark.parametrize("argument", ["momentum_dtype", "adam_dtype"])
def test_dtypes_are_checked_as_by_muon(argument):
    for build in (lambda **a: plan({}, **a), lambda **a: muon(0.1, **a)):
        with pytest.raises(ValueError, match=f"{argument}='int8' cannot be computed"):
            build(**{argument: "int8"})


def test_arguments_of_muon_have_its_defaults():
    """So that a plan without arguments is of `muon` without arguments."""
    here, there = (inspect.signature(f).parameters for f in (plan, muon))
    shared = set(here) & set(there)
    assert set(here) - shared == {"params", "platform", "tokens"}
    assert all(here[name].default == there[name].default for name in shared)
    assert isinstance(plan({}), optax_muon.Plan)
