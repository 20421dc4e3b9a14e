"""Compile optimizer steps for TPU pods without one, and say what the programs do.

Run from the repository root; needs `libtpu` (the extra `tpu`), on Linux:

    python benchmarks/tpu_aot.py

For every target it compiles a step (update, and parameters updated in place) of this
library, of `optax.contrib.muon` and of `optax.adamw`, and writes what it counts to
results/tpu_aot.json; a second call goes on from there. Each program is compiled in a
process of its own: what one compilation leaves behind slows the next one down. Where
times to compile are compared, programs take turns.
"""

import argparse
import collections
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

# Before jax starts: libtpu must not look for a TPU, nor for its neighbours.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import hlo
import machine
import optax_muon
import pods
from pod_table import compile_times, programs, shares, verdicts
from store import Store, UsageError, load

RESULTS = Path(__file__).parent / "results" / "tpu_aot.json"
# The targets of each part; times to compile are compared where there is a bound.
KNOWN = {
    "targets": pods.TARGETS,
    "scaling": pods.SCALING,
    "compile_times": tuple(
        target
        for target in pods.TARGETS
        if target.bounds is not None and target.bounds.compile_share is not None
    ),
}
# Lets exchanges run beside other stacks' iterations, for more memory.
ASYNC = {"xla_tpu_enable_async_all_to_all": "true"}
COEFFICIENTS = "keller_jordan"  # which all contestants have
COMPILE_ROUNDS = 5


def ours(target: pods.Target, shardings: dict) -> optax.GradientTransformation:
    return optax_muon.muon(
        0.01,
        orthogonalizer=optax_muon.NewtonSchulz(COEFFICIENTS),
        matrix_axes={name: leaf.axes for name, leaf in target.model.items()},
        sharding=shardings,
    )


def optax_contrib(target: pods.Target, shardings: dict) -> optax.GradientTransformation:
    del shardings
    numbers = {
        name: None
        if leaf.axes is None
        else optax.contrib.MuonDimensionNumbers(leaf.axes.fan_in, leaf.axes.fan_out)
        for name, leaf in target.model.items()
    }
    return optax.contrib.muon(0.01, muon_weight_dimension_numbers=numbers)


def adamw(target: pods.Target, shardings: dict) -> optax.GradientTransformation:
    del target, shardings
    return optax.adamw(0.01)


CONTESTANTS = {
    "ours": ours,
    "ours, asynchronous": ours,
    "optax": optax_contrib,
    "adamw": adamw,
}


def main(argv: list[str] | None = None) -> None:
    """Do what the command line asks, or say in one line why that cannot be done."""
    options = parse(argv)
    try:
        document = load(options.out) if options.table else measure(options)
    except UsageError as error:
        sys.exit(f"error: {error}")
    bounds = {one.name: one.bounds for one in pods.TARGETS if one.bounds is not None}
    for part, rows in document["results"].items():
        if part == "compile_times":
            print(f"{compile_times(rows)}\n")
        else:
            print(f"{part}\n\n{programs(rows)}\n\n{shares(rows)}\n")
    print(f"aimed at\n\n{verdicts(document, bounds)}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=RESULTS, help="results")
    add("--parts", nargs="+", choices=KNOWN, default=tuple(KNOWN), help="which")
    add("--targets", nargs="+", metavar="NAME", help="only these of them")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=tuple(CONTESTANTS))
    add("--redo", action="store_true", help="compile anew what is already there")
    add("--table", action="store_true", help="print the table of --out, compile none")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> dict:
    """Compile what is missing, one program after another."""
    header = {
        "command": "python benchmarks/tpu_aot.py",
        "environment": machine.environment() | {"libtpu": machine.version("libtpu")},
    }
    store = Store(options.out, header)
    for part, target, contestant in wanted(options):
        case = f"{target.name} {contestant}"
        if not kept(store, part, case, options):
            store.put(
                part, case, in_own_process(program_or_refusal, target, contestant)
            )
            print(case, file=sys.stderr, flush=True)
    for target in timed_in_turn(options):
        if not kept(store, "compile_times", target.name, options):
            store.put("compile_times", target.name, compiled_in_turn(target))
    return store.document


