"""The argument `sharding`: what it may be, what is refused, and what makes it."""

import functools
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_muon
from optax_muon import KeepOut, NewtonSchulz, route, scale_by_muon, shardings_of

PARAMS = {
    "up": {"kernel": np.ones((16, 32), np.float32)},
    "down": {"kernel": np.ones((32, 16), np.float32)},
}
KELLER = NewtonSchulz("keller_jordan")
CUBIC = NewtonSchulz("cubic", steps=2)  # rounding hardly grows


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def tree(mesh, up, down):
    entries = {"up": {"kernel": up}, "down": {"kernel": down}}
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        entries,
        is_leaf=lambda x: isinstance(x, P),
    )


def placements(sharding, params=PARAMS):
    """The mesh axes that move of each stack, by its first leaf, from the plan."""
    found = optax_muon.plan(params, sharding=sharding, orthogonalizer=KELLER).buckets
    return {b.paths[0]: sorted(name for name, _ in b.division.moved) for b in found}


class TestForms:
    def test_a_tree_of_named_shardings(self, mesh):
        sharding = tree(mesh, P("fsdp", "tensor"), P("tensor", "fsdp"))
        assert placements(sharding) == {"down/kernel": ["fsdp", "tensor"]}

    def test_a_prefix(self, mesh):
        both = placements(NamedSharding(mesh, P("fsdp")))
        assert both == {"up/kernel": ["fsdp"], "down/kernel": ["fsdp"]}
        half = {"up": NamedSharding(mesh, P("fsdp")), "down": None}
        assert placements(half) == {"up/kernel": ["fsdp"], "down/kernel": []}

    def test_partition_specs_under_the_mesh_in_context(self, mesh):
        with jax.set_mesh(mesh):
            found = placements(P("fsdp", "tensor"))
            assert list(found.values()) == [["fsdp", "tensor"]] * 2
            tx = scale_by_muon(sharding=P("fsdp", "tensor"))
            state = jax.jit(tx.init)(PARAMS)
            step, _ = jax.jit(tx.update)(PARAMS, state)
        assert step["up"]["kernel"].sharding.spec == P("fsdp", "tensor")

    def test_parameters_on_one_device(self):
        sharding = shardings_of(jax.tree.map(jnp.asarray, PARAMS))
        assert placements(sharding) == {"down/kernel": []}
        tx = scale_by_muon(sharding=sharding)
        tx.update(PARAMS, tx.init(PARAMS))

    def test_none_on_a_mesh_of_automatic_axes_means_unsharded(self, mesh):
        with jax.set_mesh(mesh):
            assert placements(None) == {"down/kernel": []}

    def test_shape_structs_with_explicit_axes(self):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
        leaf = jax.ShapeDtypeStruct(
            (16, 32), jnp.float32, sharding=NamedSharding(mesh, P("x"))
        )
        assert placements(None, {"kernel": leaf}) == {"kernel": ["x"]}


