"""Images kept on the device: evaluated as the loader's, trained on cuts of the originals, repeatable in every way."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from esbnn_core.errors import InputError
from esbnn_core.lit.callbacks import EpochSeed
from esbnn_core.lit.data import IGNORE
from tasks.classification.augment import Augmentation
from tasks.classification.data import ClassificationDataModule
from tests.helpers.classification import make_module, same

MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]


def batches(data: ClassificationDataModule, part: str, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    loader: Any = getattr(data, f"{part}_dataloader")()
    loader.sampler.set_epoch(epoch)
    return (data.on_after_batch_transfer(batch, 0) for batch in loader)


def whole(data: ClassificationDataModule, part: str, epoch: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches(data, part, epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def pair(make_data: MakeData, **options: Any) -> tuple[ClassificationDataModule, ClassificationDataModule]:
    made = tuple(make_data(on_device=there, **options) for there in (True, False))
    for data in made:
        data.setup()
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("numbers", "size"), [({}, None), ({"mean": (0.485,), "std": (0.229,)}, 14), ({}, 32)])
def test_images_that_are_not_drawn_are_the_loaders_to_the_last_bit(
    make_data: MakeData, numbers: Any, size: int | None
) -> None:
    there, here = pair(make_data, augment=False, augmentation=Augmentation(**numbers), image_size=size)
    for part in ("train", "val", "test"):
        for one, other in zip(batches(there, part, 2), batches(here, part, 2), strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.slow
def test_training_images_are_cuts_of_the_originals_and_all_cuts_come(make_data: MakeData) -> None:
    # in the dataset's own numbers: black is what 0 becomes
    there, here = pair(make_data, batch_size=16, train_size=32)
    here.augment = False
    here.splits.clear()
    here.setup()
    found = set()
    for epoch in range(6):
        for (cut, labels), (image, expected) in zip(
            batches(there, "train", epoch), batches(here, "train", epoch), strict=True
        ):
            assert torch.equal(labels, expected)
            black = torch.full((16, 1, 34, 34), -0.2860 / 0.3530)
            black[:, :, 3:31, 3:31] = image
            for one, frame in zip(cut, black, strict=True):
                views = {
                    (y, x, mirrored): frame[:, y : y + 28, x : x + 28].flip(2)
                    if mirrored
                    else frame[:, y : y + 28, x : x + 28]
                    for y in range(7)
                    for x in range(7)
                    for mirrored in (False, True)
                }
                hits = [key for key, view in views.items() if torch.allclose(one, view, rtol=0, atol=1e-6)]
                assert hits, "an image that is no cut of its original"
                if len(hits) == 1:
                    found.add(hits[0])
    assert {y for y, _, _ in found} == {x for _, x, _ in found} == set(range(7))
    assert {mirrored for _, _, mirrored in found} == {False, True}


def test_draws_go_by_seed_epoch_and_batch_and_not_by_workers(make_data: MakeData) -> None:
    def drawn(epoch: int = 0, **options: Any) -> Tensor:
        data = make_data(on_device=True, **options)
        data.setup("fit")
        return whole(data, "train", epoch)[0]

    first = drawn()
    assert torch.equal(first, drawn(num_workers=2))
    assert not torch.equal(first, drawn(epoch=1)) and not torch.equal(first, drawn(seed=5))
    # one image in every place: its cuts differ from batch to batch
    data = make_data(on_device=True, train_size=1)
    data.setup("fit")
    cuts = {tuple(whole(data, "train", epoch)[0].flatten().tolist()) for epoch in range(8)}
    assert len(cuts) >= 4


def test_padding_is_ignored_and_mixtures_have_soft_labels(make_data: MakeData) -> None:
    data = make_data(on_device=True, augmentation=Augmentation(mixup=0.8, cutmix=1.0))
    data.setup()
    images, labels = next(batches(data, "train"))
    assert labels.shape == (images.shape[0], 10)
    torch.testing.assert_close(labels.sum(1), torch.ones(images.shape[0]))
    again = next(batches(data, "train"))
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    (batch,) = [data.val_dataloader().dataset.__getitems__([(3, 1), (-1, 2)])]
    assert data.on_after_batch_transfer(batch, 0)[1].tolist()[1] == IGNORE


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_an_epoch_differs_by_nothing(
    tmp_path: Any, make_data: MakeData, make_trainer: MakeTrainer, workers: int
) -> None:
    options = {"on_device": True, "num_workers": workers, "batch_size": 4, "train_size": 16, "val_size": 5}
    straight = make_module()
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[EpochSeed(0), keep])
    trainer.fit(straight, make_data(**options))
    path = sorted(tmp_path.glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]))[2]
    resumed = make_module()
    make_trainer(max_epochs=2).fit(resumed, make_data(**options), ckpt_path=path)
    assert same(straight.state_dict(), resumed.state_dict())


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(make_data: MakeData, make_trainer: MakeTrainer) -> None:
    """Dynamo's graphs without a code generator: the same kernels, so the same bits."""
    states = []
    for backend in (None, "eager"):
        trained = make_module(compile_backend=backend)
        make_trainer(max_epochs=1, limit_val_batches=1).fit(trained, make_data(on_device=True, train_size=32))
        states.append(trained.state_dict())
        assert (getattr(trained.network, "_compiled_call_impl", None) is not None) == (backend is not None)
    assert same(*states)


def test_what_cannot_be_kept_is_refused(make_data: MakeData) -> None:
    for options, words in (
        ({"dataset": "imagenet"}, "imagenet of 224 pixels"),
        ({"augmentation": Augmentation(erasing=0.2)}, "must be of whole batches, got erasing"),
    ):
        with pytest.raises(InputError, match=words):
            make_data(on_device=True, **options)
    with pytest.raises(InputError, match=r"compile_backend must be one of .*, got 'inducktor'"):
        make_module(compile_backend="inducktor")
