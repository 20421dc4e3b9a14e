"""The plan is true (it is what `muon` does), complete, and legible."""

import dataclasses
import itertools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optax_muon
from optax_muon import MatrixAxes, plan
from optax_muon._orthogonalizers import Orthogonalizer
from tests import flax_models
from tests.routing_cases import CASES, OTHER_AXES, named, shaped

ALL = CASES | OTHER_AXES
every_model = pytest.mark.parametrize("case", ALL.values(), ids=ALL)
SCALES = {
    "width": ("width", lambda fan_in, fan_out: math.sqrt(max(1, fan_out / fan_in))),
    "mup": ("mup", lambda fan_in, fan_out: math.sqrt(fan_out / fan_in)),
    "adam_rms": ("adam_rms", lambda *fans: 0.2 * math.sqrt(max(fans))),
    "sqrt_max": ("sqrt_max", lambda *fans: math.sqrt(max(fans))),
    "none": (None, lambda *fans: 1.0),
    "function": (
        lambda fan_in, fan_out: fan_in + 100 * fan_out,
        lambda fan_in, fan_out: fan_in + 100 * fan_out,
    ),
}
every_scale = pytest.mark.parametrize(("scale", "formula"), SCALES.values(), ids=SCALES)


class Line(NamedTuple):
    path: str
    shape: str
    optimizer: str
    matrix: str
    batch: str
    scale: str
    share: str


def lines(text):
    """The table's lines, cell by cell, and the summary under them."""
    header, rule, *rest = text.splitlines()
    assert tuple(header.split()) == Line._fields
    assert set(rule) <= {"-", " "}
    body = list(itertools.takewhile(lambda line: " parameters" not in line, rest))
    assert len({len(line) for line in [header, rule, *body]}) == 1  # columns line up
    return [Line(*re.split("  +", line)) for line in body], rest[len(body) :]


def count(leaves):
    return "1 leaf" if leaves == 1 else f"{leaves} leaves"


@every_model
def test_the_text_has_one_line_a_leaf_with_all_columns(case):
    params, found = case.build(), plan(case.build(), case.matrix_axes)
    table, summary = lines(str(found))
    shapes = {path: leaf.shape for path, leaf in named(params).items()}
    total = sum(math.prod(shape) for shape in shapes.values())
    expected = {}
    for path, (optimizer, matrix, batch) in case.expected.items():
        fan_in, fan_out = matrix or (0, 0)
        expected[path] = Line(
            path,
            str(shapes[path]),
            optimizer,
            f"{fan_in} x {fan_out}" if matrix else "-",
            str(batch) if matrix else "-",
            f"{0.2 * math.sqrt(max(matrix)):.3g}" if matrix else "-",
            f"{math.prod(shapes[path]) / total:.1%}",
        )
    assert [line.path for line in table] == list(shapes)  # in the order of the leaves
    assert {line.path: line for line in table} == expected
    assert summary[0] == f"{count(len(expected))}, {total:,} parameters"
    for text, name in zip(summary[1:3], ("muon", "adamw"), strict=True):
        mine = [p for p, row in case.expected.items() if row[0] == name]
        share = sum(math.prod(shapes[p]) for p in mine) / max(total, 1)
        start = f"  {name}: {count(len(mine))}, {share:.1%} of the parameters, "
        assert text.startswith(start)
        assert re.fullmatch(r"[\d.]+ [kM]?B of state", text.removeprefix(start))


@every_model
def test_leaves_carry_shape_dtype_and_share(case):
    params, found = case.build(), plan(case.build(), case.matrix_axes)
    leaves = named(params)
    total = sum(math.prod(leaf.shape) for leaf in leaves.values())
    assert [leaf.path for leaf in found.leaves] == list(leaves)
    for leaf in found.leaves:
        assert leaf.shape == leaves[leaf.path].shape
        assert leaf.dtype == jnp.float32
        assert leaf.share == math.prod(leaf.shape) / total
    # Each share is rounded once, and so is each sum: half an eps of 1 a leaf, twice.
    tolerance = max(1, len(leaves)) * 2.0**-52
    assert abs(sum(leaf.share for leaf in found.leaves) - bool(leaves)) <= tolerance


