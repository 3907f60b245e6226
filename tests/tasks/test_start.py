"""StartApart in a fit: thresholds start apart once, and a run that has thresholds already keeps them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from esbnn_core import InputError, Start, create_model, save_checkpoint, start_apart_
from esbnn_core.lit.callbacks import EpochSeed
from esbnn_core.lit.cli import TaskCLI
from esbnn_core.lit.start import StartApart
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule
from tasks.reproduce.tables.proxies import read_proxy_config
from tasks.reproduce.tables.table import SYSTEMS
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.module import SuperResolutionModule
from tests.helpers.classification import make_module, same
from tests.helpers.detection.tiny import make_detector
from tests.helpers.log import Log
from tests.helpers.super_resolution import tiny as super_resolution

CONFIGS = Path(__file__).parents[2] / "configs"
NAMED = {
    path: found
    for path in sorted(CONFIGS.glob("*/es_*.yaml"))
    if (found := re.search(r"configs/(start_\w+\.yaml)", path.read_text()))
}
"""Recipes whose head names the start that suits their networks."""
TASKS = {
    "classification": (ClassificationModule, ClassificationDataModule, ("num_classes",)),
    "detection": (DetectionModule, VOCDataModule, ("num_classes",)),
    "super_resolution": (SuperResolutionModule, SRDataModule, ("scale",)),
}
MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]


def still(**options: Any) -> Any:
    """A module whose parameters no step moves."""
    return make_module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0), **options)


def shifts(module: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.network.named_parameters() if name.endswith("sign.shift")}


def changed_by_start(task: str, words: list[str]) -> int:
    """How many parameters the one StartApart of a command changes when its run begins."""
    module, data, links = TASKS[task]
    with torch.device("cpu" if module is DetectionModule else "meta"):  # mmdet's anchors are numbers
        words = [*words, "--trainer.accelerator=cpu"]
        cli = TaskCLI(module, data, links=links, run=False, args=words, seed_everything_default=0)
    (callback,) = (one for one in cli.trainer.callbacks if isinstance(one, StartApart))
    versions = [p._version for p in cli.model.parameters()]
    callback.on_fit_start(cli.trainer, cli.model)
    return sum(p._version > v for p, v in zip(cli.model.parameters(), versions, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.parametrize("recipe", NAMED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_start_that_a_recipe_names_suits_its_network(recipe: Path) -> None:
    words = ["--config", str(recipe), "--config", str(CONFIGS / NAMED[recipe][1])]
    assert changed_by_start(recipe.parent.name, words) > 5


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_the_starts_of_the_proxies_suit_their_networks() -> None:
    """A run of hours may come before the first that has one."""
    started = [(proxy, v) for proxy in map(read_proxy_config, SYSTEMS) for v in proxy.variants if v.start]
    assert {proxy.task for proxy, _ in started} == {"classification", "detection", "super_resolution"}
    met = set()
    for proxy, variant in started:
        if (key := f"{variant.network} {variant.options} {variant.start}") in met:  # at another rate, say
            continue
        met.add(key)
        if proxy.task == "classification":
            with torch.device("meta"):
                start_apart_(create_model(variant.network, **variant.options), Start(**variant.start))
            continue
        words = [word for config in proxy.recipe_of(variant) for word in ("--config", str(CONFIGS.parent / config))]
        assert changed_by_start(proxy.task, [*words, *variant.all_words]) > 5


@pytest.mark.slow
def test_it_starts_once_also_over_a_resume(tmp_path: Path, make_trainer: MakeTrainer, make_data: MakeData) -> None:
    found = []
    for seed, epochs, resumed in ((5, 1, None), (5, 2, "last.ckpt"), (6, 1, None)):
        module = still()
        before = shifts(module)
        keep = ModelCheckpoint(dirpath=tmp_path / f"seed{seed}", save_last=True)
        callbacks = [EpochSeed(0), StartApart(0.5, "drawn"), keep]
        options = {
            "callbacks": callbacks,
            "enable_checkpointing": True,
            "limit_train_batches": 1,
            "limit_val_batches": 0,
        }
        trainer = make_trainer(max_epochs=epochs, **options)
        L.seed_everything(seed, verbose=False)
        path = None if resumed is None else str(tmp_path / f"seed{seed}" / resumed)
        trainer.fit(module, make_data(), ckpt_path=path)
        assert trainer.current_epoch == epochs
        found.append({name: shift - before[name] for name, shift in shifts(module).items()})
    first, again, other = found
    for name, apart in first.items():
        assert 0.2 < apart.std() < 0.9, name
        assert torch.equal(again[name], apart), name
        assert not torch.equal(other[name], apart), name


def test_what_starts_from_a_file_keeps_its_thresholds(
    tmp_path: Path, make_trainer: MakeTrainer, make_data: MakeData, caplog: Log
) -> None:
    trained = still()
    start_apart_(trained, Start(0.25, gains="alternate"))
    save_checkpoint(trained.network, tmp_path / "trained.safetensors")
    module = still(weights=str(tmp_path / "trained.safetensors"))
    with caplog.at_level("INFO"):
        make_trainer(max_steps=1, limit_val_batches=0, callbacks=[StartApart(0.5)]).fit(module, make_data())
    assert "StartApart changes nothing: thresholds are those of" in caplog.text
    for name, shift in shifts(trained).items():
        assert torch.equal(shifts(module)[name], shift)


@pytest.mark.parametrize("option", ["weights", "backbone"])
def test_a_detector_from_a_file_keeps_its_start(
    tmp_path: Path, option: str, make_trainer: MakeTrainer, caplog: Log
) -> None:
    """The callback alone."""
    trained = make_detector()
    path = tmp_path / "trained"
    if option == "weights":
        path = path.with_suffix(".safetensors")
        save_checkpoint(trained.network, path)
    else:
        torch.save(trained.network.backbone.state_dict(), path)
    module = make_detector(from_scratch=False, **{option: str(path)})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with caplog.at_level("INFO"):
        StartApart(0.5, gains="alternate").on_fit_start(make_trainer(), module)
    assert f"those of {path}, which" in caplog.text and same(before, module.state_dict())


def test_a_super_resolution_network_from_a_file_keeps_its_thresholds(
    tmp_path: Path, make_trainer: MakeTrainer, caplog: Log
) -> None:
    sets = super_resolution.write_sets(tmp_path / "sets")
    first = super_resolution.make_module()
    start_apart_(first.network, Start(0.25))
    save_checkpoint(first.network, tmp_path / "trained.safetensors")
    module = super_resolution.make_module(
        weights=str(tmp_path / "trained.safetensors"),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    trainer = make_trainer(max_steps=1, limit_val_batches=0, callbacks=[EpochSeed(0), StartApart(0.5)])
    with caplog.at_level("INFO"):
        trainer.fit(module, super_resolution.make_sets(sets))
    assert "StartApart changes nothing: thresholds are those of" in caplog.text
    assert same(dict(first.network.named_parameters()), dict(module.network.named_parameters()))


def test_a_second_fit_of_a_trainer_starts_nothing_again(
    make_trainer: MakeTrainer, make_data: MakeData, caplog: Log
) -> None:
    module = still()
    trainer = make_trainer(max_steps=1, limit_val_batches=0, callbacks=[StartApart(0.5)])
    trainer.fit(module, make_data())
    before = shifts(module)
    trainer.fit_loop.epoch_loop.max_steps = 2
    with caplog.at_level("INFO"):
        trainer.fit(module, make_data())
    assert trainer.global_step == 2 and "the network was trained for 1 steps" in caplog.text
    assert same(before, shifts(module))


def test_deviations_of_a_compiled_network_are_refused(make_trainer: MakeTrainer, make_data: MakeData) -> None:
    trainer = make_trainer(max_steps=1, limit_val_batches=0, callbacks=[StartApart(0.5, deviations=True)])
    with pytest.raises(InputError, match=r"deviations of StartApart must be false with model\.compile_backend"):
        trainer.fit(still(compile_backend="eager"), make_data())
