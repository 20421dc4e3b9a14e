"""What a TPU's compiler makes of an update, without a TPU."""

import os

import pytest
from jax.sharding import PartitionSpec as P

import optax_muon

pytestmark = [pytest.mark.tpu, pytest.mark.usefixtures("benchmark_modules")]


def target(topology, mesh, model):
    import pods

    return pods.Target("small", topology, mesh, model)


def small(rows, columns, layers=2, width=512):
    import pods

    return pods.gpt(layers, width, rows, columns)


def test_two_exchanges_a_stack_and_nothing_else():
    import tpu_aot

    model = small("fsdp", None, layers=4)
    found = tpu_aot.program(target("v5e:2x2", {"fsdp": 4}, model), "ours")
    # Squares, up and down.
    assert found["collectives"] == {"all-to-all": 6}
    assert found["in_loops"] == 0
    assert found["flops"] == found["planned_flops"]
    assert found["sent_bytes"] == found["moved_bytes"] == found["planned_sent_bytes"]


def test_the_peer_gathers_within_its_iteration():
    """The counts above are not blind."""
    import tpu_aot

    one = target("v5e:4x4", {"fsdp": 16}, small("fsdp", None, layers=1))
    found = tpu_aot.program(one, "optax")
    assert found["collectives"]["all-gather"] > 6
    assert tpu_aot.program(one, "adamw")["collectives"] == {}


@pytest.mark.parametrize(
    ("mesh", "spec"),
    [
        ({"fsdp": 4, "tensor": 4}, P("fsdp", "tensor")),
        ({"fsdp": 16}, P("fsdp")),
        ({"fsdp": 16}, P(None, "fsdp")),
    ],
)
def test_columns_of_few_matrices_are_shared(mesh, spec):
    import pods
    import tpu_aot

    few = {f"layer_{i}": pods.Leaf((2048, 8192), spec) for i in range(2)}
    found = tpu_aot.program(target("v5e:4x4", mesh, few), "ours")
    assert found["collectives"].pop("all-to-all") == 2
    # R of each of three cycles, and the norm's maximum and squares.
    assert 3 <= found["collectives"].pop("all-reduce") <= 5
    assert found["collectives"] == {}
    assert found["in_loops"] == 0
    assert found["flops"] == pytest.approx(found["planned_flops"], rel=1e-6)
    # Sums of norms are not planned: a few float32.
    assert found["sent_bytes"] == pytest.approx(found["planned_sent_bytes"], abs=100)


def test_a_fraction_of_the_rows_sends_that_fraction(monkeypatch):
    """Dion2; and matrices side by side in one leaf move with it, at no extra cost."""
    import pods
    import tpu_aot

    def muon(**arguments):
        return lambda target, sharding: optax_muon.scale_by_muon(
            sharding=sharding, **arguments
        )

    def dion2(target, sharding):
        return optax_muon.scale_by_dion2(0.25, sharding=sharding)

    fused = optax_muon.MatrixAxes(0, 1, fan_out_parts=(1024, 512, 512))
    makers = {"muon": muon(), "fused": muon(matrix_axes=fused), "dion2": dion2}
    monkeypatch.setattr(tpu_aot, "CONTESTANTS", makers)
    leaves = {f"layer_{i}": pods.Leaf((1024, 2048), P("fsdp")) for i in range(4)}
    one = target("v5e:2x2", {"fsdp": 4}, leaves)
    monkeypatch.setattr(tpu_aot, "ours", None)
    found = {name: tpu_aot.program(one, name) for name in makers}
    for program in found.values():
        assert program["collectives"] == {"all-to-all": 2}
        assert program["in_loops"] == 0
    assert found["fused"]["sent_bytes"] == found["muon"]["sent_bytes"]
    assert found["fused"]["flops"] < found["muon"]["flops"]
    assert found["dion2"]["sent_bytes"] * 4 == found["muon"]["sent_bytes"]
    assert found["dion2"]["flops"] < found["muon"]["flops"] / 4


def test_a_tpu_exchanges_beside_other_stacks_if_asked():
    import tpu_aot

    one = target("v5e:4x4", {"fsdp": 16}, small("fsdp", None, layers=4, width=1024))
    assert tpu_aot.program(one, "ours")["overlapped"] == 0
    assert tpu_aot.program(one, "ours, asynchronous")["overlapped"] > 0


def test_parameters_and_momentum_are_updated_in_place():
    """None of them is copied to suit another layout, nor another buffer.

    Where squares are cut along either side, those that are transposed still are.
    """
    import tpu_aot

    one = target("v5e:2x2", {"fsdp": 4}, small("fsdp", None, layers=4))
    text = tpu_aot.compiled_step(one, "ours", tpu_aot.place(one)).as_text()
    entry = text[text.index("\nENTRY ") :]
    copies = [line for line in entry.splitlines() if " copy(" in line]
    assert not [line for line in copies if "= f32[" in line]


def test_one_chip_holds_stacks_in_the_dtype_of_products():
    """Beside state and gradients, four copies of the largest stack in bfloat16."""
    import tpu_aot

    layers, width = 4, 1024
    one = target("v5e:1x1", {"fsdp": 1}, small("fsdp", None, layers, width))
    found = tpu_aot.program(one, "ours")
    assert found["collectives"] == {}
    stack = 2 * layers * 4 * width * width * 2
    assert found["temp_bytes"] < 4 * stack


def test_what_is_missing_is_compiled_and_times_are_taken_in_turn(tmp_path, monkeypatch):
    """No compiler here: what would go to processes of their own."""
    import tpu_aot
    from store import UsageError

    done, answer = [], {"compile_seconds": 1.5}

    def instead(function, one, contestant):
        assert function is tpu_aot.program_or_refusal
        done.append((one.name, contestant))
        return {"source": "now"} | answer

    monkeypatch.setattr(tpu_aot, "in_own_process", instead)
    flags = ["--out", str(tmp_path / "out.json"), "--targets", "gpt_12x2048_rows"]

    def measured(*more):
        done.clear()
        document = tpu_aot.measure(tpu_aot.parse([*flags, *more]))
        return document["results"], list(done)

    _, found = measured("--contestants", "ours", "--parts", "targets")
    assert found == [("gpt_12x2048_rows", "ours")]
    results, found = measured("--contestants", "ours", "adamw")
    turn = [("gpt_12x2048_rows", "ours"), ("gpt_12x2048_rows", "optax")]
    assert found == [("gpt_12x2048_rows", "adamw"), *turn * 5]
    assert set(results["targets"]) == {
        "gpt_12x2048_rows ours",
        "gpt_12x2048_rows adamw",
    }
    assert results["compile_times"]["gpt_12x2048_rows"]["optax"] == [1.5] * 5
    assert measured("--contestants", "ours", "adamw")[1] == []
    del answer["compile_seconds"]
    answer["refused"] = "no room"
    results, found = measured("--parts", "targets", "--contestants", "optax")
    assert results["targets"]["gpt_12x2048_rows optax"]["refused"] == "no room"
    with pytest.raises(UsageError, match="the compiler refuses ours: no room"):
        measured("--parts", "compile_times", "--redo")


def test_a_dead_compiler_is_one_line():
    import tpu_aot
    from store import UsageError

    with pytest.raises(UsageError, match="adamw: its compiler's process died"):
        tpu_aot.in_own_process(dies, target("v5e:2x2", {"fsdp": 4}, {}), "adamw")


def dies(target, contestant):
    os._exit(1)