@every_model
def test_buckets_hold_every_matrix_once_with_those_of_its_shape(case):
    found = plan(case.build(), case.matrix_axes)
    expected = {}
    for path, (optimizer, matrix, batch) in case.expected.items():
        if optimizer == "muon":
            expected.setdefault(tuple(sorted(matrix)), {})[path] = batch
    assert len(found.buckets) == len(expected)
    for bucket in found.buckets:
        members = expected[bucket.matrix]
        assert sorted(bucket.paths) == sorted(members)
        assert bucket.count == sum(members.values())
        assert bucket.dtype == jnp.float32
    *_, stacks = str(found).split("\n\n")
    sizes = [(b.count, *b.matrix) for b in found.buckets]
    named = [f"{n} x {rows} x {columns} float32" for n, rows, columns in sizes]
    body = stacks.splitlines()[2:-1] if sizes else []
    assert [re.split("  +", line)[0] for line in body] == named


@dataclasses.dataclass(frozen=True)
class Spy(Orthogonalizer):
    """Notes the stacks it is given."""

    seen: list = dataclasses.field(default_factory=list, hash=False)

    def polar_factor(self, x):
        self.seen.append((x.shape, x.dtype))
        return x


@pytest.mark.parametrize("name", ["linen gpt, scan", "nnx gpt"])
def test_buckets_are_the_stacks_that_the_orthogonalizer_sees(name):
    case = ALL[name]
    spy = Spy()
    tx = optax_muon.muon(0.1, orthogonalizer=spy, matrix_axes=case.matrix_axes)
    params = case.build()
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)
    buckets = plan(params, case.matrix_axes).buckets
    # The momentum's direction is float32, as the parameters are.
    expected = [((b.count, *b.matrix), b.dtype) for b in buckets]
    assert sorted(spy.seen) == sorted(expected)


def test_a_users_function_sees_fan_in_first():
    """It may tell the sides apart, so matrices are not turned for it."""
    seen = []

    def function(x):
        seen.append(x.shape)
        return x

    params = {"a": jnp.ones((4, 3)), "b": jnp.ones((3, 4)), "c": jnp.ones((4, 3))}
    tx = optax_muon.scale_by_muon(orthogonalizer=function)
    jax.eval_shape(lambda p: tx.update(p, tx.init(p)), params)
    assert sorted(seen) == [(1, 3, 4), (2, 4, 3)]


@pytest.mark.usefixtures("x64")
def test_buckets_hold_both_orientations_and_are_at_least_float32():
    """As the stacks that run: the momentum's direction is computed in float32."""
    params = {
        "a": jnp.ones((4, 3), jnp.float32),
        "b": jnp.ones((3, 4), jnp.bfloat16),
        "c": jnp.ones((3, 4), jnp.float64),
        "d": jnp.ones((4, 3), jnp.float16),
    }
    found = [(b.matrix, b.dtype.name, b.paths) for b in plan(params).buckets]
    assert found == [
        ((3, 4), "float32", ("a", "b", "d")),
        ((3, 4), "float64", ("c",)),
    ]
    spy = Spy()
    tx = optax_muon.scale_by_muon(orthogonalizer=spy)
    jax.eval_shape(lambda p: tx.update(p, tx.init(p)), params)
    assert sorted(spy.seen) == [((1, 3, 4), jnp.float64), ((3, 3, 4), jnp.float32)]


@every_scale
def test_scales_are_those_of_the_declared_fans(scale, formula):
    case = ALL["linen gpt, scan"]
    for leaf in plan(case.build(), case.matrix_axes, scale=scale).leaves:
        _, fans, _ = case.expected[leaf.path]
        assert leaf.scale == (None if fans is None else formula(*fans))


