"""What a program costs before it runs: time to make it, its size, and its memory."""

import gc
import re
import time

import jax

import peers
from shapes import Case
from store import UsageError
from timing import digits, rotated, summary

# Products in compiled programs: XLA's own instructions (a TPU's are convolutions), and
# what it hands to a library.
COMPILED_DOT = re.compile(
    r" (?:dot|convolution)\(|custom_call_target=\"[^\"]*(?:gemm|matmul)[^\"]*\"",
    re.IGNORECASE,
)
LOWERED_DOT = re.compile(r"\bstablehlo\.dot(?:_general)?\b")


def measure_compile(case: Case, platform: str, rounds: int) -> dict:
    """Ours and the peer in turn, each round from nothing: no cache may help."""
    if jax.config.jax_compilation_cache_dir:  # from the environment or otherwise
        raise UsageError(
            "jax_compilation_cache_dir",
            jax.config.jax_compilation_cache_dir,
            "compile times would be those of the cache",
            "Unset it, and JAX_COMPILATION_CACHE_DIR",
        )
    contestants = peers.jax_contestants(platform)
    made: dict[str, list[dict]] = {one.name: [] for one in contestants}
    for index in range(rounds):
        for one in rotated(contestants, index):
            jax.clear_caches()
            gc.collect()  # or the last program would be freed on this one's time
            made[one.name].append(program(one, case))
    return {
        "leaves": len(case.leaves),
        "rounds": rounds,
        "programs": {name: _over_rounds(rows) for name, rows in made.items()},
    }


def _over_rounds(rows: list[dict]) -> dict:
    """Times as summaries; counts as they are, since every round finds the same."""
    timed = ("lower_seconds", "compile_seconds", "total_seconds")
    return {
        key: summary([row[key] for row in rows]) if key in timed else rows[-1][key]
        for key in rows[-1]
    }


def measure_memory(case: Case, platform: str) -> dict:
    """The temporary memory of an update, beside the largest stack of matrices."""
    found = {}
    for one in peers.jax_contestants(platform):
        stack = largest_stack(case, one.dtype)
        temp = program(one, case)["temp_bytes"]
        found[one.name] = {
            "temp_bytes": temp,
            "largest_stack_bytes": stack,
            "temp / largest stack": None if temp is None else digits(temp / stack),
        }
    return {"programs": found}


def program(contestant: peers.JaxContestant, case: Case) -> dict:
    """One update traced, lowered and compiled; its products, size, and memory.

    `temp_bytes` is None where the platform does not tell. Products are instructions:
    one in a loop, or in a function that is called often, counts once.
    """
    leaves, state = contestant.abstract(case)
    transformation = contestant.transformation(case)
    start = time.perf_counter()
    lowered = jax.jit(transformation.update).lower(leaves, state)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()

    text = lowered.as_text()
    memory = compiled.memory_analysis()
    return {
        "lower_seconds": middle - start,
        "compile_seconds": end - middle,
        "total_seconds": end - start,
        "stablehlo_dots": len(LOWERED_DOT.findall(text)),
        "stablehlo_bytes": len(text.encode()),
        "compiled_dots": len(COMPILED_DOT.findall(compiled.as_text() or "")),
        "temp_bytes": getattr(memory, "temp_size_in_bytes", None),
    }


def largest_stack(case: Case, dtype: str) -> int:
    """Bytes of all matrices of one shape, or its transpose, where they are the most."""
    itemsize = jax.numpy.dtype(dtype).itemsize
    return max(k * n * m * itemsize for (n, m), k in case.stacks().items())
