"""One thread a test process and no search for garbage in what stays, the order of the files, what `make check` runs."""

import atexit
import functools
import gc
import os
import re
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.log import Log

# what importing and collecting makes stays: to search it for garbage again and again is a third of the start
gc.disable()

LONG = [
    "test_docs",
    "tasks/super_resolution/test_module",
    "tasks/test_tables",
    "tasks/test_releases",
    "core/test_expand_layouts",
    "tasks/test_two_steps",
    "core/test_export",
    "tasks/test_trainer_options",
    "test_gpu_check",
    "tasks/test_export_run",
    "core/test_golden",
    "tasks/test_recipes",
    "core/test_foreign",
    "core/test_binaryvit",
    "tasks/test_resident",
    "core/test_models",
    "core/test_row",
    "test_broken_inputs",
    "tasks/test_run_options",
    "tasks/super_resolution/test_unet",
    "core/test_cuda_arithmetic",
    "core/test_expand",
    "core/test_expand_tokens",
    "core/test_amx",
    "tasks/test_precision_files",
    "tasks/detection/test_module",
    "tasks/test_evaluate_names",
    "core/test_packing",
    "tasks/test_data",
    "core/test_counting",
]
"""Files of the longest runs, longest first: the two processes of `make test` begin with them and end together."""


PREPARES = re.compile(r"tests\.helpers(\.| import (.*, )?)processes\b|from esbnn_core\.onnx import")
"""Of a file that forks commands from a process with the packages imported, or lets torch list its ONNX operators."""


@functools.cache
def prepares(path: Path) -> bool:
    return PREPARES.search(path.read_text()) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give one process of `make test` all files that prepare the same, which takes ten seconds in each process."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "prepared" if prepares(config.rootpath / file) else file

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let the second process begin with the last file: what one has compiled, asserts and all, the other finds."""
    report = yield
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1" and isinstance(collector, pytest.Directory):
        report.result.reverse()
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Keep what a file has left out of the next files' searches for garbage, which grow with it to 15 seconds each."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """Report a warning as the builtin class that it derives from.

    The process that only hands out the files imports the module of each warning's class, of Lightning's for 4 seconds.
    """
    category = next(each for each in warning_message.category.__mro__ if each.__module__ == "builtins")
    warning_message.category = category
    warning_message.message = category(str(warning_message.message))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Let the interpreter's end find what was frozen: bindings report what outlives them.

    A process of `make test`, whose results have been sent, ends at once: taking its heap apart takes three seconds.
    """
    if hasattr(config, "workerinput"):
        atexit._run_exitfuncs()
        os._exit(0)
    gc.unfreeze()


@pytest.fixture
def caplog() -> Iterator[Log]:
    """pytest's fixture without pytest's plugin, which listens in each test and takes 3 seconds for that."""
    with Log().listening() as log:
        yield log


@pytest.fixture(scope="session")
def exporter_repeats_nothing() -> Iterator[None]:
    """Of what torch's exporter does anew for each ONNX file, the list of its operators once, and no hopeless rewrites.

    For each file it lists the thousand operators that it can translate, and tries each of 90 rules of its optimizer on
    each node, though a rule can only match the operator that its pattern ends with. The files are the same.
    """
    # here, because few files of tests write ONNX files
    from onnxscript._framework_apis import torch_2_11 as listing
    from onnxscript.rewriter._basics import MatchResult
    from onnxscript.rewriter._matcher import SimplePatternMatcher as Matcher

    whole = Matcher.match

    def match(self: Matcher, model: Any, graph: Any, node: Any, **options: Any) -> MatchResult:
        wanted = [last.op_identifier() for last in self.pattern.output_nodes[:1]]
        if wanted not in ([], [None], [node.op_identifier()]):
            return MatchResult().fail("another operator")
        return whole(self, model, graph, node, **options)

    with pytest.MonkeyPatch.context() as patch:
        if hasattr(listing, "get_torchlib_ops"):
            patch.setattr(listing, "get_torchlib_ops", functools.cache(listing.get_torchlib_ops))
        patch.setattr(Matcher, "match", match)
        yield


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
    if not torch.cuda.device_count():
        # otherwise torch's exporters ask the missing driver again before each operator that they trace
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # how long a loader waits at its end for a worker that has met an error, 5 seconds each time
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5
    gc.freeze()
    gc.enable()
    # torch's modules and graphs are many objects of which few are garbage: by default it is looked for after each 700
    gc.set_threshold(20_000)
    place = {f"tests/{name}.py": number for number, name in enumerate(LONG)}

    def order(item: pytest.Item) -> tuple[int, str]:
        file = item.nodeid.split("::")[0]
        return place.get(file, len(place)), file

    items.sort(key=order)
    last = {item.nodeid.split("[")[0]: item for item in items if item.get_closest_marker("slow") is None}
    kept = {item.path for item in last.values()}
    alone = {item.path: item for item in reversed(items) if item.path not in kept}
    for item in (*last.values(), *alone.values()):
        item.add_marker("quick")
