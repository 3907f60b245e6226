"""Programs of the C library: where their buffers are, and what they do with the addresses of a call."""

import threading

import pytest
import torch

from esbnn_core.kernels import cpu
from esbnn_core.kernels.cpu.program import LINE, Buffer, Given, Recorder, Step
from esbnn_core.kernels.cpu.real import Window
from esbnn_core.kernels.cpu.real_steps import Map, Mean, record_mean
from tests.helpers import paths

if paths.usable() == ["naive"]:
    pytest.skip("no native library", allow_module_level=True)


def used(steps: list[tuple[Buffer, ...]]) -> tuple[dict[Buffer, int], int]:
    recorder = Recorder()
    for places in steps:
        recorder.add(Step.CLEAR, (0,), places)
    return recorder._offsets({})


def test_buffers_share_memory_only_when_they_are_not_in_use_together() -> None:
    a, b, c, d, e = (Buffer(size) for size in (1000, 64, 500, 900, 1))
    steps: list[tuple[Buffer, ...]] = [(a,), (a, b), (b, c), (c, d), (d, e), (b,)]
    offsets, end = used(steps)
    times = {buffer: [n for n, places in enumerate(steps) if buffer in places] for buffer in (a, b, c, d, e)}
    for one in offsets:
        assert offsets[one] % LINE == 0 and offsets[one] + one.size <= end
        for other in offsets:
            together = times[one][0] <= times[other][-1] and times[other][0] <= times[one][-1]
            apart = offsets[one] + one.size <= offsets[other] or offsets[other] + other.size <= offsets[one]
            assert one is other or apart or not together
    assert offsets[c] == offsets[a] == 0 and end < 1000 + 64 + 500 + 900
    assert used([]) == ({}, 0)


@pytest.mark.parametrize("threads", [1, 3])
def test_steps_run_one_after_the_other_on_the_addresses_of_a_call(threads: int) -> None:
    library = cpu.choose()[0]
    assert library is not None
    recorder = Recorder()
    first = record_mean(recorder, Map(Given(0), (2, 20, 13, 9)), Mean((2, 2), (2, 2), True))
    assert first is not None
    second = record_mean(recorder, first, Mean((3, 2), (1, 2), False))
    assert second is not None and isinstance(second.place, Buffer) and isinstance(first.place, Buffer)
    mark = Buffer(8)
    recorder.add(Step.CLEAR, (5,), (mark,))
    program = recorder.finish(library, threads, 3, {second.place: Given(1), mark: Given(2)})
    assert program.workspace == -(-first.place.size // LINE) * LINE
    generator = torch.Generator().manual_seed(0)

    def check(x: torch.Tensor) -> None:
        y = torch.empty(second.shape, memory_format=torch.channels_last)
        marks = torch.full((8,), 7, dtype=torch.uint8)
        program.run(x.data_ptr(), y.data_ptr(), marks.data_ptr())
        want = torch.nn.functional.avg_pool2d(x, 2, 2, ceil_mode=True)
        same.append(torch.equal(y, torch.nn.functional.avg_pool2d(want, (3, 2), (1, 2))))
        same.append(marks.tolist() == [0] * 5 + [7] * 3)

    same: list[bool] = []
    inputs = [torch.randn((2, 20, 13, 9), generator=generator).to(memory_format=torch.channels_last) for _ in range(8)]
    workers = [threading.Thread(target=lambda: [check(x) for x in inputs]) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert same == [True] * 48


def test_the_sizes_of_windows_are_torchs() -> None:
    for size in range(1, 9):
        for kernel in range(1, size + 1):
            for stride in range(1, 5):
                x = torch.zeros(1, 1, size, 9)
                for ceil in (False, True):
                    want = torch.nn.functional.avg_pool2d(x, (kernel, 2), (stride, 3), 0, ceil).shape[2:]
                    assert Mean((kernel, 2), (stride, 3), ceil).output(size, 9) == tuple(want)
                want = torch.nn.functional.max_pool2d(x, (kernel, 2), (stride, 3)).shape[2:]
                assert Window((kernel, 2), (stride, 3), (0, 0)).output(size, 9) == tuple(want)
