"""The Lightning module: metrics, distillation, precision, the stop at a loss that is not finite."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from esbnn_core import create_model, load_checkpoint, pack_checkpoint, save_checkpoint
from esbnn_core.errors import InputError, TrainingError
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import make_weight_quantizer
from esbnn_core.lit.callbacks import ExportWeights, FlipRatio, TemperatureSchedule
from esbnn_core.lit.schedules import ProgressLR
from esbnn_core.lit.weight_decay import DecayRule
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tasks.classification.objectives import TeacherObjective
from tasks.classification.teachers import CheckpointTeacher, TorchvisionTeacher
from tests.helpers.classification import make_module

MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]


@pytest.mark.parametrize(("test_size", "batch_size"), [(100, 32), (37, 10)])
def test_metrics_are_those_of_a_plain_loop(
    make_data: MakeData, make_trainer: MakeTrainer, test_size: int, batch_size: int
) -> None:
    module, data = make_module(), make_data(test_size=test_size, batch_size=batch_size)
    (got,) = make_trainer().test(module, data, verbose=False)
    images, labels = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        logits = module.eval()(images)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert got["test_top1"] == pytest.approx(100 * (ranks < 1).float().mean().item(), abs=1e-4)
    assert got["test_top5"] == pytest.approx(100 * (ranks < 5).float().mean().item(), abs=1e-4)
    assert got["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_predict_goes_over_the_test_split_in_order(make_data: MakeData, make_trainer: MakeTrainer) -> None:
    module, data = make_module(), make_data(test_size=37, batch_size=10)
    classes = torch.cat(make_trainer().predict(module, data))
    images = torch.cat([images for images, _ in data.test_dataloader()])
    with torch.no_grad():
        assert torch.equal(classes, module.eval()(images).argmax(1)) and len(classes) == 37


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "images", "batch", "lower"), [("32-true", 64, 8, 0.6), ("bf16-mixed", 16, 4, 0.3)]
)
def test_training_lowers_the_loss(
    make_data: MakeData, make_trainer: MakeTrainer, precision: Any, images: int, batch: int, lower: float
) -> None:
    """Fewer images in bfloat16, which takes many times as long on a processor without instructions for it."""
    module, data = (
        make_module(channels_last=True),
        make_data(train_size=images, batch_size=batch, val_size=16, augment=False),
    )
    # validated before training alone
    trainer = make_trainer(max_epochs=4, precision=precision, check_val_every_n_epoch=5)
    before = trainer.validate(module, data, verbose=False)[0]["val_loss"]
    trainer.fit(module, data)
    assert trainer.global_step == 4 * images // batch
    assert before > 2.2  # ln 10 and a little
    assert trainer.callback_metrics["train_loss_epoch"] < before - lower


def test_validation_under_bf16_sees_exact_sums() -> None:
    module = make_module()
    layer = module.network.stages.layer3[1].conv
    with torch.no_grad():
        layer.weight.abs_()
    x = torch.randn(2, 128, 7, 7) + 1.5  # sums near 1000, where bfloat16 steps by 4 to 8
    exact = layer.eval()(x, scaled=False)
    assert exact.abs().max() > 600
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x, scaled=False), exact)
        assert not torch.equal(layer.train()(x, scaled=False).float(), exact)


def test_soft_labels_come_from_the_teacher_and_stay_out_of_the_state(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer
) -> None:
    torch.manual_seed(1)
    save_checkpoint(create_model("reactnet_resnet8", in_channels=1), tmp_path / "teacher.safetensors")
    module = make_module(
        "reactnet_resnet8", objective=TeacherObjective(CheckpointTeacher(str(tmp_path / "teacher.safetensors")))
    )
    names = set(module.state_dict())
    seen: list[float] = []
    module.log_dict = lambda values, **_: seen.append(next(iter(values.values())).item())  # type: ignore[method-assign]
    make_trainer(max_epochs=1, limit_train_batches=1).fit(module, make_data())
    assert set(module.state_dict()) == names
    student, teacher = make_module("reactnet_resnet8"), load_checkpoint(tmp_path / "teacher.safetensors")
    data = make_data()
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    want = F.cross_entropy(student(images), teacher(images).softmax(1)).item()
    assert seen[0] == pytest.approx(want, rel=1e-5)
    with pytest.raises(InputError, match="teacher resnet_none with weights DEFAULT cannot be built"):
        TorchvisionTeacher("resnet_none").build()


@pytest.mark.parametrize("where", ["parameter fc.weight", "stages.layer2.0"])
def test_loss_that_is_not_finite_stops_with_step_and_layer(
    make_data: MakeData, make_trainer: MakeTrainer, where: str
) -> None:
    module = make_module("reactnet_resnet8")
    with torch.no_grad():
        if where.startswith("parameter"):
            module.network.fc.weight[0, 0] = float("nan")
        else:
            module.network.stages.layer2[0].norm.weight.fill_(3e38)
            module.network.stages.layer2[0].norm.bias.fill_(3e38)
    with pytest.raises(TrainingError, match="at step 0, first not finite in") as error:
        make_trainer(max_epochs=1).fit(module, make_data())
    assert where in str(error.value) and "lower the learning rate" in str(error.value)


def test_packed_weights_evaluate_and_refuse_training(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer
) -> None:
    module = make_module()
    make_trainer(max_epochs=1).fit(module, make_data())
    save_checkpoint(module.network, tmp_path / "w.safetensors")
    pack_checkpoint(tmp_path / "w.safetensors", tmp_path / "p.safetensors")
    results = []
    for name in ("w", "p"):
        loaded = make_module(weights=str(tmp_path / f"{name}.safetensors"))
        results.append(make_trainer().test(loaded, make_data(), verbose=False)[0])
    assert results[0] == results[1]
    with pytest.raises(InputError, match="packed and holds no latent weights to train"):
        make_trainer(max_epochs=1).fit(make_module(weights=str(tmp_path / "p.safetensors")), make_data())


@pytest.mark.slow
def test_schedule_is_bound_to_the_run(make_data: MakeData, make_trainer: MakeTrainer) -> None:
    module = make_module(lr_scheduler=lambda optimizer: ProgressLR(optimizer, "linear"))
    trainer = make_trainer(max_epochs=2)
    lrs: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            lrs.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer.callbacks.append(Watch())
    trainer.fit(module, make_data())
    assert lrs == pytest.approx([5e-3 * (1 - step / 8) for step in range(8)])


def test_callbacks_log_flips_and_export_both_files(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer
) -> None:
    module = make_module()
    before = {name: layer.weight.detach().clone() for name, layer in binary_layers(module)}
    trainer = make_trainer(max_epochs=1)
    trainer.callbacks += [FlipRatio(), ExportWeights()]
    trainer.fit(module, make_data())
    logged = trainer.callback_metrics
    for name, layer in binary_layers(module):
        want = ((layer.weight >= 0) != (before[name] >= 0)).float().mean()
        assert logged[f"flip/{name}"] == pytest.approx(want.item(), abs=1e-6)
        assert 0 < want < 1
    latent, packed = (load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("weights", "packed"))
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(latent(x), module.network.eval()(x))
        assert torch.equal(packed(x), latent(x))


@pytest.mark.parametrize("name", ["bidet_resnet18", "es_bidet_vgg16"])
def test_a_trunk_is_no_classifier(name: str) -> None:
    with pytest.raises(InputError, match=f"the trunk of a detector: train {name}_classifier"):
        ClassificationModule(name, num_classes=10)


@pytest.mark.parametrize(("epoch", "sign_mode"), [(0, False), (1, False), (152, False), (153, True), (511, True)])
def test_temperature_follows_the_epoch_into_sign_mode(epoch: int, sign_mode: bool) -> None:
    module = make_module("reactnet_resnet8")
    for _, layer in binary_layers(module):
        layer.quantizer = make_weight_quantizer("temperature")
    logged: dict[str, float] = {}
    module.log = lambda name, value: logged.update({name: value})  # type: ignore[method-assign]
    TemperatureSchedule(0.9).on_train_epoch_start(SimpleNamespace(current_epoch=epoch), module)  # type: ignore[arg-type]
    for _, layer in binary_layers(module):
        assert layer.quantizer.temperature.item() == pytest.approx(0.9**epoch)
        assert layer.quantizer.sign_mode() is sign_mode
    assert logged["temperature"] == pytest.approx(0.9**epoch)
    with pytest.raises(InputError, match="factor must be a number between 0 and 1, got 1"):
        TemperatureSchedule(1)


@pytest.mark.parametrize("rate", [0.2, 5.0])
def test_thresholds_and_norms_have_a_rate_of_their_own(rate: float) -> None:
    module = make_module(
        decay=DecayRule("affine", 0.0, rate=rate), lr_scheduler=lambda optimizer: ProgressLR(optimizer, "cosine")
    )
    optimizer = module.configure_optimizers()["optimizer"]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in module.network.named_parameters()}
    assert (
        found["stages.layer1.0.conv.sign.shift"] == found["stages.layer1.0.norm.weight"] == pytest.approx(rate * 5e-3)
    )
    assert found["stages.layer1.0.conv.weight"] == found["fc.bias"] == found["stages.layer1.0.act.slope"] == 5e-3


def test_a_rate_that_the_scheduler_would_undo_is_refused() -> None:
    module = make_module(
        decay=DecayRule("affine", 0.0, rate=5.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, 10),
    )
    with pytest.raises(InputError, match="one that scales the optimizer's, like ProgressLR"):
        module.configure_optimizers()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_mean_loss_is_exact_in_a_module_of_any_precision(dtype: torch.dtype) -> None:
    """Equal logits cost ln K each, of any number of images; a sum in half precision stops growing or overflows."""
    module = ClassificationModule("reactnet_resnet8", num_classes=1000)
    module.network = torch.nn.Identity()
    module.to(dtype)
    for images, batches in ((250, 300), (30, 40)):
        batch = torch.zeros(images, 1000, dtype=dtype), torch.arange(images)
        for _ in range(batches):
            module._evaluate("val_", batch)
        loss = module.metrics["val_"]["loss"]
        assert float(loss.compute()) == pytest.approx(math.log(1000), rel=1e-5)
        loss.reset()
