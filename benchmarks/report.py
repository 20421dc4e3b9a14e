"""The tables: every case and every acceptance line, from a file of results alone."""

from collections.abc import Iterable

import peers
from claims import claims, divided
from shapes import Case, Plan, plan

MISSING = "not measured"


def render(document: dict) -> str:
    """All tables of a document, for a terminal."""
    here = document["environment"]
    planned = plan(here["platform"], smoke=document["smoke"])
    results = document["results"]
    tables = (
        ("GEMM: TFLOP/s of square products", gemm_rows(planned, results)),
        ("Update: milliseconds a step", update_rows(planned, results, here)),
        ("Compile: seconds, products, bytes", compile_rows(planned, results, here)),
        ("Memory: temporary bytes of an update", memory_rows(planned, results, here)),
        ("Acceptance", claim_rows(document)),
    )
    return "\n\n".join(
        [heading(document), *(f"{title}\n\n{aligned(rows)}" for title, rows in tables)]
    )


def heading(document: dict) -> str:
    """What the numbers were measured with; the contestants; and mixed sources."""
    here = document["environment"]
    torch = here["torch"] or "not installed"
    lines = [
        f"{document['command']}",
        f"optax_muon {here['optax_muon']}, jax {here['jax']}, jaxlib {here['jaxlib']},"
        f" optax {here['optax']}, numpy {here['numpy']}, torch {torch},"
        f" Python {here['python']}",
        f"{here['device']} ({here['platform']}); {here['cpu']}, {here['cpu_count']}"
        " processors",
    ]
    lines += [
        f"  {one.name}: {one.about}" for one in peers.contestants(here["platform"])
    ]
    rows = [row for part in document["results"].values() for row in part.values()]
    sources = {row["source"] for row in rows}
    if len(sources) > 1:
        lines.append(
            f"CAUTION: rows of {len(sources)} states of optax_muon's files; --redo"
            " measures anew"
        )
    return "\n".join(lines)


def gemm_rows(planned: Plan, results: dict) -> list[tuple]:
    rows = [("dtype", "side", "median", "quartiles", "rounds")]
    for dtype in planned.dtypes:
        found = results.get("gemm", {}).get(dtype, {}).get("gemm_flops_per_second", {})
        for size in map(str, planned.sizes):
            rows.append((dtype, size, *spread(found.get(size), 1e-12)))
    return rows


def update_rows(planned: Plan, results: dict, here: dict) -> list[tuple]:
    """A line a contestant, and one for the limit; `standard` is the direct form's."""
    rows = [
        ("case", "contestant", "median", "quartiles", "rounds")
        + ("compared", "ratio", "quartiles", "standard TFLOP/s", "GEMM TFLOP/s")
    ]
    for case in planned.cases:
        row = results.get("update", {}).get(case.name, {})
        pairs = compared_names(here["platform"])
        rates = row.get("standard_flops_per_second", {})
        for one in peers.contestants(here["platform"]):
            ratio, rate = (
                row.get("ratios", {}).get(pairs[one.name]),
                rates.get(one.name),
            )
            rows.append(
                (
                    *(case.name, one.name),
                    *spread(row.get("seconds", {}).get(one.name), 1e3),
                    *(pairs[one.name], *spread(ratio)[:2]),
                    number(rate and rate["median"] * 1e-12),
                    "",
                )
            )
        gemms = row.get("gemm_flops_per_second", {}).items()
        rates = ", ".join(f"{size}: {number(r['median'] * 1e-12)}" for size, r in gemms)
        limit = spread(row.get("limit_seconds"), 1e3)
        rows.append((case.name, "limit", *limit, "", "", "", "", rates))
    return rows


def compared_names(platform: str) -> dict[str, str]:
    """The ratio each contestant's line shows: ours by the limit, rivals by ours."""
    return {
        name: ratio
        for mine, rivals in peers.matches(platform)
        for name, ratio in [
            (mine.name, f"{mine.name} / limit"),
            *((rival.name, f"{rival.name} / {mine.name}") for rival in rivals),
        ]
    }


