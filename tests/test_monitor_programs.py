"""What monitoring costs: nothing when off, below 2 % of the FLOPs every ten steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_muon
from optax_muon import _measurements, monitor, muon, read_records
from optax_muon._statistics import matrices_of
from tests.recipes import assert_close, gradients, model, run

# XLA counts an operation for each entry of the result, of reductions of the operand.
ELEMENTWISE = {
    *("abs", "add", "and", "compare", "convert", "divide", "is-finite", "maximum"),
    *("minimum", "multiply", "negate", "not", "or", "select", "sqrt", "subtract"),
}


def gpt(width, layers=2):
    """The leaves of some blocks, as the GPT example has them."""
    shapes = {
        **{f"{name}/kernel": (width, 4, width // 4) for name in ("query", "key")},
        "value/kernel": (width, 4, width // 4),
        "out/kernel": (4, width // 4, width),
        "up/kernel": (width, 4 * width),
        "down/kernel": (4 * width, width),
        "norm/scale": (width,),
    }
    leaves = {}
    for layer in range(layers):
        for path, shape in shapes.items():
            module, name = path.split("/")
            leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
            leaves.setdefault(f"layer_{layer}", {})[module] = {name: leaf}
    return leaves


def lowered(tx, params):
    state = jax.eval_shape(tx.init, params)
    return jax.jit(tx.update).lower(params, state, params)


def operations(lowered):
    """All of a compiled program, loops multiplied out and every branch taken."""
    import hlo

    program = hlo.Program(lowered.compile().as_text())
    found = program.flops()
    for one, times, _, computation in program.runs():
        if one.opcode in ELEMENTWISE:
            found += times * elements(one.type)
        elif one.opcode.startswith("reduce"):
            [operand, *_] = program._operands(one, computation)
            found += times * int(np.prod(operand))
    return found


def elements(type_):
    import hlo

    [(_, dims)] = hlo._SHAPE.findall(type_)[:1]
    return int(np.prod([int(n) for n in dims.split(",") if n]))


@pytest.mark.usefixtures("benchmark_modules")
def test_operations_are_xlas_own_count():
    """Of a program without loops; constants and broadcasts may differ by an entry."""

    def function(x):
        return jnp.where(x > 1, jnp.sqrt(x), x / 3).sum(0) @ (x @ x)

    low = jax.jit(function).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32))
    counted = low.compile().cost_analysis()
    total = counted["flops"] + counted.get("transcendentals", 0)
    np.testing.assert_allclose(operations(low), total, rtol=0.01)


@pytest.mark.usefixtures("benchmark_modules")
@pytest.mark.parametrize("width", [96, 256])
def test_every_ten_steps_below_two_percent_of_the_flops(width):
    params = gpt(width)
    plain, watched = muon(0.1), monitor(muon(0.1))
    off, on = (operations(lowered(tx, params)) for tx in (plain, watched))
    assert 0 < (on - off) / 10 < 0.02 * off


def test_off_is_the_same_program():
    tx = muon(0.1)
    assert monitor(tx, every=None) is tx
    params = model()
    texts = {
        lowered(tx, params).as_text()
        for tx in (muon(0.1), monitor(muon(0.1), every=None))
    }
    assert len(texts) == 1
    assert lowered(monitor(muon(0.1)), params).as_text() not in texts


def test_the_program_grows_with_shapes_not_with_layers():
    """But for slices into stacks and out of them, which are lines of their own."""
    sizes = {}
    for layers in (2, 4):
        text = lowered(monitor(muon(0.1)), gpt(16, layers)).as_text()
        sizes[layers] = sum("while" in line for line in text.splitlines())
    assert sizes[2] == sizes[4]


def test_stacks_end_at_the_cap(monkeypatch):
    x = jax.ShapeDtypeStruct((4, 6), jnp.float32)
    [matrices] = matrices_of(x, None, None, "test")[1]
    one = _measurements.Watched(matrices, ("size",))
    other = _measurements.Watched(matrices, ("size", "band"))
    leaf = {"update": jnp.ones((4, 6)), "gradient": jnp.ones((4, 6))}
    arguments = [one, other, one, one], [leaf] * 4
    assert _measurements._stacks(*arguments) == [[0, 2, 3], [1]]
    for size, first in {2 * 192: [0, 2], 100: [0]}.items():
        monkeypatch.setattr(_measurements, "STACK_BYTES", size)
        stacks = _measurements._stacks(*arguments)
        assert stacks[0] == first
        assert sorted(place for stack in stacks for place in stack) == [0, 1, 2, 3]


def test_no_matrix_is_decomposed():
    text = lowered(monitor(muon(0.1)), gpt(16)).as_text().lower()
    for name in ("custom_call", "svd", "lapack", "householder"):
        assert name not in text


def test_scan_collects_records():
    """As a compiled training loop would write them down, step by step."""
    params = model()
    grads = gradients(params, 4)
    tx = monitor(muon(0.1), every=2)
    steps = run(tx, params, grads)

    def body(state, grad):
        _, state = tx.update(grad, state, params)
        return state, read_records(state)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    _, records = jax.lax.scan(body, tx.init(params), stacked)
    np.testing.assert_array_equal(records["step"], [0, 2, 2, 4])
    for key, value in read_records(steps.states[2]).items():
        if not key.startswith("step") and "weight" not in key:
            assert_close(records[key][1], value)


def test_names_are_those_of_the_docstring():
    records = read_records(monitor(muon(0.1)).init({"kernel": jnp.ones((2, 3))}))
    text = optax_muon.monitor.__doc__
    for key in records:
        name = key.split("/")[-1]
        assert name in text or name.replace("sigma_max", "sigma_min") in text
