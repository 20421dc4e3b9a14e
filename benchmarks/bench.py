"""Measure this library against optax.contrib, PyTorch, and the machine's own GEMM.

Run from the repository root, on a machine that does nothing else:

    python benchmarks/bench.py

Each case lands in results/<machine>.json as it ends, and the next call goes on from
there. At the end come the tables, and every acceptance line with its bound.
"""

import argparse
import sys
import time
from pathlib import Path

import jax

import machine
import report
from programs import measure_compile, measure_memory
from shapes import Case, Plan, plan
from store import Store, UsageError, load
from updates import measure_gemm, measure_update

RESULTS = Path(__file__).parent / "results"
SMOKE_RESULTS = Path(__file__).parents[1] / "runs" / "bench_smoke.json"
PARTS = ("gemm", "update", "compile", "memory")
# Each is short, and the median of an odd number was measured.
GEMM_ROUNDS = 21


def main(argv: list[str] | None = None) -> None:
    """Do what the command line asks, or say in one line why that cannot be done."""
    options = parse(argv)
    try:
        document = load(options.out) if options.table else measure(options)
    except UsageError as error:
        sys.exit(f"error: {error}")
    print((report.markdown if options.markdown else report.render)(document))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, help="results; by default results/<machine>.json")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    add("--cases", nargs="+", metavar="NAME", help="only these of them")
    add("--rounds", type=int, help="rounds of every case, instead of its own number")
    add("--redo", action="store_true", help="measure anew what is already there")
    add("--smoke", action="store_true", help="tiny matrices: does it work at all?")
    add("--table", action="store_true", help="print the tables of --out, run nothing")
    add("--markdown", action="store_true", help="the README's table in their place")
    options = parser.parse_args(argv)
    if options.out is None:  # a smoke run must not land among results
        options.out = SMOKE_RESULTS if options.smoke else default_out()
    return options


def default_out() -> Path:
    return RESULTS / f"{machine.slug()}.json"


def measure(options: argparse.Namespace) -> dict:
    """Run what is missing, one case after another, and return the whole document."""
    planned = plan(jax.default_backend(), smoke=options.smoke)
    wanted = select(planned, options)
    header = {
        "command": "python benchmarks/bench.py" + " --smoke" * options.smoke,
        "smoke": options.smoke,
        "environment": machine.environment(),
    }
    store = Store(options.out, header, redo=options.redo)
    source = machine.source()
    for part, name in wanted:
        row = store.row(part, name)
        if row is not None and not options.redo:
            of = "" if row["source"] == source else ", of other files of optax_muon"
            say(f"{part} {name}: kept{of}; --redo measures it anew")
            continue
        start = time.perf_counter()
        row = measure_case(part, name, planned, options.rounds)
        store.put(part, name, {"source": source} | row)
        say(f"{part} {name}: measured in {time.perf_counter() - start:.0f} s")
    return store.document


def select(planned: Plan, options: argparse.Namespace) -> list[tuple[str, str]]:
    """The parts and cases asked for, in the order they are run."""
    if options.rounds is not None and options.rounds < 1:
        raise UsageError("--rounds", options.rounds, "none would be timed", "Give 1 up")
    parts = {part: planned.parts()[part] for part in PARTS if part in options.parts}
    known = dict.fromkeys(name for names in parts.values() for name in names)
    unknown = [name for name in options.cases or () if name not in known]
    if unknown:
        raise UsageError(
            "--cases",
            " ".join(unknown),
            f"no such case in {', '.join(parts)}",
            f"Choose among {', '.join(known)}",
        )
    return [
        (part, name)
        for part, names in parts.items()
        for name in names
        if options.cases is None or name in options.cases
    ]


def measure_case(part: str, name: str, planned: Plan, rounds: int | None) -> dict:
    """One row of one part."""
    platform = jax.default_backend()
    if part == "gemm":
        return measure_gemm(name, planned, rounds or planned.rounds or GEMM_ROUNDS)
    if part == "compile":
        case = find(planned.depths, name)
        return measure_compile(case, platform, rounds or case.rounds)
    case = find(planned.cases, name)
    if part == "memory":
        return measure_memory(case, platform)
    return measure_update(
        case, planned, platform, rounds or planned.rounds or case.rounds
    )


def find(cases: tuple[Case, ...], name: str) -> Case:
    return next(case for case in cases if case.name == name)


def say(line: str) -> None:
    """Progress, apart from the tables."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
