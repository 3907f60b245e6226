"""The two-step recipe: a strict hand-over, and a run that was stopped anywhere ends as one that was not."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from esbnn_core import create_model, pack_, read_checkpoint, save_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import AbsMean, RealWeights
from esbnn_core.lit.callbacks import EpochSeed, ExportWeights, FlipRatio
from esbnn_core.lit.resumable import ResumableLoader, ResumableSampler
from esbnn_core.lit.schedules import ProgressLR
from esbnn_core.lit.weight_decay import DecayRule
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tests.helpers.classification import make_module, quiet_trainer

MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]
State = dict[str, Tensor]


def difference(a: State, b: State) -> float:
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)


def step(number: int, folder: Path) -> ClassificationModule:
    """The module of one step as the recipes have it; step 2 reads what step 1 exported to `folder`."""
    torch.manual_seed(number)
    options: dict[str, Any] = {"lr_scheduler": lambda optimizer: ProgressLR(optimizer, "linear", ahead=1)}
    if number == 1:
        return make_module("reactnet_resnet8", real_weights=True, decay=DecayRule("conv", 1e-5), **options)
    return make_module("reactnet_resnet8", weights=str(folder / "step1" / "weights.safetensors"), **options)


def run(
    folder: Path,
    make_data: MakeData,
    make_trainer: MakeTrainer,
    stop: Callable[[L.Trainer], bool] | None = None,
) -> dict[str, State]:
    """Both steps, two epochs each; with `stop` each step is broken off once and resumed in a new trainer."""
    states: dict[str, State] = {}
    for number in (1, 2):
        place = folder / f"step{number}"

        class Stop(L.Callback):
            """A power cut: nothing after this batch or epoch."""

            def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
                if stop is not None and stop(trainer):
                    raise KeyboardInterrupt

            def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
                if stop is not None and stop(trainer):
                    raise KeyboardInterrupt

        def trainer(*extra: L.Callback, place: Path = place) -> L.Trainer:
            # each step of a run that is broken off: it goes on from the last one
            every = [ModelCheckpoint(dirpath=place, filename="{step}", save_top_k=-1, every_n_train_steps=1)]
            ends = ModelCheckpoint(dirpath=place, filename="end-{epoch}", save_top_k=-1, save_last=True)
            callbacks = [EpochSeed(0), *(every if extra else []), ends, FlipRatio(), ExportWeights(str(place)), *extra]
            return make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=callbacks)

        module = step(number, folder)
        states[f"start{number}"] = {k: t.clone() for k, t in module.network.state_dict().items()}
        if stop is not None:
            with pytest.raises(SystemExit):
                trainer(Stop()).fit(module, make_data())
            assert not (place / "weights.safetensors").exists()
            ckpt = max(place.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
            module = step(number, folder)
            with torch.no_grad():
                for p in module.parameters():
                    p.add_(1)  # whatever the new process starts from
            torch.manual_seed(99)
            trainer().fit(module, make_data(), ckpt_path=str(ckpt))
        else:
            trainer().fit(module, make_data())
        states[f"end{number}"] = dict(module.network.state_dict())
    return states


@pytest.fixture(scope="module")
def few(make_data: MakeData) -> MakeData:
    """16 images, four steps an epoch."""
    return partial(make_data, train_size=16, val_size=8, batch_size=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, few: MakeData) -> dict[str, State]:
    """Both steps without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    states = run(folder, few, partial(quiet_trainer, folder))
    assert all(difference(states[f"start{step}"], states[f"end{step}"]) > 0 for step in (1, 2))
    return states


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "workers"),
    [("epoch", 0), ("first batch", 0), ("third batch", 2), ("last batch", 0)],
)
def test_both_steps_resumed_anywhere_differ_by_nothing(
    tmp_path: Path, few: MakeData, make_trainer: MakeTrainer, whole: dict[str, State], when: str, workers: int
) -> None:
    stops: dict[str, Callable[[L.Trainer], bool]] = {
        # four batches an epoch: behind the first epoch, or in the middle of the second or first
        "epoch": lambda trainer: trainer.current_epoch == 1,
        # the files are those of the step before
        "first batch": lambda trainer: trainer.global_step == 2,
        "third batch": lambda trainer: trainer.global_step == 8,
        "last batch": lambda trainer: trainer.global_step == 5,
    }
    broken = run(tmp_path, partial(few, num_workers=workers), make_trainer, stops[when])
    for part in ("end1", "start2", "end2"):
        assert difference(whole[part], broken[part]) == 0.0, part


@pytest.mark.parametrize("name", ["reactnet_resnet8", "es_reactnet_resnet8"])
def test_step_2_starts_at_step_1s_tensors_and_nowhere_else(
    tmp_path: Path, few: MakeData, make_trainer: MakeTrainer, name: str
) -> None:
    first = make_module(name, real_weights=True)
    trainer = make_trainer(max_epochs=1)
    trainer.callbacks.append(ExportWeights(str(tmp_path)))
    trainer.fit(first, few())
    path = str(tmp_path / "weights.safetensors")
    second = make_module(name, weights=path)
    assert difference(dict(first.network.state_dict()), dict(second.network.state_dict())) == 0.0
    kinds = [{type(layer.quantizer) for _, layer in binary_layers(m)} for m in (first, second)]
    assert kinds == [{RealWeights}, {AbsMean}] and second.network.training
    assert read_checkpoint(path).weights == "real"
    # step 1 goes on from its own file as real, without a fresh start
    again = make_module(name, weights=path, real_weights=True)
    assert difference(dict(first.network.state_dict()), dict(again.network.state_dict())) == 0.0
    with torch.no_grad():
        x = torch.randn(3, 1, 28, 28)
        assert torch.equal(again.eval()(x), first.eval()(x)) and not torch.equal(second.eval()(x), first(x))


