"""One thread a test process and no search for garbage in what stays, the order of the files, what `make check` runs."""

import gc

import pytest

# what importing and collecting makes stays: to search it for garbage again and again is a third of the start
gc.disable()

LONG = [
    "tasks/super_resolution/test_command",
    "tasks/test_two_steps",
    "test_docs",
    "tasks/test_smoke",
    "tasks/test_evaluate",
    "tasks/super_resolution/test_module",
    "core/test_cuda_compile",
    "core/test_models",
    "tasks/test_repeatability",
    "tasks/test_releases",
    "tasks/detection/test_weights",
    "tasks/test_tables",
    "tasks/detection/test_ssd_packed",
    "tasks/test_cli",
    "core/test_binaryvit",
    "core/test_expand",
    "core/test_amx",
    "core/test_trunks",
    "tasks/detection/test_resume",
    "core/test_foreign",
    "core/test_counting",
    "tasks/test_resident",
    "core/test_export",
    "tasks/test_curve",
    "tasks/super_resolution/test_unet",
    "tasks/detection/test_module",
    "core/test_console",
    "core/test_golden",
    "tasks/test_proxy",
    "core/test_packing",
]
"""Files of the longest runs, longest first: the two processes of `make test` begin with them and end together."""


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
