"""Coefficient tables of the Newton-Schulz iteration, each with its source.

An iteration of `steps` steps takes the first `steps` rows (a, b, c) of its table; past
the last row, the last row repeats. A table is here only if `check_rows` accepts it for
any number of steps.
"""

import math
import types
from collections.abc import Mapping
from typing import Any

from optax_muon._polynomials import CoefficientTable, Row, deflate

_JORDAN: Row = (3.4445, -4.7750, 2.0315)

_POLAR_EXPRESS: tuple[Row, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)

_POLAR_EXPRESS_MODDED: tuple[Row, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

_YOU_JIACHENG: tuple[Row, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

_MODULA_TIMES_1024: tuple[Row, ...] = (
    (3955, -8306, 5008),
    (3735, -6681, 3463),
    (3799, -6499, 3211),
    (4019, -6385, 2906),
    (2677, -3029, 1162),
    (2172, -1833, 682),
)


def _with_safety(rows: tuple[Row, ...], safety: float) -> tuple[Row, ...]:
    """Rows of p(x / safety) for all but the last row, which is the limit's own.

    Amsel et al. apply it in their code: rounding may push a singular value past 1,
    where an unguarded minimax polynomial explodes.
    """
    *head, limit = rows
    return (*(deflate(row, safety) for row in head), limit)


COEFFICIENTS: Mapping[str, CoefficientTable] = types.MappingProxyType(
    {
        "polar_express": CoefficientTable(
            rows=_with_safety(_POLAR_EXPRESS, 1.05),
            steps=5,
            source="Amsel et al. 2025, arXiv 2505.16932, appendix A (l = 1e-3), with "
            "the safety factor 1.05 where the paper's code has 1.01: room for "
            "rounding in 16 bits. It costs a smallest singular value of .729 instead "
            "of .846 after five steps for inputs in [1e-3, 1]",
        ),
        "polar_express_modded": CoefficientTable(
            # Its authors divide by ||X||_F * 1.02; here the first row does.
            rows=(deflate(_POLAR_EXPRESS_MODDED[0], 1.02), *_POLAR_EXPRESS_MODDED[1:]),
            steps=5,
            source="modded-nanogpt, train_gpt.py: Polar Express with cushion .02 and "
            "safety 1.02; its normaliser 1.02 ||X||_F is folded into the first row",
        ),
        "keller_jordan": CoefficientTable(
            rows=(_JORDAN,),
            steps=5,
            source="K. Jordan, muon.py, 2024; does not converge to 1 by design: "
            "singular values land in about [0.68, 1.20]",
        ),
        "you_jiacheng": CoefficientTable(
            rows=_YOU_JIACHENG,
            steps=5,
            source="You Jiacheng's schedule of five steps; optax calls it 'dion'",
        ),
        "modula": CoefficientTable(
            rows=tuple(
                (a / 1024, b / 1024, c / 1024) for a, b, c in _MODULA_TIMES_1024
            ),
            steps=6,
            source="J. Bernstein's modula, You Jiacheng's six steps over 1024",
        ),
        "deepseek_v4": CoefficientTable(
            rows=(_JORDAN,) * 8 + ((2.0, -1.5, 0.5),) * 2,
            steps=10,
            source="DeepSeek-V4: eight steps of keller_jordan, two of (2, -1.5, 0.5)",
        ),
        "cubic": CoefficientTable(
            rows=((1.5, -0.5, 0.0),),
            steps=5,
            source="classical Newton-Schulz, X (3 I - X^T X) / 2",
        ),
        "quintic": CoefficientTable(
            rows=((1.875, -1.25, 0.375),),
            steps=5,
            source="classical Newton-Schulz of degree 5 (Taylor coefficients)",
        ),
        "quintic_sqrt_half": CoefficientTable(
            rows=((1.875, -2.5, 1.5),),
            steps=8,
            source="'quintic' of sqrt(2) x, over sqrt(2): singular values tend to "
            "1 / sqrt(2)",
        ),
    }
)

_AOL = (
    "the tables made for AOL preconditioning (Turbo-Muon, arXiv 2512.04632) turn the "
    "sign of the leading singular direction once its normalised singular value reaches "
    "0.884, as in a gradient near rank one, and the row scaling they go with changes "
    "the polar factor itself"
)
# Tables one may look for: their names elsewhere, and why they are not offered.
_REFUSED: Mapping[str, str] = {
    "aol": _AOL,
    "turbo_muon": _AOL,
    "cans": "its tables (arXiv 2506.10935) leave the safe range for singular values "
    "above 1.00001 (five quintics) or 1.0035 (five cubics), and rounding alone may "
    "reach 1 + 2^-8; polar_express_coefficients(5, cushion=0.0) gives the same "
    "quintics with a safety factor",
}


def as_table(rows: object) -> CoefficientTable:
    """A name, a table, or rows of three numbers as a `CoefficientTable`.

    Raises:
      ValueError: unknown or refused name, no rows, rows that are not three finite
        numbers.
    """
    if isinstance(rows, CoefficientTable):
        return rows
    if isinstance(rows, str):
        return _named(rows)
    checked = _checked_rows(rows)
    return CoefficientTable(rows=checked, steps=len(checked))


def _named(name: str) -> CoefficientTable:
    if name in COEFFICIENTS:
        return COEFFICIENTS[name]
    known = _REFUSED.get(name)
    reason = f"is not offered: {known}" if known else "is no table of optax_muon"
    raise ValueError(
        f"coefficients={name!r} {reason}; valid names: {', '.join(COEFFICIENTS)}. A "
        "table of your own is a sequence of rows (a, b, c)."
    )


def _checked_rows(rows: Any) -> tuple[Row, ...]:
    try:
        found = tuple((float(a), float(b), float(c)) for a, b, c in rows)
    except (TypeError, ValueError):  # no sequence, no triple, or no numbers
        found = ()
    if not found:
        raise ValueError(
            f"coefficients={rows!r} is no table: pass a name or a non-empty sequence "
            "of rows (a, b, c), one a step, for a x + b x^3 + c x^5."
        )
    bad = [row for row in found if not all(map(math.isfinite, row))]
    if bad:
        raise ValueError(f"coefficients has rows that are not finite: {bad}.")
    return found