def compile_rows(planned: Plan, results: dict, here: dict) -> list[tuple]:
    """A line a depth and contestant: the program, and what it cost to make."""
    rows = [
        ("case", "contestant", "trace and lower", "compile", "quartiles", "rounds")
        + ("products, StableHLO", "compiled", "StableHLO bytes")
    ]
    for case in planned.depths:
        row = results.get("compile", {}).get(case.name, {}).get("programs", {})
        for one in peers.jax_contestants(here["platform"]):
            found = row.get(one.name, {})
            rows.append(
                (
                    *(case.name, one.name, spread(found.get("lower_seconds"))[0]),
                    *spread(found.get("compile_seconds")),
                    *(str(found.get(key, "")) for key in COUNTS),
                )
            )
    return rows


COUNTS = ("stablehlo_dots", "compiled_dots", "stablehlo_bytes")


def memory_rows(planned: Plan, results: dict, here: dict) -> list[tuple]:
    rows = [("case", "contestant", "temporary", "largest stack", "ratio")]
    for case in planned.cases:
        row = results.get("memory", {}).get(case.name, {}).get("programs", {})
        for one in peers.jax_contestants(here["platform"]):
            found = row.get(one.name, {})
            numbers = [found.get(key) for key in ("temp_bytes", "largest_stack_bytes")]
            texts = [MISSING if n is None else f"{n:,}" for n in numbers]
            ratio = number(found.get("temp / largest stack"))
            rows.append((case.name, one.name, *texts, ratio))
    return rows


def claim_rows(document: dict) -> list[tuple]:
    """Every acceptance line with its bound and verdict; judged by the medians."""
    rows = [("claim", "measured", "bound", "verdict")]
    for claim in claims(document):
        bound = f"{'>=' if claim.at_least else '<='} {claim.bound:g}"
        rows.append((claim.what, number(claim.measured), bound, claim.verdict))
    return rows


def markdown(document: dict) -> str:
    """The README's tables: updates by us and by the peers in our dtype, and memory."""
    here = document["environment"]
    cases = plan(here["platform"], smoke=document["smoke"]).cases
    tables = []
    for mine, rivals in peers.matches(here["platform"]):
        peer = next(one for one in rivals if isinstance(one, peers.JaxContestant))
        ratios = [f"{one.name} / {mine.name}" for one in rivals if one.comparable]
        ratios.append(f"{mine.name} / limit")
        header = ("matrices of", f"{mine.name}, ms", *ratios, "memory / optax's")
        rows = [header, ("---",) * len(header)]
        rows += [
            markdown_row(case, mine, peer, ratios, document["results"])
            for case in cases
        ]
        tables.append("\n".join(f"| {' | '.join(cells)} |" for cells in rows))
    return "\n\n".join(tables)


def markdown_row(
    case: Case,
    mine: peers.JaxContestant,
    peer: peers.JaxContestant,
    ratios: list[str],
    results: dict,
) -> tuple[str, ...]:
    """Our time, the ratios, and our temporary memory by the peer's."""
    update = results.get("update", {}).get(case.name, {})
    memory = results.get("memory", {}).get(case.name, {}).get("programs", {})
    temp = [memory.get(one.name, {}).get("temp_bytes") for one in (mine, peer)]
    return (
        case.name.replace("_", " "),
        spread(update.get("seconds", {}).get(mine.name), 1e3)[0],
        *(spread(update.get("ratios", {}).get(ratio))[0] for ratio in ratios),
        number(divided(*temp)) or MISSING,
    )


def spread(found: dict | None, unit: float = 1.0) -> tuple[str, str, str]:
    """Median, quartiles and count of a summary, as text."""
    if found is None:
        return MISSING, "", ""
    low, high = (number(value * unit) for value in found["quartiles"])
    return number(found["median"] * unit), f"{low} to {high}", str(found["count"])


def number(value: float | None) -> str:
    """Three significant digits, and no exponent for what has a few places."""
    if value is None:
        return ""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def aligned(rows: Iterable[tuple]) -> str:
    """Columns of a common width, the first row underlined."""
    first, *rest = rows
    lines = [first, tuple("-" * len(cell) for cell in first), *rest]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
