"""What benchmarks are made of: equal contestants, fair turns, right counts of FLOPs."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import optax_muon

pytestmark = pytest.mark.usefixtures("benchmark_modules")


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_bfloat16_contestants_run():
    """What accelerators race, here on a CPU."""
    import peers
    import shapes

    case = shapes.SMOKE[1]
    gradients = peers.gradients(case)
    field = peers.contestants("gpu")
    dtypes = {"ours": "float32", "optax": "float32"}
    low = {"ours_bfloat16": "bfloat16", "optax_bfloat16": "bfloat16"}
    assert {one.name: one.dtype for one in field} == dtypes | low
    for one in field:
        one.prepare(case, gradients)(2)


def test_contestants_compute_the_same_update():
    import peers
    import shapes

    for case in shapes.SMOKE:
        mine, theirs = (
            first_update(one, case, peers.gradients(case))
            for one in (peers.OURS, peers.OPTAX)
        )
        for name, shape in case.leaves:
            fan_in, fan_out = shapes.as_matrix(shape)
            scale = max(1, fan_out / fan_in) ** 0.5  # optax.contrib's core has none
            # Two orders of float32 sums; seen: 2e-6, times 10 for other machines.
            np.testing.assert_allclose(mine[name], scale * theirs[name], atol=2e-5)


@pytest.mark.peers
def test_torch_in_float32_computes_the_same_update():
    import peers
    import shapes
    import torch

    cast = torch.Tensor.bfloat16
    case = shapes.SMOKE[1]
    gradients = peers.gradients(case)
    optimizer = peers.TORCH_FLOAT32.optimizer(case, gradients)
    with peers.TORCH_FLOAT32.iteration():
        optimizer.step()
    assert torch.Tensor.bfloat16 is cast
    expected = first_update(peers.OURS, case, gradients)
    for (name, shape), parameter in zip(
        case.leaves, optimizer.param_groups[0]["params"], strict=True
    ):
        update = -parameter.detach().numpy().T.reshape(shape) / 1e-3  # the default rate
        np.testing.assert_allclose(update, expected[name], atol=2e-5)  # as above


def first_update(contestant, case, gradients):
    transformation = contestant.transformation(case)
    state = transformation.init(gradients)
    return jax.jit(transformation.update)(gradients, state)[0]


def test_contestants_run_once_a_round_in_rotating_order(monkeypatch):
    import timing

    order = []
    monkeypatch.setattr(timing, "PAUSE", 0)
    taken = {"a": 0.3, "b": 0.001, "c": 1.0}

    def seconds(name, repeats):
        order.append((name, repeats))
        return taken[name] * repeats

    monkeypatch.setattr(timing, "seconds", seconds)
    monkeypatch.setattr(timing, "warm_up", lambda run, wanted: 2 if run == "b" else 1)
    samples = timing.interleave({name: name for name in taken}, 3, 0.0)
    assert "".join(name for name, _ in order) == "abcacbcab"
    assert set(order) == {("a", 1), ("b", 2), ("c", 1)}
    assert samples == {name: [value] * 3 for name, value in taken.items()}


def test_summaries_are_quartiles_and_ratios_go_round_by_round():
    import timing

    expected = {"median": 3.0, "quartiles": [2.0, 4.0], "count": 5}
    assert timing.summary([5, 1, 4, 2, 3]) == expected
    # The ratio of medians would be 2 / 2 = 1.
    assert timing.ratios([1, 2, 8], [2, 1, 2])["median"] == 2


class Products:
    """Matrix products that count their FLOPs."""

    def __init__(self):
        self.flops = 0

    def __call__(self, x, y):
        (rows, inner), (_, columns) = x.shape, y.shape
        self.flops += 2 * rows * inner * columns
        return x @ y


ROW = (3.4445, -4.7750, 2.0315)


def direct(x, steps, product):
    a, b, c = ROW
    for _ in range(steps):
        gram = product(x, x.T)
        x = a * x + product(b * gram + c * product(gram, gram), x)
    return x


def on_gram(x, steps, restarts, product):
    """The same with X = Q X_0 and R = X X^T, begun anew before the steps `restarts`."""
    a, b, c = ROW
    begins = {0, *restarts}
    for step in range(steps):
        if step in begins:
            x = product(q, x) if step else x
            q, gram = None, product(x, x.T)
        z = b * gram + c * product(gram, gram)  # p(X) = (a I + Z) X
        q = a * np.eye(len(x)) + z if q is None else a * q + product(z, q)
        if step + 1 not in begins | {steps}:
            half = a * gram + product(gram, z)
            gram = a * half + product(z, half)
    return product(q, x)


@pytest.mark.parametrize("shape", [(4, 4), (4, 10), (6, 24)])
def test_flops_are_those_of_the_products(shape, rng):
    import limits

    x = rng.normal(size=shape)
    x /= np.linalg.norm(x)
    counted = Products()
    expected = direct(x, 5, counted)
    assert limits.direct_flops(*shape, 5) == counted.flops
    for restarts in ([], [2], [2, 4]):
        counted = Products()
        # Float64 rounding, grown by five steps of slope 3.4; seen: 3e-13.
        np.testing.assert_allclose(
            on_gram(x, 5, restarts, counted), expected, atol=1e-10
        )
        assert limits.gram_flops(*shape, 5, len(restarts)) == counted.flops


def test_the_limit_takes_the_cheaper_form_at_the_rate_of_its_size():
    import limits
    from shapes import Case

    # In n^3: a square 30 directly, 38 on Gram matrices; alpha = 4: 90 against 50.
    case = Case("", (("a", (10, 10)), ("b", (40, 10)), ("c", (10, 40))), 1)
    assert limits.limit_seconds(case, 5, "float32", {8: 1.0, 16: 1e3}) == 30 + 2 * 50
    assert limits.fewest_flops(10, 40, 5, "bfloat16") == 70_000
    assert limits.standard_flops(case, 5) == 30_000 + 2 * 90_000
    large = Case("", (("a", (100, 100)),), 1)  # beyond the sizes: the largest of them
    assert limits.limit_seconds(large, 5, "float32", {8: 1e6, 16: 3e7}) == 1
    assert limits.sizes_of(case, (8, 12, 16)) == (12,)
    assert limits.nearest_size(12, (8, 12, 16)) == 12


def test_a_gemm_counts_its_chain_and_keeps_its_norm():
    import limits

    gemm = limits.Gemm(8, "float32", flops=10 * 2 * 8**3, elements=1)
    assert gemm.flops == 10 * 2 * 8**3
    assert limits.Gemm(8, "float32", flops=1, elements=3 * 64).flops == 4 * 3 * 2 * 8**3
    gemm(1)


def test_shapes_are_those_of_the_models():
    import programs
    import shapes

    cases = {case.name: case for case in shapes.EVERYWHERE + shapes.ACCELERATORS}
    # torchvision's ResNet-18 has 11,689,512 parameters, of which 513,000 are the
    # classifier's and 9,600 the norms'.
    assert cases["resnet18"].parameters == 11_689_512 - 513_000 - 9_600
    assert len(cases["resnet18"].leaves) == 20
    for name, layers, d in [
        *(("gpt_4x384", 4, 384), ("gpt_4x384_split", 4, 384)),
        *(("gpt_2x768", 2, 768), ("gpt_2x768_split", 2, 768)),
        *(("gpt2_small", 12, 768), ("gpt2_medium", 24, 1024)),
    ]:
        assert cases[name].parameters == layers * 12 * d**2
    # Llama 3 8B is 32 such layers, an embedding, a head, and two norms a layer and one.
    assert cases["llama_8b_layer"].parameters * 32 == 8_030_261_248 - (
        2 * 128_256 * 4096 + 65 * 4096
    )
    stacks = {(384, 1152): 4, (384, 384): 4, (384, 1536): 8}
    assert cases["gpt_4x384"].stacks() == stacks
    assert programs.largest_stack(cases["gpt_4x384"], "bfloat16") == 8 * 384 * 1536 * 2


PROGRAM = """HloModule jit_f, num_partitions=8

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %r = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %s = f32[4,4]{1,0} all-reduce(%r), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %t = (s32[], bf16[4,8]{1,0}) tuple(%i, %x)
}