def kept(store: Store, part: str, case: str, options: argparse.Namespace) -> bool:
    """Whether there is a row already that need not be made anew."""
    row = store.row(part, case)
    if row is None or options.redo:
        return False
    of = "" if row["source"] == machine.source() else ", of other files of optax_muon"
    print(f"{case}: kept{of}; --redo compiles anew", file=sys.stderr)
    return True


def compiled_in_turn(target: pods.Target) -> dict:
    """Seconds that it takes to trace and compile our step and optax's, each round."""
    row: dict = {"ours": [], "optax": []}
    for _ in range(COMPILE_ROUNDS):
        for contestant in ("ours", "optax"):
            found = in_own_process(program_or_refusal, target, contestant)
            if "refused" in found:
                raise UsageError(
                    "--parts",
                    "compile_times",
                    f"of {target.name} the compiler refuses {contestant}: "
                    + found["refused"],
                    "Leave that part out",
                )
            row[contestant].append(found["compile_seconds"])
            if contestant == "ours":
                row["source"] = found["source"]
            print(
                f"{target.name} {contestant}: {row[contestant][-1]} s", file=sys.stderr
            )
    return row


def in_own_process(
    function: Callable[[pods.Target, str], Any], target: pods.Target, contestant: str
) -> Any:
    """What the function returns, in a process that has compiled nothing before."""
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
            return pool.submit(function, target, contestant).result()
    except BrokenProcessPool:
        raise UsageError(
            "--targets",
            f"{target.name} {contestant}",
            "its compiler's process died, most likely for want of memory",
            "Free some, or name other --targets; what is done is kept",
        ) from None


def program_or_refusal(target: pods.Target, contestant: str) -> dict:
    """`program`, or what the compiler says when it refuses."""
    source = {"source": machine.source()}
    try:
        return source | program(target, contestant)
    except jax.errors.JaxRuntimeError as error:
        return source | {"refused": str(error).splitlines()[0]}


def wanted(options: argparse.Namespace) -> list[tuple[str, pods.Target, str]]:
    """(part, target, contestant) of every program asked for."""
    names = [target.name for part in options.parts for target in KNOWN[part]]
    unknown = [name for name in options.targets or () if name not in names]
    if unknown:
        raise UsageError(
            "--targets",
            unknown,
            f"no such target in {', '.join(options.parts)}",
            f"Choose among {', '.join(dict.fromkeys(names))}",
        )
    return [
        (part, target, contestant)
        for part in options.parts
        if part != "compile_times"
        for target in KNOWN[part]
        for contestant in options.contestants
        if options.targets is None or target.name in options.targets
        if part == "targets" or contestant == "ours"  # scaling is of ours
    ]


def timed_in_turn(options: argparse.Namespace) -> list[pods.Target]:
    """The targets asked for whose time to compile is compared with optax's."""
    return [
        target
        for target in KNOWN["compile_times"]
        if "compile_times" in options.parts
        if options.targets is None or target.name in options.targets
    ]


def program(target: pods.Target, contestant: str) -> dict:
    """What one compiled step does and needs, on each device."""
    placed = place(target)
    warm_up(placed.mesh)
    start = time.perf_counter()
    compiled = compiled_step(target, contestant, placed)
    seconds = time.perf_counter() - start
    return {
        "chips": placed.mesh.size,
        "compile_seconds": round(seconds, 1),
        **counted(hlo.Program(compiled.as_text()), compiled, target),
        **(due(target, placed) if CONTESTANTS[contestant] is ours else {}),
    }


class Placed(NamedTuple):
    """A target's mesh, and its parameters' shardings and shapes by their names."""

    mesh: Mesh
    shardings: dict[str, NamedSharding]
    params: dict[str, jax.ShapeDtypeStruct]


def place(target: pods.Target) -> Placed:
    """The target on its topology."""
    chips = math.prod(target.mesh.values())
    described = topologies.get_topology_desc(
        platform="tpu",
        topology_name=target.topology,
        # A host has four chips unless it is told that there are fewer.
        **({"chips_per_host_bounds": (1, 1, 1)} if chips < 4 else {}),
    )
    devices = np.array(described.devices)
    mesh = Mesh(devices.reshape(tuple(target.mesh.values())), tuple(target.mesh))
    shardings = {
        name: NamedSharding(mesh, leaf.spec) for name, leaf in target.model.items()
    }
    params = {
        name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=shardings[name])
        for name, leaf in target.model.items()
    }
    return Placed(mesh, shardings, params)


