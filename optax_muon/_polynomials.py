"""Coefficient tables of the Newton-Schulz iteration, each with its source.

One row (a, b, c) is one step of the odd quintic p(x) = a x + b x^3 + c x^5 acting on
the singular values. An iteration of `steps` steps takes the first `steps` rows; past
the last row, the last row repeats.
"""

import dataclasses
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Row = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class CoefficientTable:
    """Rows (a, b, c) of quintic polynomials, and how many steps to take by default.

    Attributes:
      rows: one (a, b, c) for each step; the last one repeats.
      steps: the number of steps when the user names none.
      source: where the numbers come from.
    """

    rows: tuple[Row, ...]
    steps: int
    source: str = "given by the user"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def schedule(self, steps: int | None = None) -> tuple[Row, ...]:
        """The (a, b, c) of each of `steps` steps (default: the table's own number).

        >>> COEFFICIENTS["cubic"].schedule(2)
        ((1.5, -0.5, 0.0), (1.5, -0.5, 0.0))
        """
        count = self.steps if steps is None else steps
        last = len(self.rows) - 1
        return tuple(self.rows[min(k, last)] for k in range(count))


def as_table(rows: object) -> CoefficientTable:
    """A name, a table, or rows of three numbers as a checked `CoefficientTable`.

    Raises:
      ValueError: unknown name, no rows, rows that are not three finite numbers.
    """
    if isinstance(rows, CoefficientTable):
        return rows
    if isinstance(rows, str):
        if rows not in COEFFICIENTS:
            names = ", ".join(COEFFICIENTS)
            raise ValueError(
                f"coefficients={rows!r} is no table of optax_muon; valid names: "
                f"{names}. A table of your own is a sequence of rows (a, b, c)."
            )
        return COEFFICIENTS[rows]
    checked = _checked_rows(rows)
    return CoefficientTable(rows=checked, steps=len(checked))


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


def _with_safety(rows: Iterable[Row], safety: float) -> tuple[Row, ...]:
    """Rows of p(x / safety) for all but the last row, which is the limit's own.

    Amsel et al. apply it in their code: rounding may push a singular value past 1,
    where an unguarded minimax polynomial explodes.
    """
    *head, last = rows
    return tuple((a / safety, b / safety**3, c / safety**5) for a, b, c in head) + (
        last,
    )


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

COEFFICIENTS: Mapping[str, CoefficientTable] = types.MappingProxyType(
    {
        "polar_express": CoefficientTable(
            rows=_with_safety(_POLAR_EXPRESS, 1.01),
            steps=5,
            source="Amsel et al. 2025, arXiv 2505.16932, appendix A (l = 1e-3), with "
            "the safety factor 1.01 of the paper's code",
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
    }
)
