"""The result of one network of a proxy comparison: several trainings at a size that finishes on a CPU."""

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
class ProxyResult:
    """One network of a proxy comparison, trained once for each seed.

    Attributes:
        system: of the paper, or "ablation".
        variant: "base", "es", "rep" or what the ablation varies.
        network: its name.
        options: of the network.
        dataset: that it was trained on.
        metric: of `values`.
        seeds: in rising order.
        values: one a seed.
        ops: counted (BOPs / 64 + FLOPs).
        params: counted.
        epochs: of training.
        seconds: of all seeds together; time before an interruption is not counted.
        command: trains the first seed.
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
                f"the proxy result {self.system} {self.variant} must have one value a seed, got {len(self.values)} "
                f"values for {len(self.seeds)} seeds: train it again"
            )

    @property
    def mean(self) -> float:
        """Of the values."""
        return sum(self.values) / len(self.values)

    @property
    def metric_name(self) -> str:
        """The metric, with its direction if lower is better."""
        return f"{self.metric} (lower is better)" if self.metric == "loss" else self.metric

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval of the mean (Student's t); nan for one seed."""
        return compute_half_width(self.values)

    def differences(self, other: "ProxyResult") -> list[float]:
        """Its values less those of another result, of the seeds that both have."""
        by_seed = dict(zip(other.seeds, other.values, strict=True))
        pairs = zip(self.seeds, self.values, strict=True)
        return [value - by_seed[seed] for seed, value in pairs if seed in by_seed]


def find_base(result: ProxyResult, results: Sequence[ProxyResult]) -> ProxyResult | None:
    """The base of its system that was trained as long; None for a base itself and without a base.

    The base is the variant "base", in the ablation "tau=1 g=1"; "base WORDS" is the base of the variants that end in
    these words, if it comes first.

    Args:
        result: of any variant.
        results: all of the comparison.
    """
    if _base_suffix(result) is not None:
        return None
    kind = (result.system, result.dataset, result.metric, result.epochs)
    for base in results:
        suffix = _base_suffix(base)
        if suffix is None or not result.variant.endswith(suffix):
            continue
        if (base.system, base.dataset, base.metric, base.epochs) == kind:
            return base
    return None


def compare_with_base(result: ProxyResult, results: Sequence[ProxyResult]) -> tuple[float, float] | None:
    """The difference between a result and its base, seed by seed.

    One seed draws the same images in the same order for both networks, so each pair shares that noise.

    Args:
        result: of any variant.
        results: all of the comparison.

    Returns:
        The mean difference and half the width of its 95 % interval (nan for one seed), in the metric's own units and
        sign. None without a base (find_base) or without a common seed.
    """
    base = find_base(result, results)
    differences = result.differences(base) if base else []
    return (sum(differences) / len(differences), compute_half_width(differences)) if differences else None


def _base_suffix(result: ProxyResult) -> str | None:
    """The end of the names of a base's variants, "" for all of them; None for a result that is not a base."""
    if result.variant == "tau=1 g=1":
        return ""
    return result.variant.removeprefix("base") if result.variant.split()[0] == "base" else None


def compute_half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean, Student's t; nan for one value.

    Above 31 values the quantile is that of 31, which is less than 5 % too wide.
    """
    number = len(values)
    if number < 2:
        return math.nan
    mean = sum(values) / number
    variance = sum((value - mean) ** 2 for value in values) / (number - 1)
    return _T95[min(number - 2, len(_T95) - 1)] * math.sqrt(variance / number)
