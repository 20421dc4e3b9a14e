"""The acceptance lines: what is claimed of speed, programs and memory, with its bound.

Every line is printed, passed or failed or not measured: none can be left out.
"""

import dataclasses
import math

import peers
from shapes import Case, Plan, plan

PEER_BOUND = {"cpu": 2.2, "accelerator": 2.0}  # times the peer's speed, where headline
LIMIT_BOUND = 1.2  # times the limit's time, on the headline cases
COMPILE_BOUND = 1.5  # compile time of the deepest model by the shallowest
MEMORY_BOUND = 4  # temporary memory by the largest stack


@dataclasses.dataclass(frozen=True)
class Claim:
    """A measured number and the bound it is held against; None: not measured."""

    what: str
    measured: float | None
    bound: float
    at_least: bool

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        slack = self.measured - self.bound
        return "pass" if (slack if self.at_least else -slack) >= 0 else "FAIL"


def claims(document: dict) -> list[Claim]:
    """All claims for the platform and plan of a document."""
    platform = document["environment"]["platform"]
    planned = plan(platform, smoke=document["smoke"])
    results = document["results"]
    return [
        *(
            claim
            for case in planned.cases
            for claim in update_claims(case, _row(results, "update", case), platform)
        ),
        *compile_claims(planned, results, platform),
        *(
            claim
            for case in planned.cases
            for claim in memory_claims(case, _row(results, "memory", case), platform)
        ),
    ]


def update_claims(case: Case, row: dict, platform: str) -> list[Claim]:
    """No rival is faster; headline cases say by how much, and how near the limit."""
    found = []
    kind = "cpu" if platform == "cpu" else "accelerator"
    headline = case.headline == kind
    for mine, rivals in peers.matches(platform):
        for rival in rivals:
            bounded = headline and isinstance(rival, peers.JaxContestant)
            bound = PEER_BOUND[kind] if bounded else 1.0
            found.append((f"{rival.name} / {mine.name}", bound, True))
        if headline and kind == "cpu":
            found.append((f"{mine.name} / limit", LIMIT_BOUND, False))
        if case.wide and kind == "accelerator":
            found.append((f"standard-form rate of {mine.name} / GEMM", 1.0, True))
    return [
        Claim(
            f"update {case.name}: {ratio}",
            _get(row, "ratios", ratio, "median"),
            bound,
            at_least,
        )
        for ratio, bound, at_least in found
    ]


def compile_claims(planned: Plan, results: dict, platform: str) -> list[Claim]:
    """From the shallowest model to the deepest: time within a bound, products equal."""
    first, last = planned.depths[0], planned.depths[-1]
    rows = [_row(results, "compile", case) for case in (first, last)]
    kinds = (
        (("compile_seconds", "median"), "XLA's compile time", COMPILE_BOUND),
        (("total_seconds", "median"), "trace, lower and compile", COMPILE_BOUND),
        (("stablehlo_dots",), "products in StableHLO", 1.0),
        (("compiled_dots",), "products in the compiled program", 1.0),
    )
    return [
        Claim(
            f"compile {mine.name}: {about}, {last.name} / {first.name}",
            divided(*(_get(row, "programs", mine.name, *path) for row in rows[::-1])),
            bound,
            at_least=False,
        )
        for mine, _ in peers.matches(platform)
        for path, about, bound in kinds
    ]


def memory_claims(case: Case, row: dict, platform: str) -> list[Claim]:
    """Temporary memory, by the largest stack and by the peer's."""
    found = []
    for mine, rival in peers.jax_matches(platform):
        temp, theirs = (
            _get(row, "programs", one.name, "temp_bytes") for one in (mine, rival)
        )
        stack = _get(row, "programs", mine.name, "largest_stack_bytes")
        about = f"memory {case.name}: temporary of {mine.name} /"
        found += [
            Claim(f"{about} largest stack", divided(temp, stack), MEMORY_BOUND, False),
            Claim(f"{about} {rival.name}'s", divided(temp, theirs), 1.0, False),
        ]
    return found


def divided(above: float | None, below: float | None) -> float | None:
    """The ratio; None where either is not known."""
    if above is None or below is None:
        return None
    return above / below if below else math.inf if above else 1.0


def _row(results: dict, part: str, case: Case) -> dict:
    return results.get(part, {}).get(case.name, {})


def _get(row: dict, *path: str) -> float | None:
    """What lies at a path of keys, or None where it was not measured."""
    found = row
    for key in path:
        found = found.get(key)
        if found is None:
            return None
    return found
