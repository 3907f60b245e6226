"""BiDet's own detectors go on where a run was stopped, with a difference of 0.0, and train on bits as without."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from esbnn_core import bit_training_report, train_on_bits_
from esbnn_core.lit.callbacks import EpochSeed
from esbnn_core.units.conv import BinaryUnit
from tasks.detection.models.bottleneck import Bottleneck
from tests.helpers.detection.faster_rcnn import batch, losses, made, switch_on
from tests.helpers.detection.small_bidet import detector, images
from tests.helpers.units import relative

pytestmark = pytest.mark.usefixtures("narrow_trunks")

MakeTrainer = Callable[..., L.Trainer]


def tensors(module: Any) -> dict[str, Tensor]:
    """Weights, statistics and the optimizer's state, by name."""
    (optimizer,) = module.trainer.optimizers
    found = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        found |= {f"{key} of {number}": value.clone() for key, value in state.items()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bidet", "ssd"])
@pytest.mark.parametrize(("on_bits", "stops"), [(False, (1, 3)), (True, (3,))], ids=["plain", "bits"])
@pytest.mark.filterwarnings("ignore:1 binary units or layers train on plain layers")
def test_a_stopped_run_ends_as_the_whole_one(
    tmp_path: Path, make_trainer: MakeTrainer, name: str, on_bits: bool, stops: tuple[int, ...]
) -> None:
    """Stopped in the middle of the first epoch, and of the second, in which the rate is low and the bottleneck on."""

    def fit(source: str | None = None, **options: Any) -> dict[str, Tensor]:
        module = detector(name, train_on_bits=on_bits, from_scratch=source is None)
        assert any(isinstance(unit, BinaryUnit) for unit in module.modules())
        data = images(name, tmp_path, train_size=4, group_by_aspect=True)
        make_trainer(max_epochs=2, limit_val_batches=0, **options).fit(module, data, ckpt_path=source)
        on = [m.on.item() for m in module.modules() if isinstance(m, Bottleneck)]
        assert on == [True] * (1 if name == "ssd" else 2)
        assert module.trainer.global_step == 4
        return tensors(module)

    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fit(enable_checkpointing=True, callbacks=[EpochSeed(0), keep])
    assert sum(key.startswith("exp_avg") for key in whole) > 50
    for step in stops:
        torch.manual_seed(99 + step)  # what a new process would draw must not matter
        resumed = fit(str(tmp_path / f"step={step}.ckpt"))
        assert whole.keys() == resumed.keys()
        assert max((whole[key].double() - resumed[key].double()).abs().max().item() for key in whole) == 0.0


def gradients(model: Any, loss: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses, gradients and statistics of one step."""
    found = loss(model)
    sum(value for key, value in found.items() if key != "acc").backward()
    values = {f"gradient of {key}": p.grad for key, p in model.named_parameters() if p.requires_grad}
    return {**found, **values, **dict(model.named_buffers())}


@pytest.mark.parametrize("name", ["es_bidet", "ssd"])
@pytest.mark.filterwarnings("ignore:1 binary units or layers train on plain layers")
def test_a_step_on_bits_has_the_plain_steps_gradients(name: str) -> None:
    """In float64: in float32 a rounding turns signs near 0, and with them regions that are drawn."""
    x, samples = batch()
    model = detector("ssd").network if name == "ssd" else made(name, train_cfg__rcnn__sampler__num=8)
    switch_on(model.double().train())
    twin = train_on_bits_(copy.deepcopy(model))
    reasons = bit_training_report(twin)
    assert sum(reason == "" for reason in reasons.values()) >= 12
    assert [key for key, reason in reasons.items() if reason] == ([] if name == "ssd" else ["rpn_head.rpn_conv"])

    def loss(network: Any) -> dict[str, Tensor]:
        return losses(network, x.double(), samples)

    want, got = gradients(model, loss), gradients(twin, loss)
    assert want.keys() == got.keys() and len(want) > 60
    largest = max(value.abs().max().item() for key, value in want.items() if key.startswith("gradient"))
    for key, value in want.items():
        if value is None or not value.is_floating_point():
            assert value is got[key] is None or torch.equal(value, got[key]), key
        elif value.abs().max() > 1e-9 * largest:  # a bias in front of a norm has none but for rounding
            assert relative(got[key], value) <= 1e-9, key


@pytest.mark.filterwarnings("ignore:1 binary units or layers train on plain layers")
def test_a_step_in_channels_last_has_the_same_gradients(tmp_path: Path) -> None:
    """In float64, and in a layout that reaches the network in training, in detection and in the raw outputs."""
    data = images("ssd", tmp_path, train_size=2)
    data.setup("fit")
    samples = next(iter(data.train_dataloader()))
    found, layouts = [], []
    for channels_last in (False, True):
        module = detector("ssd", train_on_bits=True, channels_last=channels_last).double()
        module.network.backbone.register_forward_pre_hook(
            lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
        prepared = module.prepare(copy.deepcopy(samples), training=True)
        loss, _ = module.network.parse_losses(module.network(**prepared, mode="loss"))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
        module.eval()(torch.randn(2, 3, 96, 96, dtype=torch.float64))
        module.detect(copy.deepcopy(samples))
    assert layouts == [False] * 3 + [True] * 3
    assert len(found[0]) == len(found[1]) > 40
    largest = max(tensor.abs().max().item() for tensor in found[0])
    for want, got in zip(*found, strict=True):
        if want.abs().max() > 1e-9 * largest:  # a bias in front of a norm has none but for rounding
            assert relative(got, want) <= 1e-9