class TestRefused:
    def test_specs_that_do_not_fit_are_listed_with_every_leaf(self, mesh):
        message = (
            r"sharding does not fit these leaves:\n"
            r"  down/kernel  \(32, 16\): .*has more entries than the leaf has axes\n"
            r"  up/kernel  \(16, 32\): .*more entries"
        )
        three = NamedSharding(mesh, P("fsdp", None, "tensor"))
        with pytest.raises(ValueError, match=message):
            scale_by_muon(sharding=three).init(PARAMS)

    @pytest.mark.parametrize(
        ("spec", "reason"),
        [
            (
                P("rows"),
                r"names \['rows'\], but the mesh axes are \['fsdp', 'tensor'\]",
            ),
            (P("fsdp", "fsdp"), "names a mesh axis twice"),
            (P(P.UNCONSTRAINED), "leaves an axis to the compiler"),
            (P(None, ("fsdp", "tensor")), "axis 1 of length 20 cannot be cut into 8"),
        ],
    )
    def test_a_spec(self, mesh, spec, reason):
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=reason) as raised:
            scale_by_muon(sharding=spec).init({"layer": {"kernel": jnp.ones((8, 20))}})
        assert "layer/kernel  (8, 20)" in str(raised.value)
        assert "shardings_of" in str(raised.value)

    def test_no_mesh(self):
        with pytest.raises(ValueError, match=r"no mesh in context; call jax\.set_mesh"):
            scale_by_muon(sharding=P("fsdp")).init(PARAMS)

    def test_several_meshes(self, mesh):
        other = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        sharding = {
            "up": NamedSharding(mesh, P("fsdp")),
            "down": NamedSharding(other, P("x")),
        }
        with pytest.raises(ValueError, match="several meshes"):
            scale_by_muon(sharding=sharding).init(PARAMS)

    @pytest.mark.parametrize(
        ("lies_on", "ids"),
        [("one", "[0]"), ("half", "[0, 1, 2, 3]"), ("reversed", "[7, 6, 5, 4")],
    )
    def test_another_mesh_than_the_parameters(self, mesh, lies_on, ids):
        """Outside jit; within, JAX's own error names the devices of both."""
        devices = np.array(jax.devices())
        own = {"one": devices[:1], "half": devices[:4], "reversed": devices[::-1]}
        lying = NamedSharding(jax.sharding.Mesh(own[lies_on], ("x",)), P())
        params = jax.device_put(PARAMS, devices[0] if lies_on == "one" else lying)
        sharding = NamedSharding(mesh, P("fsdp"))
        reason = rf"the 8 device\(s\) \[0, 1.*kernel lies on .*{re.escape(ids)}"
        for tx in (
            scale_by_muon(sharding=sharding),
            optax_muon.muon(1, sharding=sharding),
        ):
            with pytest.raises(ValueError, match=reason):
                tx.init(params)
            tx.init(jax.device_put(params, sharding))  # the remedy
            # Arrays that a traced function finds are constants, which JAX moves.
            whole = NamedSharding(mesh, P())
            jax.jit(functools.partial(tx.init, params), out_shardings=whole)()
            jax.eval_shape(functools.partial(tx.init, params))
            with pytest.raises(ValueError, match=reason):  # no constants of vmap
                jax.vmap(lambda _, tx=tx: tx.init(params))(jnp.ones(2))
        assert placements(sharding, params) == placements(sharding)  # a plan may ask

    def test_leaves_without_an_entry_and_entries_without_a_leaf(self, mesh):
        with pytest.raises(ValueError, match=r"down/kernel.*no entry for it"):
            scale_by_muon(sharding={"up": NamedSharding(mesh, P())}).init(PARAMS)
        more = {"up": None, "down": None, "side": NamedSharding(mesh, P())}
        with pytest.raises(ValueError, match=r"sharding names \['side'\]"):
            scale_by_muon(sharding=more).init(PARAMS)

    def test_another_type(self):
        with pytest.raises(TypeError, match="neither NamedSharding or PartitionSpec"):
            scale_by_muon(sharding={"up": "fsdp", "down": None}).init(PARAMS)

    def test_what_types_contradict(self):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
        kernel = jax.device_put(jnp.ones((16, 32)), NamedSharding(mesh, P("x")))
        tx = scale_by_muon(sharding=NamedSharding(mesh, P(None, "x")))
        with pytest.raises(ValueError, match="its type says"):
            tx.init({"kernel": kernel})

    def test_momentum_that_lies_elsewhere(self):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
        rows, columns = (NamedSharding(mesh, spec) for spec in (P("x"), P(None, "x")))
        kernel = jnp.ones((16, 32))
        tx = scale_by_muon()
        state = tx.init({"kernel": jax.device_put(kernel, rows)})
        for gradient in (jax.device_put(kernel, columns), np.asarray(kernel)):
            with pytest.raises(ValueError, match="sharded over other axes") as raised:
                tx.update({"kernel": gradient}, state)
            assert "kernel  (16, 32): gradient" in str(raised.value)

    def test_a_mesh_of_both_kinds_of_axes_must_be_told(self):
        kinds = (AxisType.Explicit, AxisType.Auto)
        mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=kinds)
        where = NamedSharding(mesh, P("fsdp", "tensor"))
        rng = np.random.default_rng(0)
        kernel = rng.normal(size=(16, 32)).astype(np.float32)
        placed = jax.device_put({"kernel": kernel}, where)
        with jax.set_mesh(mesh):
            with pytest.raises(ValueError, match="they tell only"):
                scale_by_muon().init(placed)
            tx = scale_by_muon(orthogonalizer=CUBIC, sharding=shardings_of(placed))
            state = jax.jit(tx.init)(placed)
            step, state = jax.jit(tx.update)(placed, state)
        alone = scale_by_muon(orthogonalizer=CUBIC)
        expected, _ = alone.update({"kernel": kernel}, alone.init({"kernel": kernel}))
        np.testing.assert_allclose(step["kernel"], expected["kernel"], atol=1e-6)
        for leaf in (step["kernel"], state.momentum["kernel"]):
            assert leaf.sharding.is_equivalent_to(where, 2)

    def test_arrays_in_host_memory(self, mesh):
        host = NamedSharding(mesh, P(), memory_kind="pinned_host")
        with pytest.raises(ValueError, match="memory_kind='pinned_host'"):
            scale_by_muon(sharding=host).init(PARAMS)

    def test_tracers_do_not_tell(self):
        with pytest.raises(TypeError, match="under jit"):
            jax.jit(lambda p: shardings_of(p) and p)(PARAMS)

    def test_all_leaves_of_a_recipe_at_once(self, mesh):
        params = {"kernel": np.ones((16, 32)), "bias": np.ones(32)}
        with jax.set_mesh(mesh), pytest.raises(ValueError, match="muon: ") as raised:
            optax_muon.muon(0.1, sharding=P("rows")).init(params)
        assert "bias  (32,)" in str(raised.value)
        assert "kernel  (16, 32)" in str(raised.value)