%condition (q: (s32[], bf16[4,8])) -> pred[] {
  %q = (s32[], bf16[4,8]{1,0}) parameter(0)
  %end = s32[] constant(5)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %end), direction=LT
}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %zero = s32[] constant(1)
  %init = (s32[], bf16[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], bf16[4,8]{1,0}) while(%init), condition=%condition, body=%body
  %b = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
  %start = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]) all-to-all-start(%b), \
replica_groups={{0,1,2,3},{4,5,6,7}}
  %k = f32[4,4]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %done = bf16[4,8]{1,0} all-to-all-done(%start)
  ROOT %c = bf16[4,8]{1,0} copy(%done)
}
"""


class TestPrograms:
    """What is read out of a compiled program's text."""

    @pytest.fixture
    def program(self, benchmark_modules):
        import hlo

        return hlo.Program(PROGRAM)

    def test_collectives(self, program):
        reduced, moved = sorted(program.collectives(), key=lambda one: one.kind)
        assert (reduced.kind, reduced.times, reduced.in_loop) == ("all-reduce", 4, True)
        assert reduced.sent == 2 * 4 * 4 * 4 / 2  # pairs
        assert (moved.kind, moved.times, moved.in_loop) == ("all-to-all", 1, False)
        assert moved.sent == 4 * 8 * 2 * 3 / 4
        assert program.overlapped() == 1

    def test_flops_with_loops_multiplied_out(self, program):
        assert program.flops() == (4 + 1) * 2 * 4 * 4 * 8

    @pytest.mark.parametrize(
        ("sizes", "spec", "shape", "count"),
        [
            ((4, 2), P("fsdp"), (32, 64), 11),
            ((8, 1), P("fsdp"), (64, 1024), 2),  # four devices share a matrix
            ((8, 1), P(None, "fsdp"), (64, 1024), 2),
            ((8, 1), P(), (64, 1024), 2),
        ],
    )
    def test_bytes_are_those_of_the_plan(
        self, sizes, spec, shape, count, benchmark_modules
    ):
        """XLA's CPU writes an all-to-all as a tuple of what goes to each device."""
        import hlo

        kind = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.make_mesh(sizes, ("fsdp", "tensor"), axis_types=kind)
        sharding = jax.sharding.NamedSharding(mesh, spec)
        leaf = jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)
        params = {f"layer_{i}": leaf for i in range(count)}
        plan = optax_muon.plan(params, sharding=sharding)
        tx = optax_muon.scale_by_muon(sharding=sharding)
        state = jax.eval_shape(tx.init, params)
        text = jax.jit(tx.update).lower(params, state).compile().as_text()
        found = hlo.Program(text)
        sent = sum(one.sent * one.times for one in found.collectives())
        [bucket] = plan.buckets
        # The maximum and the squares of a norm are not planned: a float32 each.
        norms = 2 * 2 * 4 if bucket.division.column_axes else 0
        assert bucket.bytes_sent <= sent <= bucket.bytes_sent + norms
        assert found.flops() == bucket.flops


