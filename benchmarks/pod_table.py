"""The table of tpu_aot.py: a line for each compiled program, as Markdown."""


def table(document: dict, parts: tuple[str, ...] = ("targets", "scaling")) -> str:
    """Markdown: a line for each program of these parts."""
    head = (
        "program | chips | collectives | in loops | sent, MB | temporary, GB | "
        "TFLOP | compile, s | least ms: products, network, memory"
    )
    lines = [f"| {head} |", "|" + " --- |" * (head.count("|") + 1)]
    for part in parts:
        for case, row in document["results"].get(part, {}).items():
            if "refused" in row:
                why = f"refused: {row['refused']}"
                lines.append(f"| {case} | | {why} |" + " |" * (head.count("|") - 2))
                continue
            kinds = ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items())
            cells = (
                case,
                row["chips"],
                kinds or "none",
                row["in_loops"],
                f"{row['sent_bytes'] / 1e6:.3g}",
                f"{row['temp_bytes'] / 1e9:.3g}",
                f"{row['flops'] / 1e12:.3g}",
                row["compile_seconds"],
                ", ".join(f"{ms:.3g}" for ms in row["ms"].values()),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