@every_scale
def test_the_planned_scale_is_what_updates_are_multiplied_by(scale, formula):
    case = ALL["nnx cnn"]
    params = jax.tree.map(lambda x: jnp.ones(x.shape), case.build())
    tx = optax_muon.muon(
        1.0, momentum=0.0, nesterov=False, orthogonalizer=jnp.negative, scale=scale
    )
    step = jax.jit(lambda p: tx.update(p, tx.init(p), p)[0])
    updates = named(step(params))  # of ones, by "polar factors" of -1 and a rate of 1
    for leaf in plan(params, scale=scale).leaves:
        if leaf.optimizer == "muon":
            # The factor is rounded to float32 and multiplies 1: nothing else rounds.
            factor = float(jnp.float32(formula(*leaf.matrix)))
            assert float(updates[leaf.path].min()) == factor
            assert float(updates[leaf.path].max()) == factor
            assert leaf.scale == formula(*leaf.matrix)


def test_the_whole_text():
    up = {"kernel": shaped(12, 64, 256), "bias": shaped(12, 256)}
    params = {"embed": {"embedding": shaped(1000, 64)}, "layers": {"up": up}}
    text = str(plan(params, optax_muon.stacked("layers"), scale="mup"))
    assert text.splitlines() == [
        "path              shape          optimizer  matrix    batch  scale  share",
        "----------------  -------------  ---------  --------  -----  -----  -----",
        "embed/embedding   (1000, 64)     adamw      -         -      -      24.3%",
        "layers/up/bias    (12, 256)      adamw      -         -      -       1.2%",
        "layers/up/kernel  (12, 64, 256)  muon       64 x 256  12     2      74.6%",
        "3 leaves, 263,680 parameters",
        "  muon: 1 leaf, 74.6% of the parameters, 786 kB of state",
        "  adamw: 2 leaves, 25.4% of the parameters, 537 kB of state",
        "",
        "stack                  form                             computes",
        "---------------------  ------------------------------  ---------",
        "12 x 64 x 256 float32  gram in float32, restarts (1,)  189 MFLOP",
        "a step: 189 MFLOP of products",
    ]


@pytest.mark.parametrize("params", [{}, [], None, {"a": {}}], ids=str)
def test_no_parameters_at_all(params):
    found = plan(params)
    assert (found.leaves, found.buckets) == ((), ())
    assert lines(str(found)) == (
        [],
        [
            "0 leaves, 0 parameters",
            "  muon: 0 leaves, 0.0% of the parameters, 0 B of state",
            "  adamw: 0 leaves, 0.0% of the parameters, 0 B of state",
        ],
    )


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_matrices(shape):
    found = plan({"a": shaped(*shape), "b": shaped(3)}, scale="mup")
    empty, other = found.leaves
    assert (empty.matrix, empty.scale, empty.share) == (shape, 1.0, 0.0)
    assert other.share == 1.0
    assert plan(shaped(*shape)).leaves[0].share == 0.0


def test_an_nnx_model_and_its_states_have_one_plan():
    model = nnx.eval_shape(lambda: flax_models.NNXMLP(nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    found = plan(state)
    assert plan(nnx.to_pure_dict(state)) == found
    assert plan(jax.tree.map(lambda x: jnp.ones(x.shape), state)) == found


def test_a_plan_is_made_under_jit_and_of_gradients():
    params = jax.tree.map(lambda x: jnp.ones(x.shape), CASES["linen mlp"].build())
    plans = []
    jax.jit(lambda p: plans.append(plan(p)))(params)
    assert plans == [plan(params)]


@pytest.mark.parametrize(
    ("scale", "match"), [("mupp", "scale='mupp' is not known"), (2.0, "scale=2.0")]
)
def test_an_unknown_scale(scale, match):
    with pytest.raises(ValueError, match=match):
        plan({"w": shaped(2, 3)}, scale=scale)


def test_a_vector_as_a_column():
    leaf = plan({"b": shaped(5)}, {"b": MatrixAxes(0, ())}, scale="mup").leaves[0]
    assert (leaf.matrix, leaf.batch, leaf.scale) == ((5, 1), 1, math.sqrt(1 / 5))
