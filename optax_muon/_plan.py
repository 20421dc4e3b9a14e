"""What `plan` finds: data, sums of it, and how they print and show in a notebook."""

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

from optax_muon._plan_rows import PlanBucket, PlanLeaf, bucket_table, leaf_table
from optax_muon._resolution import ADAM, MUON
from optax_muon._tables import amount


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decisions for a tree of parameters, and what a step of them costs.

    `print` it for tables; a notebook shows it as HTML. What XLA holds besides arguments
    and results it alone knows: `compiled.memory_analysis()` of a jitted step.

    Attributes:
      leaves: one for each leaf, in their order.
      buckets: one for each stack of matrices.
      platform: "cpu", "gpu" or "tpu", for which forms and FLOPs are.
      devices: of the mesh; 1 without `sharding`.
      training_flops: of one device in a forward and a backward pass, if these are
        shared evenly: 6 * Muon's parameters * tokens / devices, after Kaplan et al.,
        arXiv 2001.08361, section 2.1. None without `tokens`.
    """

    leaves: tuple[PlanLeaf, ...]
    buckets: tuple[PlanBucket, ...]
    platform: str
    devices: int = 1
    training_flops: float | None = None

    @property
    def flops(self) -> float | None:
        """Of Muon's matrix products on one device in a step, two for a multiply-add.

        All that Newton-Schulz multiplies is counted: padding to whole matrices for each
        device, and work that several devices repeat. Not counted is what is done entry
        by entry, such as momentum, norms, scale, decay and all of AdamW; nor parts that
        are added to the chain. None if a stack's orthogonalizer is not `NewtonSchulz`:
        its products are not known. Where a CPU skips blocks, an odd side counts as an
        even one, an error below 1e-6 of the sum.
        """
        counts = [bucket.flops for bucket in self.buckets]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def overhead(self) -> float | None:
        """`flops` / `training_flops`; None where either is not known.

        Of Muon as first published at most T m / B, with T steps of n x m matrices,
        m <= n, and B tokens: Jordan et al., Muon, 2024, "Runtime analysis".
        """
        if self.flops is None or self.training_flops is None:
            return None
        return self.flops / self.training_flops if self.training_flops else 0.0

    @property
    def bytes_sent(self) -> float:
        """By one device in a step, for all stacks."""
        return sum(bucket.bytes_sent for bucket in self.buckets)

    @property
    def state_bytes(self) -> int:
        """Of momentum and AdamW's moments on one device.

        Without the step counts, 4 bytes each, and the state of added parts.
        """
        return sum(leaf.state_bytes for leaf in self.leaves)

    @property
    def total_state_bytes(self) -> int:
        """Of the same arrays whole, copies on other devices not counted."""
        return sum(leaf.total_state_bytes for leaf in self.leaves)

    def as_dict(self) -> dict[str, Any]:
        """All of it as dicts, strings and numbers, such as `json.dumps` takes.

        `pandas.DataFrame(plan.as_dict()["leaves"])` is the table of leaves.
        """
        sums = ("flops", "overhead", "bytes_sent", "state_bytes", "total_state_bytes")
        return {
            "platform": self.platform,
            "devices": self.devices,
            "training_flops": self.training_flops,
            **{name: getattr(self, name) for name in sums},
            "leaves": [leaf.as_dict() for leaf in self.leaves],
            "buckets": [bucket.as_dict() for bucket in self.buckets],
        }

    def __str__(self) -> str:
        head, *rest = self._summary()
        lines = [leaf_table(self.leaves).text(), head, *(f"  {line}" for line in rest)]
        if self.buckets:
            lines += ["", bucket_table(self.buckets).text(), self._step()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        lines = "<br>\n".join(map(html.escape, self._summary()))
        text = f"{leaf_table(self.leaves).html()}<p>{lines}</p>\n"
        if self.buckets:
            step = html.escape(self._step())
            text += f"{bucket_table(self.buckets).html()}<p>{step}</p>\n"
        return f"<div>\n{text}</div>"

    def _summary(self) -> list[str]:
        """A line for all leaves, and one for those of each optimizer."""
        total = sum(math.prod(leaf.shape) for leaf in self.leaves)
        lines = [f"{_leaves(len(self.leaves))}, {total:,} parameters"]
        for name in (MUON, ADAM):
            mine = [leaf for leaf in self.leaves if leaf.optimizer == name]
            share = sum(leaf.share for leaf in mine)
            state = self._state(mine)
            lines.append(
                f"{name}: {_leaves(len(mine))}, {share:.1%} of the parameters, {state}"
            )
        return lines

    def _state(self, leaves: Sequence[PlanLeaf]) -> str:
        total, here = (
            sum(getattr(leaf, name) for leaf in leaves)
            for name in ("total_state_bytes", "state_bytes")
        )
        text = f"{amount(total, 'B')} of state"
        return text if self.devices == 1 else f"{text}, {amount(here, 'B')} a device"

    def _step(self) -> str:
        """What a step of all stacks takes."""
        if self.devices == 1:
            return f"a step: {self._products()}"
        sent = f"{amount(self.bytes_sent, 'B')} sent"
        return f"a step, on each of {self.devices} devices: {self._products()}; {sent}"

    def _products(self) -> str:
        text = "products that are not counted"
        if self.flops is not None:
            text = f"{amount(self.flops, 'FLOP')} of products"
        if self.training_flops is None:
            return text
        share = "beside" if self.overhead is None else f"{_percent(self.overhead)} of"
        training = amount(self.training_flops, "FLOP")
        return f"{text}, {share} about {training} in forward and backward"


def _leaves(count: int) -> str:
    return f"{count} leaf" if count == 1 else f"{count} leaves"


def _percent(ratio: float) -> str:
    """Two digits of a small ratio, all before the point of a large one."""
    percent = 100 * ratio
    return f"{percent:.2g}%" if percent < 10 else f"{percent:,.0f}%"
