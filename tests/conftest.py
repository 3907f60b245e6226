"""One thread a test process, the order of the files, and which cases `make check` runs."""

import pytest
import torch

# two that spin for each other's core make a loaded machine many times slower
torch.set_num_threads(1)

LONG = [
    "tasks/test_releases",
    "tasks/test_proxy",
    "test_docs",
    "core/test_console",
    "core/test_packing",
    "core/test_native",
    "core/test_export",
    "tasks/detection/test_processes",
    "core/test_expand",
    "core/test_models",
    "core/test_binaryvit",
    "core/test_amx",
    "tasks/test_smoke",
    "tasks/test_cli",
    "tasks/test_two_steps",
    "core/test_cuda_compile",
    "tasks/test_evaluate",
    "tasks/test_repeatability",
    "tasks/test_demo",
    "tasks/test_resident",
    "tasks/detection/test_ssd_packed",
    "core/test_real_images",
    "core/test_cuda_arithmetic",
    "tasks/detection/test_resume",
    "tasks/test_recipes",
    "tasks/test_tables",
]
"""Files of the longest runs, longest first: the two processes of `make test` begin with them and end together."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, and mark as `quick` the last case of each test that is not `slow`.

    The last case, because lists of parameters begin with the plainest. Of a file of slow tests alone one is marked too:
    each file holds what its first sentence promises, and `make check` leaves none out.
    """
    place = {f"tests/{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))
    last = {item.nodeid.split("[")[0]: item for item in items if item.get_closest_marker("slow") is None}
    kept = {item.path for item in last.values()}
    alone = {item.path: item for item in reversed(items) if item.path not in kept}
    for item in (*last.values(), *alone.values()):
        item.add_marker("quick")
