"""One row of a proxy comparison: a network trained several times at a size that finishes on a CPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esbnn_core.errors import InputError

# two-sided 95 % points of Student's t by degrees of freedom
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class ProxyRow:
    """One network of a proxy comparison, trained once for each seed.

    system: of the paper, or "ablation". variant: "base", "es", "rep" or what the ablation varies. metric: of `values`,
    one value a seed. epochs: of training; seconds: of all seeds together, without what went before an interruption.
    ops: counted (BOPs / 64 + FLOPs). command: trains the first seed.
    """

    system: str
    variant: str
    network: str
    options: dict[str, Any]
    dataset: str
    metric: str
    seeds: list[int]
    values: list[float]
    ops: float
    params: int
    epochs: float
    seconds: float
    command: str

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.seeds):
            raise InputError(
                f"the proxy row {self.system} {self.variant} has {len(self.values)} values for {len(self.seeds)} "
                f"seeds: one value a seed was expected, train it anew"
            )

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def metric_name(self) -> str:
        """With its direction where that is the other one."""
        return f"{self.metric} (lower is better)" if self.metric == "loss" else self.metric

    @property
    def half_width(self) -> float:
        """Of the 95 % interval around the mean (Student's t); nan for one seed."""
        return half_width(self.values)


def against_base(row: ProxyRow, rows: Sequence[ProxyRow]) -> tuple[float, float] | None:
    """How far a row is from the base of its system that was trained as long, seed by seed.

    The base is the variant "base", for the ablation "tau=1 g=1"; "base WORDS" is the base of the variants that end in
    these words. One seed draws the same images in the same order for both, so the differences of the pairs are what
    varies.

    Returns: the mean difference and half the width of its 95 % interval (nan for one seed), in the metric's own units
    and sign; None for a base itself, without a base, or where the two have no seed in common.
    """
    if _base_words(row) is not None:
        return None
    kind = (row.system, row.dataset, row.metric, row.epochs)
    for base in rows:
        words = _base_words(base)
        if words is None or not row.variant.endswith(words):
            continue
        if (base.system, base.dataset, base.metric, base.epochs) == kind:
            found = dict(zip(base.seeds, base.values, strict=True))
            pairs = zip(row.seeds, row.values, strict=True)
            apart = [value - found[seed] for seed, value in pairs if seed in found]
            return (sum(apart) / len(apart), half_width(apart)) if apart else None
    return None


def _base_words(row: ProxyRow) -> str | None:
    """What the names of the variants behind a base end in, "" for all; None for a row that is no base."""
    if row.variant == "tau=1 g=1":
        return ""
    return row.variant.removeprefix("base") if row.variant.split()[0] == "base" else None


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean, Student's t; nan for one value.

    Beyond 31 values the quantile is that of 31, which is wider by less than 5 %.
    """
    number = len(values)
    if number < 2:
        return math.nan
    mean = sum(values) / number
    variance = sum((value - mean) ** 2 for value in values) / (number - 1)
    return _T95[min(number - 2, len(_T95) - 1)] * math.sqrt(variance / number)
