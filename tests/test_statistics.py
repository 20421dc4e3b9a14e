"""Parts that take statistics of each matrix: the same on any mesh, and any parts.

Leaves are sharded over rows and columns, with boundaries inside of fused parts. What is
compared is float32, of sums in another order: a few eps, and where polar factors are
in it, as `tests.layouts.Case` says.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_muon
from optax_muon import MatrixAxes, NewtonSchulz, NormBall
from tests.layouts import mesh_of
from tests.wide import wide_unless

LEAVES = {
    "up": ((16, 48), P("fsdp", "tensor"), MatrixAxes(0, 1)),
    "qkv": ((16, 32), P("tensor", "fsdp"), MatrixAxes(0, 1, fan_out_parts=(20, 6, 6))),
    "outputs": (
        (4, 8, 16),
        P("fsdp", "tensor"),
        MatrixAxes((0, 1), 2, fan_in_parts=(20, 12)),
    ),
    "experts": ((4, 8, 16), P("tensor", None, "fsdp"), MatrixAxes(1, 2)),
}
AXES = {name: axes for name, (_, _, axes) in LEAVES.items()}
SPECS = {name: spec for name, (_, spec, _) in LEAVES.items()}
SEPARATE = {
    name: axes for name, axes in AXES.items() if not axes.view(LEAVES[name][0]).parts
}
KELLER = NewtonSchulz("keller_jordan")


def balls(norm):
    return {
        name: NormBall(
            norm,
            fan_in=axes.fan_in,
            fan_out=axes.fan_out,
            fan_in_parts=axes.fan_in_parts,
            fan_out_parts=axes.fan_out_parts,
        )
        for name, axes in AXES.items()
    }


PARTS = {
    "equilibrate": lambda how: optax_muon.equilibrate("both", **how),
    "snap_frobenius": lambda how: optax_muon.snap_frobenius(**how),
    "normalize_neurons": lambda how: optax_muon.normalize_neurons(**how),
    "normalize_entries": lambda how: optax_muon.normalize_entries(**how),
    "scale_by_shape": lambda how: optax_muon.scale_by_shape("mup", **how),
    "scale_by_dual_norm": lambda how: optax_muon.scale_by_dual_norm(
        optax.scale(2.0), **how
    ),
    "sign": lambda how: optax_muon.scale_by_lmo(
        balls("sign"), sharding=how["sharding"]
    ),
    "column": lambda how: optax_muon.scale_by_lmo(
        balls("column"), sharding=how["sharding"]
    ),
    "row": lambda how: optax_muon.scale_by_lmo(balls("row"), sharding=how["sharding"]),
    "step_on_hyperball": lambda how: optax_muon.step_on_hyperball(0.1, **how),
}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, (shape, _, _) in LEAVES.items()
    }


def two_steps(tx, params, first, second):
    state = tx.init(params)
    one, state = tx.update(first, state, params)
    two, state = tx.update(second, state, params)
    return one, two


def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    "name", ["normalize_neurons", "normalize_entries", "step_on_hyperball"]
)
def test_states_lie_as_parameters_do(name):
    """Also where `init` is compiled, on a mesh for which the compiler chooses."""
    mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
    shardings = {key: NamedSharding(mesh, spec) for key, spec in SPECS.items()}
    params = jax.device_put(draw(0), shardings)
    tx = PARTS[name]({"matrix_axes": AXES, "sharding": shardings})
    state = jax.jit(tx.init)(params)
    statistics = state.radius if name == "step_on_hyperball" else state.second_moment
    for key, leaf in statistics.items():
        kept = [
            axis if size > 1 else None
            for axis, size in zip(SPECS[key], leaf.shape, strict=False)
        ]
        expected = NamedSharding(mesh, P(*kept))
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), key


MESHED = {"equilibrate", "normalize_neurons", "normalize_entries", "step_on_hyperball"}


@pytest.mark.parametrize("name", wide_unless(MESHED.__contains__, PARTS))
def test_on_every_kind_of_mesh(name):
    make, trees = PARTS[name], [draw(seed) for seed in range(3)]
    expected = two_steps(make({"matrix_axes": AXES, "sharding": None}), *trees)

    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of("fsdp4_tensor2", kind)
        shardings = {key: NamedSharding(mesh, spec) for key, spec in SPECS.items()}
        placed = [jax.device_put(tree, shardings) for tree in trees]
        told = shardings if kind == AxisType.Auto else None
        tx = make({"matrix_axes": AXES, "sharding": told})
        with jax.set_mesh(mesh):
            steps = jax.jit(lambda *trees, tx=tx: two_steps(tx, *trees))(*placed)
        close(steps, expected)
        for step in steps:
            for key, leaf in step.items():
                assert leaf.sharding.is_equivalent_to(shardings[key], leaf.ndim)

    mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
    tx = make({"matrix_axes": AXES, "sharding": SPECS})
    inside = jax.shard_map(
        lambda *trees: two_steps(tx, *trees),
        mesh=mesh,
        in_specs=(SPECS,) * 3,
        out_specs=(SPECS,) * 2,
    )
    close(jax.jit(inside)(*trees), expected)


class TestDion2:
    """Sharded along its shorter side, each device selects among its own slices."""

    @staticmethod
    def run(tx, tree):
        return tx.update(tree, tx.init(tree))[0]

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
    def test_the_other_side_sharded(self, kind):
        """The selection, and so the update, is that of one device."""
        mesh = mesh_of("fsdp4_tensor2", kind)
        g = draw(0)["up"]
        sharding = NamedSharding(mesh, P(None, ("fsdp", "tensor")))
        placed = jax.device_put(g, sharding)
        told = sharding if kind == AxisType.Auto else None
        tx = optax_muon.scale_by_dion2(0.25, orthogonalizer=KELLER, sharding=told)
        with jax.set_mesh(mesh):
            found = jax.jit(lambda g: self.run(tx, g))(placed)
        alone = optax_muon.scale_by_dion2(0.25, orthogonalizer=KELLER)
        close(found, self.run(alone, g))

    def test_the_same_side_sharded(self):
        """Two of eight rows a device: those, and the polar factor of all of them."""
        mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
        g = draw(0)["up"]
        sharding = NamedSharding(mesh, P("tensor", "fsdp"))
        tx = optax_muon.scale_by_dion2(0.25, orthogonalizer=KELLER, sharding=sharding)
        found = jax.jit(lambda g: self.run(tx, g))(jax.device_put(g, sharding))
        sums = np.abs(np.asarray(g)).sum(1).reshape(2, 8)
        chosen = np.concatenate(
            [8 * device + np.argsort(-mine)[:2] for device, mine in enumerate(sums)]
        )
        rows = optax_muon.orthogonalize(g[chosen], KELLER)
        close(found, jnp.zeros_like(g).at[chosen].set(rows))
        program = jax.jit(lambda g: self.run(tx, g)).lower(jax.device_put(g, sharding))
        text = program.compile().as_text()
        assert "all-to-all" in text

    def test_inside_a_users_shard_map(self):
        mesh = mesh_of("fsdp4_tensor2", AxisType.Auto)
        g, spec = draw(0)["up"], P(None, ("fsdp", "tensor"))
        tx = optax_muon.scale_by_dion2(0.25, orthogonalizer=KELLER, sharding=spec)
        inside = jax.shard_map(
            lambda g: self.run(tx, g), mesh=mesh, in_specs=(spec,), out_specs=spec
        )
        alone = optax_muon.scale_by_dion2(0.25, orthogonalizer=KELLER)
        close(jax.jit(inside)(g), self.run(alone, g))
