"""What is timed: whole updates beside the machine's GEMM, and GEMM alone."""

import peers
from limits import Gemm, limit_seconds, sizes_of, standard_flops
from shapes import Case, Plan
from timing import digits, interleave, ratios, summary


def measure_update(case: Case, plan: Plan, platform: str, rounds: int) -> dict:
    """Every contestant, and the GEMMs of the case's sides, in the same rounds.

    Returns:
      The samples, in seconds an update and in FLOP/s; their summaries; the limit; and
      the ratios, each taken round by round.
    """
    gradients = peers.gradients(case)
    runs = {
        one.name: one.prepare(case, gradients)
        for one in peers.contestants(platform)
        if one.available()
    }
    dtype = plan.dtypes[0]
    gemms = {
        f"gemm_{size}": gemm(size, dtype, plan) for size in sizes_of(case, plan.sizes)
    }
    samples = interleave(runs | gemms, rounds, plan.sample_seconds)

    seconds = {name: samples[name] for name in runs}
    rates = {
        gemm.size: [gemm.flops / sample for sample in samples[name]]
        for name, gemm in gemms.items()
    }
    limits = [
        limit_seconds(case, peers.STEPS, dtype, dict(zip(rates, row, strict=True)))
        for row in zip(*rates.values(), strict=True)
    ]
    flops = standard_flops(case, peers.STEPS)
    peaks = [max(row) for row in zip(*rates.values(), strict=True)]
    return {
        "leaves": len(case.leaves),
        "parameters": case.parameters,
        "rounds": rounds,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "limit_seconds": summary(limits),
        "ratios": compared(seconds, limits, flops, peaks, platform),
        "standard_flops": flops,
        "standard_flops_per_second": {
            name: summary([flops / value for value in values])
            for name, values in seconds.items()
        },
        "gemm_flops_per_second": {
            str(size): summary(values) for size, values in rates.items()
        },
        "samples": rounded(samples),
    }


def compared(
    seconds: dict[str, list[float]],
    limits: list[float],
    flops: float,
    peaks: list[float],
    platform: str,
) -> dict[str, dict]:
    """Every rival by ours, ours by the limit, and our rate by the fastest GEMM's."""
    found = {}
    for mine, rivals in peers.matches(platform):
        for rival in rivals:
            if rival.name in seconds:
                found[f"{rival.name} / {mine.name}"] = ratios(
                    seconds[rival.name], seconds[mine.name]
                )
        found[f"{mine.name} / limit"] = ratios(seconds[mine.name], limits)
        found[f"standard-form rate of {mine.name} / GEMM"] = ratios(
            [flops / second for second in seconds[mine.name]], peaks
        )
    return found


def measure_gemm(dtype: str, plan: Plan, rounds: int) -> dict:
    """The rates of square products of every size, in the same rounds."""
    gemms = {str(size): gemm(size, dtype, plan) for size in plan.sizes}
    samples = interleave(gemms, rounds, plan.sample_seconds)
    return {
        "rounds": rounds,
        "gemm_flops_per_second": {
            name: summary([gemms[name].flops / sample for sample in row])
            for name, row in samples.items()
        },
        "samples": rounded(samples),
    }


def rounded(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [digits(value) for value in row] for name, row in samples.items()}


def gemm(size: int, dtype: str, plan: Plan) -> Gemm:
    return Gemm(size, dtype, plan.gemm_flops, plan.gemm_elements)
