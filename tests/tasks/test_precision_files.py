"""Runs in half and in double precision: every file that they write goes into a run again with every value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from esbnn_core import read_checkpoint
from esbnn_core.lit.callbacks import ExportWeights
from esbnn_core.lit.precision import set_precision_
from tasks.classification.data import ClassificationDataModule
from tasks.detection.data import VOCDataModule
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.export import ExportPipeline
from tasks.super_resolution.pipeline import SuperResolutionPipeline
from tests.helpers import classification
from tests.helpers.detection import tiny as detection
from tests.helpers.super_resolution import tiny as super_resolution

TINY_BIDET = str(Path(detection.TINY).with_name("tiny_bidet_ssd.py"))
DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
RATE = 1.0 / 1001
MakeTrainer = Callable[..., L.Trainer]
pytestmark = pytest.mark.usefixtures("narrow_trunks")


def slow_sgd(parameters: Any) -> torch.optim.Optimizer:
    """Adam's epsilon is 0 in float16."""
    return torch.optim.SGD(parameters, lr=1e-3)


def classifier(data_root: str, weights: str | None = None) -> tuple[Any, Any]:
    data = ClassificationDataModule(root=data_root, batch_size=8, train_size=16, val_size=16, test_size=24)
    return classification.make_module(optimizer=slow_sgd, weights=weights), data


def detector(_: str, weights: str | None = None) -> tuple[Any, Any]:
    start = {"from_scratch": weights is None, "weights": weights}
    lists = {"root": str(detection.EMBEDDED), "train": ["VOC2007/train"]}
    data = VOCDataModule(**lists, pipeline=detection.TINY, batch_size=2, train_size=2, test_size=2)
    widths = {"bbox_head.in_channels": (128,)}
    return detection.make_detector(model=TINY_BIDET, optimizer=slow_sgd, overrides=widths, **start), data


def upsampler(root: str, weights: str | None = None) -> tuple[Any, Any]:
    sets = Path(root) if Path(root).exists() else super_resolution.write_sets(Path(root))
    data: SRDataModule = super_resolution.make_sets(sets, test=["small"])
    return super_resolution.make_module(optimizer=slow_sgd, weights=weights), data


Make = Callable[..., tuple[Any, Any]]


@pytest.fixture(params=[classifier, detector, upsampler], ids=["classification", "detection", "super_resolution"])
def make(request: pytest.FixtureRequest, data_root: str, tmp_path: Path) -> Make:
    """weights -> module and data of a task."""
    build: Make = request.param
    root = data_root if build is classifier else str(tmp_path / "sets")
    return lambda weights=None: build(root, weights)


def state(module: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.network.state_dict().items()}


def holds(found: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    """Whether both have equal values, in any dtype."""
    return found.keys() == want.keys() and all(torch.equal(found[k].double(), want[k].double()) for k in want)


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(DTYPES))
def test_files_go_round(tmp_path: Path, make: Make, make_trainer: MakeTrainer, precision: Any) -> None:
    kind, out = DTYPES[precision], tmp_path / "out"
    module, data = make()
    export = [ExportWeights(str(out))] + ([ExportPipeline(str(out))] if hasattr(module, "pipeline") else [])
    make_trainer(max_steps=1, precision=precision, limit_val_batches=0, callbacks=export).fit(module, data)
    want = state(module)
    assert {tensor.dtype for tensor in want.values() if tensor.is_floating_point()} == {kind}
    weights, packed = (str(out / f"{name}.safetensors") for name in ("weights", "packed"))
    held = read_checkpoint(weights).tensors
    stored = torch.float64 if precision == "64-true" else torch.float32
    assert {tensor.dtype for tensor in held.values() if tensor.is_floating_point()} == {stored}
    assert holds(dict(held), want)
    # a run of that precision starts where training ended, and one in float32 or float64 has its values
    again, data = make(weights)
    trainer = make_trainer(precision=precision, limit_test_batches=1)
    first = trainer.test(again, data, verbose=False)
    assert holds(state(again), want)
    if precision == "64-true":
        assert trainer.test(make(packed)[0], data, verbose=False) == first
        return
    results = [
        make_trainer(limit_test_batches=1).test(make(file)[0], data, verbose=False) for file in (weights, packed)
    ]
    assert results[0] == results[1] and results[0]
    if hasattr(module, "pipeline"):
        pipeline = SuperResolutionPipeline.from_pretrained(out / "pipeline")
        assert holds(dict(pipeline.unet.state_dict()), want)


def test_a_checkpoint_in_double_precision_loses_no_digit(
    tmp_path: Path, data_root: str, make_trainer: MakeTrainer
) -> None:
    module, data = classifier(data_root)
    trainer = make_trainer(max_steps=1, precision="64-true", limit_val_batches=0)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert not holds({k: t.float() for k, t in state(module).items()}, state(module))
    path = str(tmp_path / "run.ckpt")
    again, data = classifier(data_root)
    make_trainer(precision="64-true").test(again, data, ckpt_path=path, verbose=False)
    assert holds(state(again), state(module))
    narrow, data = classifier(data_root)
    with pytest.warns(UserWarning, match=r"weights in float64 are rounded, because trainer\.precision is 32-true"):
        make_trainer().test(narrow, data, ckpt_path=path, verbose=False)
    assert holds(state(narrow), {k: t.float() for k, t in state(module).items()})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_double_precision_is_rounded_with_a_word(precision: str) -> None:
    network = torch.nn.Linear(3, 2).double()
    with pytest.warns(UserWarning, match=f"precision is {precision}: set it to 64-true"):
        set_precision_(network, precision)
    assert network.weight.dtype == torch.float32
    set_precision_(network, "64-true")
    assert network.weight.dtype == torch.float64


def test_the_peak_rate_stays_exact_in_half_precision(make_trainer: MakeTrainer) -> None:
    """The rate rounds up in bfloat16, and the next step at the same rate would look like the first decay."""
    module, data = detector("")
    module.make_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=RATE)
    assert torch.tensor(RATE).bfloat16().item() > RATE
    trainer = make_trainer(max_steps=3, max_epochs=3, precision="bf16-true", limit_val_batches=0)
    trainer.fit(module, data)
    assert trainer.global_step == 3 and module.peak_lr.dtype == torch.float64 and module.peak_lr.item() == RATE
    bottlenecks = [m for m in module.modules() if hasattr(m, "switch_on")]
    assert bottlenecks and not any(bool(m.on) for m in bottlenecks)
