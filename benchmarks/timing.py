"""Interleaved timing: every contender once a round, medians and quartiles over the rounds, and the machine's name.

Times on a shared machine drift, so only ratios of figures from one run mean something.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from esbnn_core import __version__
from esbnn_core.kernels import cpu

RESULTS = Path(__file__).parent / "results"


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    least: float = 0.004,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Median and quartiles in microseconds of each contender, taking turns.

    Args:
        contenders: by name.
        rounds: turns of each.
        least: seconds that a turn should last, by repeating the call.
        clock: in seconds; time.process_time leaves out the time of the machine's other processes.
    """
    repeats = {}
    for name, call in contenders.items():
        call(), call()
        start = clock()
        call()
        repeats[name] = max(1, round(least / max(clock() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append((clock() - start) / repeats[name] * 1e6)
    return {name: quartiles(values, 1) for name, values in times.items()}


def quartiles(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median and quartiles by name, rounded."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, digits), "q1": round(low, digits), "q3": round(high, digits)}


def medians(us: Mapping[str, Mapping[str, float]], per: float, digits: int) -> str:
    """One line of the contenders' medians; `per` is microseconds of the unit."""
    return "  ".join(f"{name} {times['median'] / per:.{digits}f}" for name, times in us.items())


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures belong to."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {
        "cpu": name,
        "path": cpu.choose()[1].serving,
        "torch": torch.__version__,
        "esbnn": __version__,
        "python": platform.python_version(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def write(name: str, record: Mapping[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **record}, indent=1) + "\n")
    return path


def frozen(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The function compiled with frozen constants, torch's strongest CPU setting; compiled here, by two calls."""
    from torch._inductor import config

    torch._dynamo.reset()
    with config.patch(freezing=True):
        compiled = torch.compile(function)
        compiled(*arguments)
        compiled(*arguments)
    return lambda: compiled(*arguments)