class TestKeepOut:
    @pytest.fixture
    def mesh(self):
        names = ("dcn", "fsdp")
        return jax.make_mesh((2, 4), names, axis_types=(AxisType.Auto,) * 2)

    def test_its_axis_carries_nothing(self, mesh, benchmark_modules):
        import hlo

        params = {f"layer_{i}": np.ones((32, 64), np.float32) for i in range(8)}
        sharding = NamedSharding(mesh, P("fsdp"))
        placed = jax.device_put(params, sharding)
        counts = []
        within = scale_by_muon(orthogonalizer=KELLER, sharding=KeepOut("dcn"))
        for tx in (
            scale_by_muon(orthogonalizer=KELLER, sharding=sharding),
            scale_by_muon(orthogonalizer=KELLER, sharding=KeepOut("dcn", sharding)),
            route(within, optax.identity(), sharding=sharding),
        ):
            state = jax.jit(tx.init)(placed)
            program = jax.jit(tx.update).lower(placed, state).compile()
            counts.append(hlo.Program(program.as_text()).counts())
        assert counts == [{"all-to-all": 2, "all-gather": 1}, *[{"all-to-all": 2}] * 2]

    def test_an_axis_that_cuts_matrices_cannot_be_kept_out(self, mesh):
        sharding = KeepOut("dcn", NamedSharding(mesh, P("dcn", "fsdp")))
        message = r"down/kernel  \(32, 16\).*\n.*up/kernel.*\['dcn'\].*cut the matrices"
        with pytest.raises(ValueError, match=message):
            scale_by_muon(sharding=sharding).init(PARAMS)

    def test_unknown_axes(self, mesh):
        for sharding in (KeepOut("slow", NamedSharding(mesh, P())), KeepOut("dcn")):
            with pytest.raises(ValueError, match="KeepOut names"):
                scale_by_muon(sharding=sharding).init(PARAMS)

    @pytest.mark.parametrize("axes", [(), 3, ("dcn", 3)])
    def test_no_names(self, axes):
        with pytest.raises(TypeError, match="name of a mesh axis"):
            KeepOut(axes)

    def test_one_in_another(self):
        with pytest.raises(TypeError, match="name all axes in one"):
            KeepOut("a", KeepOut("b"))


