"""CUDA graphs of calls, timed by the device's clock in turns; on the CPU, for a rehearsal, the calls themselves."""

import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.timing import quartiles

Work = Callable[[int], object]
"""One call on input set i."""


def captured(work: Work, sets: int, device: str) -> Callable[[], None]:
    """A CUDA graph of one call for each input set; call it to replay. On the CPU it makes the calls.

    Raises:
        RuntimeError: the calls do something that cannot be captured.
    """
    if device == "cpu":

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
