"""Training on bits through the Lightning module: the same run, its files, its refusals, its command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from esbnn_core import bit_training_report, create_model, pack_checkpoint, save_checkpoint
from esbnn_core.errors import InputError, TrainingError
from esbnn_core.lit.callbacks import ExportWeights, TemperatureSchedule
from esbnn_core.lit.cli import TaskCLI
from esbnn_core.units import BinaryUnit
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tasks.classification.objectives import TeacherObjective
from tasks.classification.teachers import CheckpointTeacher
from tests.helpers.classification import make_module

MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]


def fitted(module: ClassificationModule, data: ClassificationDataModule, trainer: L.Trainer) -> dict[str, float]:
    trainer.fit(module, data)
    return {key: value.item() for key, value in trainer.callback_metrics.items()}


@pytest.mark.slow
def test_a_fit_on_bits_is_the_plain_fit(make_data: MakeData, make_trainer: MakeTrainer) -> None:
    found = []
    for on_bits in (False, True):
        module = make_module(train_on_bits=on_bits)
        trainer = make_trainer(max_epochs=2, precision="64-true", limit_val_batches=1)
        found.append(fitted(module, make_data(train_size=16, batch_size=8), trainer))
        assert (set(bit_training_report(module.network).values()) == {""}) is on_bits
    assert "val_loss" in found[0] and found[1] == pytest.approx(found[0], rel=1e-8)


def test_a_teacher_teaches_a_student_on_bits(tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer) -> None:
    torch.manual_seed(1)
    save_checkpoint(create_model("reactnet_resnet8", in_channels=1), tmp_path / "teacher.safetensors")
    found = []
    for on_bits in (False, True):
        objective = TeacherObjective(CheckpointTeacher(str(tmp_path / "teacher.safetensors")))
        module = make_module(train_on_bits=on_bits, objective=objective)
        # one step: in float32 two runs part at the first sign that turns
        trainer = make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        found.append(fitted(module, make_data(), trainer))
    assert found[0]["train_loss"] > 1 and found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_bf16_lowers_the_loss_and_exports_what_packs(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer
) -> None:
    module = make_module(train_on_bits=True, channels_last=True)
    trainer = make_trainer(
        max_epochs=7,
        precision="bf16-mixed",
        check_val_every_n_epoch=7,
        callbacks=[ExportWeights(str(tmp_path / "out"))],
    )
    trainer.fit(module, make_data(train_size=16, batch_size=8, val_size=20, augment=False))
    assert trainer.callback_metrics["train_loss_epoch"] < 2.2 - 0.6
    results = []
    for name in ("weights", "packed"):
        # a run's own options evaluate its packed file too
        loaded = make_module(weights=str(tmp_path / "out" / f"{name}.safetensors"), train_on_bits=True)
        results.append(make_trainer().test(loaded, make_data(test_size=20), verbose=False)[0])
    assert results[0] == results[1]


@pytest.mark.slow
def test_bnext_begins_on_bits_once_it_is_annealed(make_data: MakeData, make_trainer: MakeTrainer) -> None:
    options = {"stem_stride": 1}
    with pytest.warns(UserWarning, match="its temperature is not annealed below 1e-07"):
        module = make_module("bnext_micro", network_options=options, train_on_bits=True)
    names: list[str] = []
    unit = module.network.blocks[0].attention.core

    class Watch(L.Callback):
        def on_before_zero_grad(self, *_: Any) -> None:
            names.append(bit_training_report(unit)[""])

    trainer = make_trainer(
        max_epochs=2, limit_train_batches=1, limit_val_batches=0, callbacks=[TemperatureSchedule(1e-8), Watch()]
    )
    trainer.fit(module, make_data(batch_size=4, train_size=4))
    assert "not annealed" in names[0] and names[-1] == ""


def test_a_loss_that_is_not_finite_is_still_traced_to_its_layer(make_data: MakeData, make_trainer: MakeTrainer) -> None:
    module = make_module("reactnet_resnet8", train_on_bits=True)
    with torch.no_grad():
        module.network.stages.layer2[0].norm.weight.fill_(3e38)
        module.network.stages.layer2[0].norm.bias.fill_(3e38)
    with pytest.raises(TrainingError, match=r"first not finite in the output of stages\.layer2\.0\.norm"):
        make_trainer(max_epochs=1).fit(module, make_data())


def test_real_weights_are_refused_and_packed_ones_where_fit_begins(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(InputError, match="only one of real_weights and train_on_bits can be set: train step 1"):
        make_module(real_weights=True, train_on_bits=True)
    save_checkpoint(make_module().network, tmp_path / "w.safetensors")
    pack_checkpoint(tmp_path / "w.safetensors", tmp_path / "p.safetensors")
    module = make_module(weights=str(tmp_path / "p.safetensors"), train_on_bits=True)
    with pytest.raises(InputError, match="packed and holds no latent weights to train"):
        make_trainer(max_epochs=1).fit(module, make_data())


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_it_is_an_option_of_the_command_line() -> None:
    config = Path(__file__).parents[2] / "configs/classification/demo_es.yaml"
    cases = (
        (["--model.train_on_bits=false"], "train_on_bits_ was not called", None),
        ([], "", None),
        (["--model.train_on_bits=bfloat16"], "", torch.bfloat16),
    )
    for words, expected, rounded in cases:
        cli = TaskCLI(
            ClassificationModule,
            ClassificationDataModule,
            run=False,
            args=["--config", str(config), "--trainer.accelerator=cpu", *words],
            seed_everything_default=0,
        )
        assert set(bit_training_report(cli.model.network).values()) == {expected}
        paths = [module.training_path for module in cli.model.network.modules() if isinstance(module, BinaryUnit)]
        assert expected or {path.config.gradient_dtype for path in paths} == {rounded}
