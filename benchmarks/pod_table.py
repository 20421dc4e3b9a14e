"""The tables of tpu_aot.py: a line for each compiled program, as Markdown."""

LEAST = "least ms: products, network, memory"


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
    head = [
        "program",
        "chips",
        "collectives",
        "in loops",
        "beside products",
        "sent, MB",
        "temporary, GB",
        "program, MB",
        "TFLOP",
        "compile, s",
        LEAST,
    ]
    lines = []
    for case, row in rows.items():
        if "refused" in row:
            lines.append(_refused(case, row, head))
            continue
        lines.append(
            [
                case,
                row["chips"],
                _collectives(row),
                row["in_loops"],
                row["overlapped"],
                f"{row['sent_bytes'] / 1e6:.3g}",
                f"{row['temp_bytes'] / 1e9:.3g}",
                f"{row['code_bytes'] / 1e6:.3g}",
                f"{row['flops'] / 1e12:.3g}",
                row["compile_seconds"],
                _milliseconds(row),
            ]
        )
    return _markdown(head, lines)


def shares(rows: dict[str, dict]) -> str:
    """Our programs' FLOPs and bytes beside an even share of what there is.

    All matrices' FLOPs by the number of devices; every matrix entry there and back in
    bfloat16, by the number of devices.
    """
    head = [
        "program",
        "chips",
        "collectives",
        "TFLOP",
        "of an even share",
        "sent, MB",
        "of an even share",
        "temporary, GB",
        LEAST,
    ]
    lines = []
    for case, row in rows.items():
        if not case.endswith(" ours"):
            continue
        name = case.removesuffix(" ours")
        if "refused" in row:
            lines.append(_refused(name, row, head))
            continue
        lines.append(
            [
                name,
                row["chips"],
                _collectives(row),
                f"{row['flops'] / 1e12:.3g}",
                f"{row['flops'] / row['even_flops']:.2f}",
                f"{row['sent_bytes'] / 1e6:.3g}",
                f"{row['sent_bytes'] / row['even_sent_bytes']:.2f}",
                f"{row['temp_bytes'] / 1e9:.3g}",
                _milliseconds(row),
            ]
        )
    return _markdown(head, lines)


def _refused(case: str, row: dict, head: list[str]) -> list[str]:
    return [case, "", f"refused: {row['refused']}", *[""] * (len(head) - 3)]


def _collectives(row: dict) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items()) or "none"


def _milliseconds(row: dict) -> str:
    return ", ".join(f"{ms:.3g}" for ms in row["ms"].values())


def _markdown(head: list[str], lines: list[list]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(
        f"| {' | '.join(map(str, cells))} |" for cells in (head, rule, *lines)
    )


def verdicts(document: dict, bounds: dict[str, tuple[int, float, float | None]]) -> str:
    """What was aimed at, beside what was found: a line for each claim.

    Args:
      document: the results.
      bounds: of each target, the most all-to-alls, temporary gigabytes, and time to
        compile as a share of optax's, if there is a bound. Besides, a program of ours
        must have no other collectives, but for sums where devices share columns, and
        none in loops; at most the FLOPs and all-to-alls' bytes of whole matrices on
        their owners, padded as counts and chips force; and take no longer than those by
        the chip's rates.
    """
    rows = document["results"].get("targets", {})
    lines = []

    def claim(text: str, found: float, most: float) -> None:
        verdict = "pass" if found <= most else "FAIL"
        lines.append(f"{text}: {found:.3g}, at most {most:.3g}: {verdict}")

    for name, (moves, gigabytes, share) in bounds.items():
        row = rows.get(f"{name} ours", {"refused": "not compiled yet"})
        if "refused" in row:
            lines.append(f"{name}: {row['refused']}: FAIL")
            continue
        kinds = dict(row["collectives"])
        claim(f"{name}: all-to-alls", kinds.pop("all-to-all", 0), moves)
        if row["shares_columns"]:
            lines.append(f"{name}: sums: {kinds.pop('all-reduce', 0)}")
        claim(f"{name}: other collectives", sum(kinds.values()), 0)
        claim(f"{name}: collectives in loops", row["in_loops"], 0)
        claim(f"{name}: temporary GB", row["temp_bytes"] / 1e9, gigabytes)
        owners = row["flops"] / row["forced_flops"]
        claim(f"{name}: FLOPs / whole matrices, padded", owners, 1.05)
        owners = row["moved_bytes"] / row["forced_bytes"]
        claim(f"{name}: all-to-alls' bytes / whole matrices, padded", owners, 1.1)
        milliseconds = row["ms"]["products"] + row["ms"]["network"]
        claim(f"{name}: least ms / by owners", milliseconds / row["owners_ms"], 1.05)
        if share is None:
            continue
        peer = rows.get(f"{name} optax", {"refused": "not compiled yet"})
        if "refused" in peer:
            lines.append(f"{name}: optax: {peer['refused']}: FAIL")
            continue
        ratio = row["compile_seconds"] / peer["compile_seconds"]
        claim(f"{name}: compile time / optax's", ratio, share)
    return "\n".join(lines)