@pytest.mark.usefixtures("benchmark_modules")
class TestPods:
    def results(self):
        import store

        return store.load(RESULTS / "tpu_aot.json")

    def bounds(self):
        import pods

        return {one.name: one.bounds for one in pods.TARGETS if one.bounds}

    def test_what_was_aimed_at_is_reached_by_the_committed_programs(self):
        import pod_table

        said = pod_table.verdicts(self.results(), self.bounds())
        assert said.count("pass") >= 7 * len(self.bounds())
        assert "FAIL" not in said

    @pytest.mark.parametrize(
        ("change", "claim"),
        [
            ({"collectives": {"all-to-all": 99}}, "all-to-alls"),
            ({"collectives": {"all-to-all": 6, "all-gather": 1}}, "other collectives"),
            ({"collectives": {"all-reduce": 1}}, "other collectives"),
            ({"in_loops": 1}, "collectives in loops"),
            ({"temp_bytes": 10**9}, "temporary GB"),
            ({"flops": 10**13}, "FLOPs"),
            ({"moved_bytes": 10**9}, "all-to-alls' bytes"),
            ({"ms": {"products": 50, "network": 50}}, "least ms"),
        ],
    )
    def test_each_claim_can_fail(self, change, claim):
        import pod_table

        results = self.results()
        results["results"]["targets"]["gpt_12x2048_rows ours"] |= change
        said = pod_table.verdicts(results, self.bounds()).splitlines()
        failed = [line for line in said if line.endswith("FAIL")]
        assert any(line.startswith(f"gpt_12x2048_rows: {claim}") for line in failed)

    @pytest.mark.parametrize(
        ("times", "verdict"),
        [
            ({"ours": [9, 99, 9], "optax": [99, 80, 9]}, "pass"),  # medians, not means
            ({"ours": [9, 9, 99], "optax": [999, 9, 9]}, "FAIL"),
            (None, "FAIL"),
        ],
    )
    def test_so_can_that_of_time_to_compile(self, times, verdict):
        import pod_table

        results = self.results()
        rows = {} if times is None else {"gpt_12x2048_rows": times}
        results["results"]["compile_times"] = rows
        [said] = [
            line
            for line in pod_table.verdicts(results, self.bounds()).splitlines()
            if line.startswith("gpt_12x2048_rows: compile time / optax's")
        ]
        assert said.endswith(verdict)

    def test_a_refused_program_is_shown_and_fails(self):
        import pod_table

        refused = {"refused": "no"}
        rows = {"strong 1024 ours": refused}
        assert "| strong 1024 |  | refused: no |" in pod_table.shares(rows)
        assert "refused: no" in pod_table.programs(rows)
        results = {"results": {"targets": {"gpt_10x1536 ours": refused}}}
        said = pod_table.verdicts(results, self.bounds())
        assert "gpt_10x1536: no: FAIL" in said
        assert "gpt_32x4096: not compiled yet: FAIL" in said
