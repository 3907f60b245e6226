"""One thread a test process and no search for garbage in what stays, the order of the files, what `make check` runs."""

import gc

import pytest

# what importing and collecting makes stays: to search it for garbage again and again is a third of the start
gc.disable()

LONG = [
    "tasks/super_resolution/test_command",
    "core/test_export",
    "core/test_models",
    "tasks/test_releases",
    "core/test_expand",
    "core/test_expand_layouts",
    "tasks/test_tables",
    "tasks/test_proxy",
    "core/test_neon",
    "test_docs",
    "core/test_golden",
    "tasks/detection/test_resume",
    "tasks/super_resolution/test_unet",
    "tasks/test_smoke",
    "tasks/detection/test_ssd_packed",
    "core/test_binaryvit",
    "core/test_foreign",
    "core/test_packing",
    "tasks/test_resident",
    "tasks/super_resolution/test_module",
    "core/test_native",
    "core/test_amx",
    "core/test_cuda_arithmetic",
    "tasks/test_two_steps",
    "core/test_trunks",
    "core/test_expand_tokens",
    "tasks/detection/test_weights",
    "tasks/test_cli",
    "core/test_attention",
    "tasks/detection/test_module",
    "core/test_counting",
    "core/test_cuda_compile",
    "core/test_console",
    "tasks/detection/test_faster_rcnn",
    "core/test_kernels_opcheck",
]
"""Files of the longest runs, longest first: the two processes of `make test` begin with them and end together."""


def pytest_unconfigure() -> None:
    """Let the interpreter's end find what was frozen: bindings report what outlives them."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, and mark as `quick` the last case of each test that is not `slow`.

    The last case, because lists of parameters begin with the plainest. Of a file of slow tests alone one is marked too:
    each file holds what its first sentence promises, and `make check` leaves none out.
    """
    # here, because the process that only hands out the files of `make test` needs no torch
    import torch

    # two that spin for each other's core make a loaded machine many times slower
    torch.set_num_threads(1)
    gc.freeze()
    gc.enable()
    place = {f"tests/{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))
    last = {item.nodeid.split("[")[0]: item for item in items if item.get_closest_marker("slow") is None}
    kept = {item.path for item in last.values()}
    alone = {item.path: item for item in reversed(items) if item.path not in kept}
    for item in (*last.values(), *alone.values()):
        item.add_marker("quick")
