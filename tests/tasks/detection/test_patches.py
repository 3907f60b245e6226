"""Every patch of mmdet is needed still: without it the fault shows, with it it is gone."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from mmdet.evaluation.functional import mean_ap

from tasks.detection import mm, patches
from tests.tasks.detection.conftest import TINY

BY_NAME = {patch.name: patch for patch in patches.PATCHES}


def test_every_patch_has_a_test_here() -> None:
    assert set(BY_NAME) == {"ssd_head_loss_cls", "voc_metric_threads"}


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


def ends(target: Callable[[bool], None], patched: bool) -> bool:
    """Whether a forked process comes to its end; whatever it leaves is killed."""
    process = multiprocessing.get_context("fork").Process(target=target, args=(patched,))
    process.start()
    process.join(6)
    done = process.exitcode == 0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return done


def test_map_ends_under_a_sigterm_handler_with_the_patch_alone() -> None:
    assert ends(under_a_handler, patched=True)
    assert not ends(under_a_handler, patched=False)
