"""One row of a proxy comparison: a network trained several times at a size that finishes on a CPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esbnn_core.errors import InputError

# two-sided 95 % points of Student's t by degrees of freedom
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class ProxyRow:
    """One network of a proxy comparison, trained once for each seed.

    system: of the paper, or "ablation". variant: "base", "es", "rep" or what the ablation varies. metric: of `values`,
    one value a seed. epochs: of training; seconds: of all seeds together. ops: counted (BOPs / 64 + FLOPs). command:
    trains the first seed.
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
    def half_width(self) -> float:
        """Of the 95 % interval around the mean (Student's t); nan for one seed."""
        return half_width(self.values)


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean, Student's t; nan for one value.

    Raises:
        InputError: more than 10 values, beyond the table of quantiles.
    """
    number = len(values)
    if number < 2:
        return math.nan
    if number > len(_T95) + 1:
        raise InputError(f"{number} seeds were given, at most {len(_T95) + 1} were expected: take fewer")
    mean = sum(values) / number
    variance = sum((value - mean) ** 2 for value in values) / (number - 1)
    return _T95[number - 2] * math.sqrt(variance / number)