@pytest.mark.parametrize("name", ["reactnet_resnet8", "es_reactnet_resnet20"])
def test_step_1_starts_as_ordinary_convolutions_and_a_binary_run_does_not(name: str) -> None:
    channels = {"network_options": {"in_channels": 1}}
    real, binary = make_module(name, real_weights=True, **channels), make_module(name, **channels)
    for (_, a), (_, b) in zip(binary_layers(real), binary_layers(binary), strict=True):
        bound = a.weight[0].numel() ** -0.5
        assert 0.97 * bound < a.weight.abs().max().item() <= bound
        assert b.weight.abs().max().item() <= 1e-3


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "other.safetensors")
    save_checkpoint(create_model("es_reactnet_resnet8", in_channels=1), path)
    with pytest.raises(
        InputError,
        match=r"does not fit the network: .*shortcut.2.weight is missing; .* and \d+ more: build the network",
    ):
        make_module("reactnet_resnet8", weights=path)
    save_checkpoint(create_model("bireal_resnet18", in_channels=1, num_classes=10), path)
    with pytest.raises(InputError, match="is missing"):
        make_module("reactnet_resnet8", weights=path)
    with pytest.raises(InputError, match="must have no state to train with real weights, got ReCU"):
        make_module("recu_resnet20", real_weights=True)


def test_a_packed_file_cannot_have_real_weights(tmp_path: Path) -> None:
    path = str(tmp_path / "packed.safetensors")
    save_checkpoint(pack_(create_model("reactnet_resnet8", in_channels=1)), path)
    with pytest.raises(InputError, match="must be a latent file with real_weights, got the packed"):
        make_module("reactnet_resnet8", weights=path, real_weights=True)


def batches(loader: ResumableLoader) -> list[list[int]]:
    return [[int(x) for x in batch] for batch in loader]


class Indices(torch.utils.data.Dataset[int]):
    """The index itself, and how many were ever asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 50

    def __getitem__(self, key: tuple[int, int]) -> int:
        self.asked += 1
        return key[0]


@pytest.mark.parametrize(("batch_size", "drop_last"), [(7, False), (7, True), (10, False)])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_the_loader_goes_on_behind_what_was_seen(batch_size: int, drop_last: bool, rank: int, stop: int) -> None:
    def loader(epoch: int) -> ResumableLoader:
        sampler = ResumableSampler(50, shuffle=True, seed=3, rank=rank, world=2)
        sampler.set_epoch(epoch)
        return ResumableLoader(Indices(), batch_size=batch_size, sampler=sampler, drop_last=drop_last)

    whole = batches(loader(4))
    first = loader(4)
    walk = iter(first)
    seen = [[int(x) for x in next(walk)] for _ in range(min(stop, len(whole)))]
    state = first.state_dict()
    assert state == {"epoch": 4, "batches": len(seen), "batch_size": batch_size}
    second = loader(4)
    second.load_state_dict(state)
    assert len(second) == len(whole)  # the length of an epoch, as Lightning counts it
    assert seen + batches(second) == whole
    assert len(list(second.sampler)) == 25  # it skips once, and then is an EpochSampler again
    assert second.dataset.asked == sum(map(len, whole[len(seen) :]))  # type: ignore[attr-defined]
    assert second.state_dict()["batches"] == len(whole)
    assert batches(second) == whole  # once
    # another epoch begins at its beginning
    third = loader(5)
    third.load_state_dict(state)
    assert batches(third) == batches(loader(5)) != whole


def test_the_loader_refuses_another_batch_size_and_another_sampler() -> None:
    sampler = ResumableSampler(50, shuffle=True)
    loader = ResumableLoader(Indices(), batch_size=5, sampler=sampler)
    loader.load_state_dict({"epoch": 0, "batches": 2, "batch_size": 10})
    with pytest.raises(InputError, match=r"batch_size must be 10 to resume .*, got 5"):
        next(iter(loader))
    loader.load_state_dict({"epoch": 3, "batches": 2, "batch_size": 10})  # at an epoch's end it may change
    assert len(batches(loader)) == 10
    with pytest.raises(InputError, match="must be a ResumableSampler, got SequentialSampler"):
        next(iter(ResumableLoader(Indices(), batch_size=5)))


@pytest.mark.slow
def test_noise_in_the_middle_of_an_epoch_is_the_uninterrupted_runs(
    tmp_path: Path, few: MakeData, make_trainer: MakeTrainer
) -> None:
    class Noisy(nn.Module):
        """Dropout between network and loss."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = torch.nn.functional.dropout(self.network(x), 0.5, self.training)
            return logits

    def module() -> ClassificationModule:
        made = make_module("reactnet_resnet8")
        made.network = Noisy(made.network)
        return made

    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    whole = module()
    make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[EpochSeed(0), keep]).fit(whole, few())
    for done in (2, 5):
        resumed = module()
        torch.manual_seed(99)
        ckpt = str(tmp_path / f"step={done}.ckpt")
        make_trainer(max_epochs=2, callbacks=[EpochSeed(0)]).fit(resumed, few(), ckpt_path=ckpt)
        assert difference(dict(resumed.state_dict()), dict(whole.state_dict())) == 0.0, done
