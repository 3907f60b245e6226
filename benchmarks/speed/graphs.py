"""CUDA graphs of calls, timed by the device's clock in turns; on the CPU, for a rehearsal, the calls themselves.

The rehearsal of a capture looks for what a capture would refuse: values that the host reads, and tensors that are made
on the host.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import quartiles

Work = Callable[[int], object]
"""One call on input set i."""


REFUSED = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal", "is_nonzero")
"""Operators of torch whose result or input is the host's: .item(), torch.tensor(...), bool(x)."""
INDEXING = ("index", "index_put", "index_put_")
"""Operators that wait for the device where an index is a mask."""


def masked(indices: Sequence[torch.Tensor | None]) -> bool:
    """Whether one of the indices is a mask."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


class LikeACapture(TorchDispatchMode):
    """Refuses, on the CPU, the operators that a capture on a GPU would; with RuntimeError, as the capture does."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """torch's hook for every operator."""
        name = func._schema.name.split("::")[-1]
        if name in REFUSED or (name in INDEXING and masked(args[1])):
            raise RuntimeError(f"{name} waits for the device or copies from the host, no CUDA graph can hold it")
        return func(*args, **(kwargs or {}))


def captured(work: Work, sets: int, device: str) -> Callable[[], None]:
    """A CUDA graph of one call for each input set; call it to replay. On the CPU it makes the calls.

    Raises:
        RuntimeError: the calls do something that cannot be captured.
    """
    if device == "cpu":
        work(0)
        with LikeACapture():
            work(0)

        def repeat() -> None:
            for i in range(sets):
                work(i)

        return repeat
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(min(sets, 3)):
            work(i)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # a separate output for each input: one that is overwritten might never leave the cache
        kept = [work(i) for i in range(sets)]

    def replay() -> None:
        assert kept
        graph.replay()

    return replay


def spent(replay: Callable[[], None], repeats: int, device: str) -> float:
    """Microseconds of some replays, by the device's clock."""
    if device == "cpu":
        begin = time.perf_counter()
        for _ in range(repeats):
            replay()
        return (time.perf_counter() - begin) * 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000


def time_in_turns(
    replays: Mapping[str, Callable[[], None]], sets: int, rounds: int, device: str
) -> dict[str, dict[str, float]]:
    """Microseconds of one call of each contender: median and quartiles over rounds in which all take turns.

    Args:
        replays: by name, each of `sets` calls (see captured).
        sets: calls of one replay.
        rounds: turns of each, at least 2.
        device: "cuda" or "cpu".
    """
    repeats = {}
    for name, replay in replays.items():
        replay()
        repeats[name] = max(1, round(3000 / (spent(replay, 1, device) + 1)))  # a turn of about 3 ms
    times: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(rounds):
        for name, replay in replays.items():
            times[name].append(spent(replay, repeats[name], device) / repeats[name] / sets)
    return {name: quartiles(values, 2) for name, values in times.items()}
