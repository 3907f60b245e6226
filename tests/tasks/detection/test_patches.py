"""Every patch is needed still: without it the fault shows, with it it is gone."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.evaluation.functional import mean_ap

from tasks.detection.mmdet import api as mm
from tasks.detection.mmdet import patches
from tests.helpers import processes
from tests.helpers.detection.tiny import TINY

BY_NAME = {patch.name: patch for patch in patches.PATCHES}


def test_every_patch_has_a_test_here() -> None:
    assert set(BY_NAME) == {"ssd_head_loss_cls", "voc_metric_threads", "yapf_cache"}


def test_yapf_names_its_cache_once_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process reads the moment that the file has its name; a large one is whole by chance."""
    grammars = import_module("yapf_third_party._ylib2to3.pygram")
    file = str(tmp_path / "grammar.pickle")
    read: list[Any] = []

    def naming(rename: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def renamed(source: str, target: str) -> None:
            rename(source, target)
            other = type(grammars.pattern_grammar)()
            other.load(target)
            read.append(vars(other))

        return renamed

    monkeypatch.setattr(os, "rename", naming(os.rename))
    monkeypatch.setattr(os, "replace", naming(os.replace))
    with BY_NAME["yapf_cache"].undone(), pytest.raises(EOFError):
        grammars.pattern_grammar.dump(file)
    for grammar in (grammars.pattern_grammar, grammars.python_grammar):
        grammar.dump(file)
        assert read.pop() == vars(grammar)


@pytest.mark.slow
def test_the_cache_is_mended_before_anything_of_mmdet_is_imported() -> None:
    """In an empty home the first import writes the cache; there the patch has to be in place."""
    script = (
        "import importlib, sys\n"
        "grammar = importlib.import_module('yapf_third_party._ylib2to3.pgen2.grammar').Grammar\n"
        "before = 'yapf' in sys.modules\n"
        "class Watch:\n"
        "    seen = 0\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('mmcv', 'mmengine', 'yapf'):\n"
        "            print(name, grammar.dump.__name__)\n"
        "            Watch.seen += 1\n"
        "            if Watch.seen == 3:\n"  # what comes later is mmdet itself
        "                print(before)\n"
        "                sys.exit()\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import tasks.detection.mmdet.api\n"
    )
    done = processes.run([sys.executable, "-c", script])
    lines = done.stdout.splitlines()
    assert lines == ["mmcv dump_atomically", "mmengine dump_atomically", "yapf dump_atomically", "False"], done.stderr


def test_ssd_predicts_with_the_patch_alone() -> None:
    torch.manual_seed(0)
    detector = mm.build(mm.load_config(TINY).model).eval()
    meta = {"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0), "batch_input_shape": (64, 64)}

    def predict() -> int:
        samples = [mm.DetDataSample(metainfo=meta)]
        with torch.no_grad():
            return len(detector(torch.randn(1, 3, 64, 64), samples, mode="predict")[0].pred_instances)

    with BY_NAME["ssd_head_loss_cls"].undone(), pytest.raises(AttributeError, match="loss_cls"):
        predict()
    assert predict() > 0


def evaluate() -> None:
    """VOC's mAP of forty images without objects, and one worker of mmdet's that is still busy at the end.

    mmdet closes its pool and does not wait for it. Idle workers may or may not have left by the time that the process
    ends, which is chance; a busy one has not, so the fault shows every time.
    """
    detected = [[np.ones((2, 5)) for _ in range(20)] for _ in range(40)]
    truth = [{"bboxes": np.zeros((0, 4)), "labels": np.zeros(0, int)} for _ in range(40)]
    mean_ap.eval_map(detected, truth, logger="silent")
    pool = mean_ap.Pool(1)
    pool.apply_async(at_work)
    AT_WORK.wait()
    pool.close()


AT_WORK = multiprocessing.get_context("fork").Event()


def at_work() -> None:
    AT_WORK.set()
    time.sleep(60)


def under_a_handler(patched: bool) -> None:
    """As a Lightning run: SIGTERM is noted, and ends nothing."""
    os.setsid()
    AT_WORK.clear()
    signal.signal(signal.SIGTERM, lambda *_: None)
    if patched:
        evaluate()
    else:
        with BY_NAME["voc_metric_threads"].undone():
            evaluate()


def ends(target: Callable[[bool], None], patched: bool, seconds: float) -> bool:
    """Whether a forked process comes to its end in so many seconds; whatever it leaves is killed."""
    process = multiprocessing.get_context("fork").Process(target=target, args=(patched,))
    process.start()
    process.join(seconds)
    done = process.exitcode == 0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return done


@pytest.mark.slow
def test_map_ends_under_a_sigterm_handler_with_the_patch_alone() -> None:
    assert ends(under_a_handler, patched=True, seconds=30)
    assert not ends(under_a_handler, patched=False, seconds=1.5)
