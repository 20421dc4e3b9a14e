"""The tables of tpu_aot.py: a line for each compiled program, as Markdown."""

LEAST = "least ms: products, network, memory"


def programs(rows: dict[str, dict]) -> str:
    """What each program has and does, on one device."""
    head = [
        "program",
        "chips",
        "collectives",
        "in loops",
        "sent, MB",
        "temporary, GB",
        "TFLOP",
        "compile, s",
        LEAST,
    ]
    lines = []
    for case, row in rows.items():
        if "refused" in row:
            empty = [""] * (len(head) - 3)
            lines.append([case, "", f"refused: {row['refused']}", *empty])
            continue
        lines.append(
            [
                case,
                row["chips"],
                _collectives(row),
                row["in_loops"],
                f"{row['sent_bytes'] / 1e6:.3g}",
                f"{row['temp_bytes'] / 1e9:.3g}",
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
    lines = [
        [
            case.removesuffix(" ours"),
            row["chips"],
            _collectives(row),
            f"{row['flops'] / 1e12:.3g}",
            f"{row['flops'] / row['even_flops']:.2f}",
            f"{row['sent_bytes'] / 1e6:.3g}",
            f"{row['sent_bytes'] / row['even_sent_bytes']:.2f}",
            f"{row['temp_bytes'] / 1e9:.3g}",
            _milliseconds(row),
        ]
        for case, row in rows.items()
        if case.endswith(" ours")
    ]
    return _markdown(head, lines)


def _collectives(row: dict) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items()) or "none"


def _milliseconds(row: dict) -> str:
    return ", ".join(f"{ms:.3g}" for ms in row["ms"].values())


def _markdown(head: list[str], lines: list[list]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(
        f"| {' | '.join(map(str, cells))} |" for cells in (head, rule, *lines)
    )


def verdicts(document: dict, bounds: dict[str, tuple[int, float]]) -> str:
    """What was aimed at, beside what was found: a line for each claim.

    Args:
      document: the results.
      bounds: of each target, the most all-to-alls and temporary gigabytes. A program of
        ours should also compile in an eighth of the time of optax's, where that is
        there, and have nothing else in loops.
    """
    rows = document["results"].get("targets", {})
    lines = []

    def claim(text: str, found: float, most: float) -> None:
        verdict = "pass" if found <= most else "FAIL"
        lines.append(f"{text}: {found:.3g}, at most {most:.3g}: {verdict}")

    for name, (moves, gigabytes) in bounds.items():
        row = rows.get(f"{name} ours")
        if row is None:
            lines.append(f"{name}: not compiled")
            continue
        claim(f"{name}: all-to-alls", row["collectives"].get("all-to-all", 0), moves)
        claim(f"{name}: all-gathers", row["collectives"].get("all-gather", 0), 0)
        claim(f"{name}: collectives in loops", row["in_loops"], 0)
        claim(f"{name}: temporary GB", row["temp_bytes"] / 1e9, gigabytes)
        # Padding is in the plan's FLOPs and in padded bytes; sums of n x n matrices,
        # where devices share columns, are bytes apart.
        claim(f"{name}: FLOPs / planned", row["flops"] / row["planned_flops"], 1.05)
        moved = row["moved_bytes"] / row["padded_moved_bytes"]
        claim(f"{name}: all-to-alls' bytes / padded shards both ways", moved, 1.1)
        peer = rows.get(f"{name} optax")
        if peer is not None:
            ratio = row["compile_seconds"] / peer["compile_seconds"]
            claim(f"{name}: compile time / optax's", ratio, 1 / 8)
    return "\n".join(lines)
