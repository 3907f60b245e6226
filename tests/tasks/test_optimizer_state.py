"""An optimizer that goes on from a checkpoint: its state in the layout of the weights, and no state of another one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler

from esbnn_core import InputError
from esbnn_core.lit.accumulation import take_gradients
from esbnn_core.lit.callbacks import EpochSeed
from esbnn_core.lit.schedules import ProgressLR
from esbnn_core.lit.weight_decay import DecayRule
from tasks.classification.data import ClassificationDataModule
from tasks.classification.objectives import ConsecutiveObjective
from tests.helpers.classification import make_module

MakeTrainer = Callable[..., L.Trainer]
MakeData = Callable[..., ClassificationDataModule]
FAST = {"limit_val_batches": 0}


def adam(**options: Any) -> Any:
    return lambda parameters: torch.optim.Adam(parameters, **{"lr": 5e-3, **options})


def sgd(**options: Any) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, **{"lr": 5e-3, **options})


@pytest.fixture
def goes_on(tmp_path: Path, make_trainer: MakeTrainer, make_data: MakeData) -> Callable[..., Any]:
    """Two steps with `first`, saved after one, or the second of them from there with `then`; the module."""

    def run(first: dict[str, Any], then: dict[str, Any] | None = None, **trained: Any) -> Any:
        keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        data = make_data(train_size=8, batch_size=4, augment=False)
        options = {**FAST, **trained}
        for given in (first, then):
            if given is None:
                break
            module = make_module("reactnet_resnet8", **given)
            whole = given is first
            callbacks = [EpochSeed(0), *([keep] if whole else [])]
            trainer = make_trainer(max_epochs=1, callbacks=callbacks, enable_checkpointing=whole, **options)
            trainer.fit(module, data, ckpt_path=None if whole else str(tmp_path / "step=1.ckpt"))
        return module

    return run


@pytest.mark.parametrize("make", [adam, sgd])
def test_a_fused_optimizer_goes_on_in_another_memory_format(goes_on: Callable[..., Any], make: Any) -> None:
    optimizer = make(fused=True, **({"momentum": 0.9} if make is sgd else {}))
    whole = goes_on({"optimizer": optimizer})
    resumed = goes_on({"optimizer": optimizer}, {"optimizer": optimizer, "channels_last": True})
    begun = make_module("reactnet_resnet8").state_dict()
    for name, tensor in whole.state_dict().items():
        moved = (tensor - begun[name]).float().abs().max().item()
        assert (resumed.state_dict()[name] - tensor).float().abs().max().item() <= 1e-2 * moved + 1e-6, name


def test_waiting_gradients_take_the_weights_memory_format(make_trainer: MakeTrainer) -> None:
    module = make_module("reactnet_resnet8", channels_last=True)
    module.trainer = make_trainer(accumulate_grad_batches=2)
    torch.manual_seed(1)
    wanted = {name: torch.randn(p.shape) for name, p in module.named_parameters()}
    take_gradients(module, {"batches": 1, "of": 2, "gradients": wanted})
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, wanted[name]) and parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        ({"optimizer": sgd()}, r"model\.optimizer must be that of the checkpoint, torch\.optim\.adam\.Adam, got .*SGD"),
        (
            {"decay": DecayRule("affine", 0.1)},
            r"model\.decay must be that of the checkpoint, .* groups of \d+ parameters, got \d+ and \d+: a",
        ),
    ],
)
def test_another_optimizer_is_refused(goes_on: Callable[..., Any], then: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        goes_on({}, {"optimizer": adam(), **then})


def test_other_numbers_are_told(goes_on: Callable[..., Any]) -> None:
    rule = {"decay": DecayRule("affine", 0.5, rate=0.1), "optimizer": adam(betas=(0.9, 0.9))}
    other = {"decay": DecayRule("affine", 0.25, rate=1.0), "optimizer": adam()}
    told = (
        r"checkpoint says: betas .*0\.9\) in place of .*0\.999\), lr 0\.0005 in place of 0\.005, weight_decay 0\.5 in"
    )
    with pytest.warns(UserWarning, match=told):
        module = goes_on(rule, other)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-4)


@pytest.mark.filterwarnings("error:the optimizer goes on")
@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        (lambda optimizer: ProgressLR(optimizer, "cosine"), 2.0),
        (lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 5e-3, 4), 1.0),  # moves betas, too
    ],
)
def test_a_schedule_that_goes_on_is_not_told(goes_on: Callable[..., Any], schedule: Any, rate: float) -> None:
    given = {"lr_scheduler": schedule, "decay": DecayRule("affine", 0, rate=rate)}
    module = goes_on(given, given)
    assert module.trainer.global_step == 2
    # what the schedule starts from counts
    other = {**given, "optimizer": adam(lr=1e-3)}
    if rate == 2:
        with pytest.warns(
            UserWarning, match=r"initial_lr 0\.005 in place of 0\.001, initial_lr 0\.01 in place of 0\.002"
        ):
            goes_on(given, other)


@pytest.mark.parametrize(
    ("module", "trainer", "sentence"),
    [
        ({"lr_interval": "epoch"}, {"max_steps": 3}, "ProgressLR and lr_interval epoch must be given in epochs"),
        (
            {},
            {"max_time": "00:01:00:00"},
            r"with ProgressLR must be given, got max_time alone: set trainer\.max_epochs",
        ),
        ({"objective": "consecutive"}, {"max_steps": 3}, "with ConsecutiveObjective must be given in epochs"),
    ],
)
def test_a_run_without_the_length_that_it_needs_is_refused(
    make_trainer: MakeTrainer, make_data: MakeData, module: dict[str, Any], trainer: dict[str, Any], sentence: str
) -> None:
    if module.get("objective"):
        objective = ConsecutiveObjective([None], None)  # type: ignore[arg-type,list-item]
        objective._frozen = [torch.nn.Identity()] * 2  # type: ignore[list-item]
        module = {"objective": objective}
    else:
        module = {**module, "lr_scheduler": lambda optimizer: ProgressLR(optimizer, "cosine")}
    trained = make_module("reactnet_resnet8", **module)
    with pytest.raises(InputError, match=sentence):
        make_trainer(**{**FAST, **trainer}).fit(trained, make_data(train_size=8, batch_size=4))