class TestShardingsOf:
    def test_live_parameters(self, mesh):
        up = NamedSharding(mesh, P("fsdp"))
        params = {"up": jax.device_put(jnp.ones((8, 8)), up), "down": jnp.ones((8, 8))}
        assert shardings_of(params) == {"up": up, "down": None}
        abstract = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=up)
        assert shardings_of({"up": abstract}) == {"up": up}
        untold = {"down": jax.eval_shape(lambda: params["down"])}
        assert shardings_of({"up": abstract} | untold) == {"up": up, "down": None}
        with pytest.raises(ValueError, match=r"nothing says how .*eval_shape"):
            shardings_of(untold)
        assert shardings_of({}) == {}

    def test_nnx_metadata(self, mesh):
        class Model(nnx.Module):
            def __init__(self, rngs):
                init = nnx.with_partitioning(nnx.initializers.ones, ("fsdp", "tensor"))
                self.up = nnx.Linear(16, 32, kernel_init=init, rngs=rngs)
                self.down = nnx.Linear(32, 16, use_bias=False, rngs=rngs)

        with jax.set_mesh(mesh):
            abstract = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
            for model in (abstract, Model(nnx.Rngs(0))):
                params = nnx.state(model, nnx.Param)
                moved = placements(shardings_of(params), params)
                assert moved["up/kernel"] == ["fsdp", "tensor"]
                assert moved["down/kernel"] == []

    def test_linen_metadata(self, mesh):
        init = nn.with_partitioning(nn.initializers.ones, ("fsdp", "tensor"))
        model = nn.Dense(32, kernel_init=init)
        boxed = model.init(jax.random.key(0), jnp.ones((1, 16)))["params"]
        found = shardings_of(boxed)
        assert found == {"kernel": P("fsdp", "tensor"), "bias": None}
        params = nn.unbox(boxed)
        with jax.set_mesh(mesh):
            assert placements(found, params) == {"kernel": ["fsdp", "tensor"]}

    def test_specs_and_shardings_themselves(self, mesh):
        init = nnx.with_partitioning(nnx.initializers.ones, ("fsdp", "tensor"))

        def model():
            return nnx.Linear(16, 32, kernel_init=init, rngs=nnx.Rngs(0))

        with jax.set_mesh(mesh):
            state = nnx.state(nnx.eval_shape(model), nnx.Param)
            found = shardings_of(nnx.get_partition_spec(state))
            assert placements(found, state)["kernel"] == ["fsdp", "tensor"]
        init = nn.with_partitioning(nn.initializers.ones, ("fsdp", "tensor"))
        boxed = nn.Dense(32, kernel_init=init).init(
            jax.random.key(0), jnp.ones((1, 16))
        )["params"]
        specs = nn.get_partition_spec(boxed)
        assert shardings_of(specs)["kernel"] == P("fsdp", "tensor")
        where = {"k": NamedSharding(mesh, P("fsdp"))}
        assert shardings_of(where) == where

    def test_arrays_that_contradict_their_metadata(self, mesh):
        init = nn.with_partitioning(nn.initializers.ones, ("fsdp", "tensor"))
        model = nn.Dense(32, kernel_init=init)
        with jax.set_mesh(mesh):
            variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 16)))
        boxed = variables["params"]
        with pytest.raises(
            ValueError, match=r"kernel.*'fsdp', 'tensor'\), but it lies"
        ):
            shardings_of(boxed)
        where = NamedSharding(mesh, P("fsdp", "tensor"))
        boxed["kernel"] = boxed["kernel"].replace_boxed(
            jax.device_put(nn.unbox(boxed)["kernel"], where)
        )
        assert shardings_of(boxed)["kernel"] == where

    def test_others(self):
        with pytest.raises(TypeError, match=r"up/kernel: 'fsdp'"):
            shardings_of({"up": {"kernel": "fsdp"}})

        class Tiles:
            device_set = frozenset({0, 1})

        leaf = types.SimpleNamespace(sharding=Tiles(), shape=(2, 3), dtype=float)
        with pytest.raises(TypeError, match=r"up/kernel.*Tiles"):
            shardings_of({"up": {"kernel": leaf}})
