"""The tables of tpu_aot.py: a line for each compiled program, as Markdown."""

import statistics
from collections.abc import Callable

from pods import Bounds


def of_owners(row: dict) -> float:
    """A program's time by the chip's rates, over that of owners of whole matrices.

    Those have all matrices of one shape, however they are sharded, in one stack.
    """
    return (row["ms"]["products"] + row["ms"]["network"]) / row["owners_ms"]


# A column of a table: what a row of the results has in it.
COLUMNS: dict[str, Callable[[dict], object]] = {
    "chips": lambda row: row["chips"],
    "collectives": lambda row: (
        ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items()) or "none"
    ),
    "in loops": lambda row: row["in_loops"],
    "beside products": lambda row: row["overlapped"],
    "sent, MB": lambda row: f"{row['sent_bytes'] / 1e6:.3g}",
    "of an even share of bytes": lambda row: (
        f"{row['sent_bytes'] / row['even_sent_bytes']:.2f}"
    ),
    "temporary, GB": lambda row: f"{row['temp_bytes'] / 1e9:.3g}",
    "program, MB": lambda row: f"{row['code_bytes'] / 1e6:.3g}",
    "TFLOP": lambda row: f"{row['flops'] / 1e12:.3g}",
    "of an even share of FLOPs": lambda row: f"{row['flops'] / row['even_flops']:.2f}",
    "of owners' least ms": lambda row: f"{of_owners(row):.2f}",
    "compile, s": lambda row: row["compile_seconds"],
    "least ms: products, network, memory": lambda row: ", ".join(
        f"{ms:.3g}" for ms in row["ms"].values()
    ),
}
OF_SHARES = [name for name in COLUMNS if name.startswith("of ")]
NOT_OF_SHARES = ["in loops", "beside products", "program, MB", "compile, s"]


def compared(rows: dict[str, dict]) -> dict[str, dict]:
    """The rows of targets that were compiled for optax as well."""
    names = {case.removesuffix(" optax") for case in rows if case.endswith(" optax")}
    kept = [case for case in rows if any(case.startswith(f"{n} ") for n in names)]
    return {case: rows[case] for case in sorted(kept, key=_target)}


def _target(case: str) -> str:
    """Its name, without the contestant."""
    return case.partition(" ours")[0].removesuffix(" optax").removesuffix(" adamw")


def programs(rows: dict[str, dict]) -> str:
    """What each program has and does, on one device."""
    return _table(rows, [name for name in COLUMNS if name not in OF_SHARES])


def shares(rows: dict[str, dict]) -> str:
    """Our programs' FLOPs and bytes beside an even share of what there is.

    All matrices' FLOPs by the number of devices; every matrix entry there and back in
    bfloat16, by the number of devices. Besides, their time over that of owners.
    """
    ours = {
        case.removesuffix(" ours"): row
        for case, row in rows.items()
        if case.endswith(" ours")
    }
    return _table(ours, [name for name in COLUMNS if name not in NOT_OF_SHARES])


def _table(rows: dict[str, dict], columns: list[str]) -> str:
    """Markdown; what the compiler refused stands in the place of collectives."""
    lines = [["program", *columns], ["---"] * (len(columns) + 1)]
    for case, row in rows.items():
        if "refused" in row:
            why = {"collectives": f"refused: {row['refused']}"}
            lines.append([case, *(why.get(name, "") for name in columns)])
        else:
            lines.append([case, *(COLUMNS[name](row) for name in columns)])
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def compile_times(rows: dict[str, dict]) -> str:
    """How long our step and optax's take to compile: a sentence for each target."""
    sentences = []
    for name, row in rows.items():
        ours, optax = (statistics.median(row[who]) for who in ("ours", "optax"))
        sentences.append(
            f"{name} compiles in {ours:.1f} s, optax's step in {optax:.0f} s (medians "
            f"of {len(row['ours'])} in turn, each in a process of its own)."
        )
    return "\n".join(sentences)


def verdicts(document: dict, bounds: dict[str, Bounds]) -> str:
    """What was aimed at, beside what was found: a line for each claim.

    Args:
      document: the results.
      bounds: of each target. Besides, a program of ours must have no other collectives,
        but for sums where devices share columns, and none in loops; at most the FLOPs
        and all-to-alls' bytes of whole matrices on their owners, padded as counts and
        chips force; and take no longer than those by the chip's rates.
    """
    rows = document["results"].get("targets", {})
    times = document["results"].get("compile_times", {})
    lines = []

    def claim(text: str, found: float, bound: float) -> None:
        verdict = "pass" if found <= bound else "FAIL"
        lines.append(f"{text}: {found:.3g}, at most {bound:.3g}: {verdict}")

    for name, most in bounds.items():
        row = rows.get(f"{name} ours", {"refused": "not compiled yet"})
        if "refused" in row:
            lines.append(f"{name}: {row['refused']}: FAIL")
            continue
        kinds = dict(row["collectives"])
        claim(f"{name}: all-to-alls", kinds.pop("all-to-all", 0), most.all_to_alls)
        if row["shares_columns"]:
            lines.append(f"{name}: sums: {kinds.pop('all-reduce', 0)}")
        claim(f"{name}: other collectives", sum(kinds.values()), 0)
        claim(f"{name}: collectives in loops", row["in_loops"], 0)
        claim(f"{name}: temporary GB", row["temp_bytes"] / 1e9, most.temporary)
        owners = row["flops"] / row["forced_flops"]
        claim(f"{name}: FLOPs / whole matrices, padded", owners, 1.05)
        owners = row["moved_bytes"] / row["forced_bytes"]
        claim(f"{name}: all-to-alls' bytes / whole matrices, padded", owners, 1.1)
        claim(f"{name}: least ms / by owners", of_owners(row), 1.05)
        if most.compile_share is None:
            continue
        if name not in times:
            lines.append(f"{name}: compile time / optax's: not measured yet: FAIL")
            continue
        ours, optax = (statistics.median(times[name][who]) for who in ("ours", "optax"))
        claim(f"{name}: compile time / optax's", ours / optax, most.compile_share)
    return "\n".join(lines)