def compiled_step(
    target: pods.Target, contestant: str, placed: Placed
) -> jax.stages.Compiled:
    """An update, and parameters updated in place."""
    mesh, shardings, params = placed
    transformation = CONTESTANTS[contestant](target, shardings)
    state = laid_out(jax.eval_shape(transformation.init, params), params, mesh)

    # What is donated comes in the order of the results, by which JAX pairs arrays of
    # one shape: a momentum that took a parameter's place would have to be copied.
    def step(gradients, params, state):
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(1, 2)).lower(params, params, state)
    options = ASYNC if "asynchronous" in contestant else None
    return lowered.compile(compiler_options=options)


def warm_up(mesh: Mesh) -> None:
    """Compile a product: a process waits for the compiler itself once."""
    x = jax.ShapeDtypeStruct(
        (256, 256), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())
    )
    jax.jit(jnp.matmul).lower(x, x).compile()


def laid_out(state: object, params: dict, mesh: Mesh) -> object:
    """A state's arrays, sharded as the parameters whose names their paths end in."""

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = [getattr(key, "key", None) for key in path]
        found = [params[name].sharding for name in names if name in params]
        where = found[-1] if found else NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(place, state)


def counted(found: hlo.Program, compiled: object, target: pods.Target) -> dict:
    """Exact counts of a program; the least time of each part by the chip's rates."""
    collectives = found.collectives()
    sent = sum(one.sent * one.times for one in collectives)
    memory = compiled.memory_analysis()
    flops = found.flops()
    touched = memory.argument_size_in_bytes + memory.output_size_in_bytes
    chip = target.chip
    return {
        "collectives": found.counts(),
        "runs": sum(one.times for one in collectives),
        "in_loops": sum(one.in_loop for one in collectives),
        "overlapped": found.overlapped(),
        "sent_bytes": int(sent),
        "moved_bytes": int(
            sum(one.sent * one.times for one in collectives if one.kind == "all-to-all")
        ),
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": flops,
        "ms": {
            "products": round(1e3 * flops / chip.flops, 3),
            "network": round(1e3 * sent / chip.network, 3),
            "memory": round(1e3 * touched / chip.memory, 3),
        },
    }


def due(target: pods.Target, placed: Placed) -> dict:
    """What the plan says a device must do, beside an even share of what there is."""
    axes = {name: leaf.axes for name, leaf in target.model.items()}
    planned, undivided = (
        optax_muon.plan(
            placed.params,
            axes,
            sharding,
            orthogonalizer=optax_muon.NewtonSchulz(COEFFICIENTS),
            platform="tpu",
        ).buckets
        for sharding in (placed.shardings, None)
    )
    chips, chip = placed.mesh.size, target.chip
    entries = sum(
        leaf.size for name, leaf in placed.params.items() if axes[name] is not None
    )
    # Whole matrices on their owners: padding is what counts and chips force.
    counts = collections.Counter()
    for one in undivided:
        counts[one.matrix, one.flops / one.count] += one.count
    owners = [(-(-count // chips), *one) for one, count in counts.items()]
    forced_flops = sum(own * flops for own, _, flops in owners)
    forced_bytes = sum(2 * 2 * own * math.prod(matrix) for own, matrix, _ in owners)
    return {
        "planned_flops": int(sum(bucket.flops for bucket in planned)),
        "even_flops": int(sum(bucket.flops for bucket in undivided) / chips),
        "planned_sent_bytes": int(sum(bucket.bytes_sent for bucket in planned)),
        # Both ways in bfloat16: an even share of all entries, and whole matrices.
        "even_sent_bytes": 2 * 2 * entries // chips,
        "forced_flops": int(forced_flops),
        "forced_bytes": int(forced_bytes),
        "owners_ms": round(
            1e3 * forced_flops / chip.flops
            + 1e3 * forced_bytes * (1 - 1 / chips) / chip.network,
            3,
        ),
        "shares_columns": any(one.division.column_axes for one in planned),
        "stacks": [str(bucket) for bucket in planned],
    }


if __name__ == "__main__":
    main()
