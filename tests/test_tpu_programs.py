"""What a TPU's compiler makes of an update, without a TPU."""

import pytest

pytestmark = [pytest.mark.tpu, pytest.mark.usefixtures("benchmark_modules")]


def target(topology, mesh, model):
    import pods

    return pods.Target("small", topology, mesh, model)


def small(rows, columns, layers=2, width=512):
    import pods

    return pods.gpt(layers, width, rows, columns)


def test_two_exchanges_a_stack_and_nothing_else():
    import tpu_aot

    found = tpu_aot.program(
        target("v5e:4x4", {"fsdp": 16}, small("fsdp", None)), "ours"
    )
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


def test_columns_of_few_matrices_are_shared():
    import tpu_aot

    model = small("fsdp", "tensor", layers=1, width=2048)
    few = {name: leaf for name, leaf in model.items() if name.endswith(("up", "down"))}
    found = tpu_aot.program(target("v5e:4x4", {"fsdp": 4, "tensor": 4}, few), "ours")
    assert set(found["collectives"]) <= {"all-to-all", "all-reduce"}
    assert found["collectives"]["all-reduce"] >= 3  # R of each cycle
    assert found["in_loops"] == 0
    assert found["flops"] == pytest.approx(found["planned_flops"], rel=1e-6)


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

    one = target("v5e:2x2", {"fsdp": 4}, small("fsdp", None))
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
