"""Who does what of a stack: the choice, its cost, and columns of one matrix shared."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_muon
from optax_muon import NewtonSchulz, Qdwh, orthogonalize, scale_by_muon
from optax_muon import _division as division_module
from optax_muon._cost import Work
from optax_muon._division import bytes_sent, divide
from optax_muon._exchange import Division, Goal
from optax_muon._mesh_axes import Digit, described
from optax_muon._placement import Factor, Placement
from tests import oracles, spectra
from tests.wide import wide_unless

KELLER = NewtonSchulz("keller_jordan")
# Two steps whose slope at zero is 2.25: rounding hardly grows.
CUBIC = NewtonSchulz("cubic", steps=2)
ROWS = Placement(rows=(Factor((("fsdp", 64), ("tensor", 4)), 16),))


def whole_only(devices):
    return Work(1e12) if devices == 1 else None


def by_columns(devices):
    """A third of the work is with the short side."""
    return Work(1e12 * (1 / 3 + 2 / 3 / devices), reductions=0 if devices == 1 else 3)


class TestChoice:
    def test_enough_matrices_are_owned_whole(self):
        chosen = divide(ROWS, (512, 4096, 16384), 2, "tpu", by_columns)
        assert (chosen.stack.ways, chosen.long.ways) == (256, 1)

    def test_few_are_shared_by_columns(self):
        chosen = divide(ROWS, (64, 4096, 16384), 2, "tpu", by_columns)
        assert chosen.long.rows == (("tensor", 4),)
        assert chosen.stack.rows == (("fsdp", 64),)

    @pytest.mark.parametrize("side", ["rows", "columns", "copies"])
    def test_one_axis_is_split_between_stack_and_columns(self, side):
        axes = (("fsdp", 256),)
        placed = axes if side == "copies" else (Factor(axes, 64),)
        chosen = divide(
            Placement(**{side: placed}), (64, 4096, 16384), 2, "tpu", by_columns
        )
        assert (chosen.stack.ways, chosen.long.ways) == (64, 4)
        assert described(chosen.stack.axes) == "64 of fsdp"
        assert described(chosen.column_axes) == "4 of fsdp"

    def test_not_where_that_cannot_be(self):
        chosen = divide(ROWS, (64, 4096, 16384), 2, "tpu", whole_only)
        assert (chosen.stack.ways, chosen.long.ways) == (256, 1)

    def test_not_where_parts_would_be_narrow_or_unequal(self):
        for columns in (254, 1031):  # 127 for each of two, or a prime
            chosen = divide(ROWS, (64, 128, columns), 2, "tpu", by_columns)
            assert chosen.long.ways == 1

    def test_axes_that_lie_on_the_columns_may_stay(self):
        columns = Placement(columns=(Factor((("x", 4),), 4096),))
        chosen = divide(columns, (1, 4096, 16384), 2, "tpu", by_columns)
        assert chosen == Division(Goal(), Goal(columns=(("x", 4),)))
        assert not chosen.moved

    def test_copies_of_few_small_matrices_all_do_the_same(self):
        copies = Placement(copies=(("data", 8),))
        small = divide(copies, (8, 16, 16), 4, "tpu", lambda _: Work(1e5))
        assert small == Division()
        large = divide(copies, (8, 1024, 1024), 4, "tpu", lambda _: Work(1e12))
        assert large == Division(Goal(copies=(("data", 8),)))


def test_bytes_are_counted_by_hand():
    rows = Placement(rows=(Factor((("x", 4),), 2),), copies=(("y", 2),))
    division = Division(Goal(rows=(("x", 4),), copies=(("y", 2),)))
    # 5 matrices of 8 x 16 are padded to 8. A device has 8 * 8 * 16 / 4 entries, of
    # which it sees to half; three quarters of that leave it, twice; then it receives
    # the other half.
    assert bytes_sent(division, rows, (5, 8, 16), 2) == 2 * (2 * 128 * 3 / 4 + 128)


PLACE = st.sampled_from(["rows", "columns", "copies"])


ANY_DIVISION = given(
    st.sampled_from([(2, 2, 2), (4, 2, 1), (2, 1, 4)]),
    st.lists(PLACE, min_size=3, max_size=3),
    st.integers(1, 9),
    st.sampled_from([(8, 16), (16, 8), (16, 16), (24, 40)]),
    st.integers(0, 30),
)


@settings(max_examples=8, deadline=None, derandomize=True)
@ANY_DIVISION
def test_every_division_gives_the_same_values(sizes, places, count, shape, pick):
    """Not only the cheapest: all of them are right."""
    check_division(sizes, places, count, shape, lambda found: found[pick % len(found)])


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@ANY_DIVISION
def test_forty_divisions_give_the_same_values(sizes, places, count, shape, pick):
    check_division(sizes, places, count, shape, lambda found: found[pick % len(found)])


SIDES = ("rows", "columns", "copies")


@pytest.mark.parametrize("which", wide_unless((0).__eq__, [0, -1]))
@pytest.mark.parametrize(
    ("sizes", "places"),
    [
        *(((size, 1, 1), (side, side, side)) for size in (8, 6) for side in SIDES),
        *(((4, 2, 1), (side, other, "rows")) for side in SIDES for other in SIDES),
    ],
)
def test_axes_in_two_digits_give_the_same_values(sizes, places, which):
    """With all other axes going to the stack, and with none."""
    check_division(sizes, places, 3, (24, 96), lambda found: with_digits(found)[which])


def with_digits(divisions):
    return [
        division
        for division in divisions
        if any(isinstance(axis, Digit) for axis, _ in division.column_axes)
    ]


def test_primes_have_one_digit():
    placement = Placement(rows=(Factor((("a", 3), ("b", 5)), 8),))
    assert not with_digits(division_module._divisions(placement, (3, 120, 3840)))


def check_division(sizes, places, count, shape, pick):
    """That it gives the update that one device gives.

    Args:
      sizes: of the mesh's three axes.
      places: of the axes: what of the matrices they cut, or "copies".
      count: of matrices.
      shape: of each.
      pick: of all divisions, the one to take.
    """
    devices = np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes)
    mesh = Mesh(devices, ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)
    on = {
        place: tuple(name for name, p in zip("abc", places, strict=True) if p == place)
        for place in set(places)
    }
    spec = P(None, on.get("rows"), on.get("columns"))
    gradient = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    axes = optax_muon.MatrixAxes(1, 2)

    def pick_one(placement, shape, itemsize, platform, work):
        del itemsize, platform, work
        return pick(list(division_module._divisions(placement, shape)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(division_module, "MIN_COLUMNS", 1)
        patch.setattr("optax_muon._polar_factors.divide", pick_one)
        jax.clear_caches()  # what is patched is no part of jit's key
        tx = scale_by_muon(
            orthogonalizer=CUBIC, matrix_axes=axes, sharding=NamedSharding(mesh, spec)
        )
        placed = jax.device_put(gradient, NamedSharding(mesh, spec))
        step, _ = jax.jit(lambda g: tx.update(g, tx.init(g)))(placed)
    jax.clear_caches()
    alone = scale_by_muon(orthogonalizer=CUBIC, matrix_axes=axes)
    expected, _ = alone.update(gradient, alone.init(gradient))
    # Sums in other orders, of entries below 1.
    np.testing.assert_allclose(step, expected, atol=2e-6)


@pytest.mark.parametrize("columns", [1024, 516])
def test_columns_of_one_matrix_on_several_devices(columns, benchmark_modules):
    """Sums of n x n matrices once a cycle, outside the loops; the same polar factor."""
    import hlo

    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P("fsdp", "tensor" if columns % 8 == 0 else None))
    rng = np.random.default_rng(0)
    params = {f"layer_{i}": rng.normal(size=(128, columns)) for i in range(2)}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    plan = optax_muon.plan(params, None, sharding, orthogonalizer=KELLER)
    [bucket] = plan.buckets
    placed = jax.device_put(params, sharding)
    tx = scale_by_muon(orthogonalizer=KELLER, sharding=sharding)
    state = jax.jit(tx.init)(placed)
    program = jax.jit(tx.update).lower(placed, state).compile()
    found = hlo.Program(program.as_text())
    assert not any(one.in_loop for one in found.collectives())
    # Columns that lie on devices already need not move.
    on = described(bucket.division.column_axes)
    assert on == ("2 of fsdp, tensor" if columns % 8 == 0 else "fsdp")
    assert "columns over" in str(plan)
    # Its norm's maximum and squares, and R of the single cycle.
    assert found.counts()["all-reduce"] <= 3
    step, _ = program(placed, state)
    alone = scale_by_muon(orthogonalizer=KELLER)
    expected, _ = alone.update(params, alone.init(params))
    for name in params:
        np.testing.assert_allclose(step[name], expected[name], atol=1e-5)


def test_columns_in_bfloat16_are_as_close_as_whole_matrices():
    """Several cycles, and a norm that is carried into the first of them."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    bfloat16 = NewtonSchulz("keller_jordan", method="gram", dtype="bfloat16")
    sharding = NamedSharding(mesh, P(None, "x"))
    gradient = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    params = {"kernel": gradient}
    [bucket] = optax_muon.plan(params, None, sharding, orthogonalizer=bfloat16).buckets
    assert bucket.division.column_axes == (("x", 8),)
    placed = jax.device_put(gradient, sharding)
    found = orthogonalize(placed, bfloat16, sharding)
    error = oracles.relative_error(found, oracles.chain(gradient, bfloat16.rows))
    # What tests/test_numerics.py allows on one device.
    assert error <= spectra.limits("keller_jordan", "gram", "bfloat16", 64)["all"]


def test_exact_factors_need_whole_matrices():
    with pytest.raises(NotImplementedError, match="needs whole matrices"):
        Qdwh().polar_factor_of_columns(np.ones((1, 2, 4)), (("x", 2),), "cpu")
