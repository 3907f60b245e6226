"""Augmentation: every transform against torchvision, timm or a formula; the same draws for any number of workers."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from esbnn_core.errors import InputError
from esbnn_core.lit.callbacks import EpochSeed
from esbnn_core.lit.cli import TaskCLI
from esbnn_core.lit.data import seeded
from tasks.classification.augment import IMAGENET, Augmentation, Lighting, eval_transform, train_transform
from tasks.classification.data import ClassificationDataModule
from tasks.classification.datasets import DATASETS
from tasks.classification.generated import GeneratedImages
from tasks.classification.module import ClassificationModule
from tests.helpers.classification import make_module

MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]
EVERYTHING = Augmentation(
    crop_scale=(0.08, 1.25),
    interpolation="bicubic",
    lighting=0.1,
    rand_augment="rand-m9-mstd0.5-inc1",
    erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
    repeats=3,
)


def photo(index: int, width: int = 90, height: int = 70) -> Image.Image:
    """An uneven image: generated stripes, stretched."""
    return GeneratedImages(True, 10, 64)[index][0].resize((width, height))


@pytest.mark.parametrize(("name", "size"), [("imagenet", 48), ("cifar10", 32), ("cifar10", 40), ("fashion_mnist", 28)])
def test_the_default_draws_what_it_always_drew(name: str, size: int) -> None:
    info = DATASETS[name]
    image = photo(3) if name == "imagenet" else photo(3, info.size, info.size)
    image = image if info.channels == 3 else image.convert("L")
    if name == "imagenet":
        crop: list[Any] = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    else:
        crop = [v2.RandomCrop(info.size, padding=info.size // 8), v2.RandomHorizontalFlip()]
        crop += [v2.Resize((size, size), antialias=True)] if size != info.size else []
    tail = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(info.mean, info.std)]
    want = v2.Compose([v2.ToImage(), *crop, *tail])
    for seed in range(5):
        torch.manual_seed(seed)
        expected = want(image)
        torch.manual_seed(seed)
        assert torch.equal(info.transform(True, size)(image), expected)


@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation", "resized"),
    [(224, 0.95, "bicubic", 235), (224, 0.875, "bilinear", 256), (96, 0.9, "bicubic", 106)],
)
def test_evaluation_is_timms_to_a_grey_level(size: int, crop_pct: float, interpolation: Any, resized: int) -> None:
    factory = pytest.importorskip("timm.data.transforms_factory")
    a = Augmentation(crop_pct=crop_pct, eval_interpolation=interpolation)
    transform = eval_transform(a, 224, size, *IMAGENET)
    assert transform.transforms[1].size == [resized]
    other = factory.transforms_imagenet_eval(
        size, crop_pct, interpolation=interpolation, mean=IMAGENET[0], std=IMAGENET[1]
    )
    level = 1 / 255 / min(IMAGENET[1])
    for image in (photo(1, 300, 250), photo(2, 180, 333)):
        difference = (transform(image) - other(image)).abs()
        assert difference.max() < 1.01 * level and difference.mean() < 0.3 * level


@pytest.mark.parametrize(
    ("policy", "size", "interpolation"),
    [
        ("rand-m7-mstd0.5-inc1", 96, "bicubic"),
        ("rand-m9-mstd0.5-inc1", 64, "bilinear"),
        ("rand-m5-n3-p0.8", 50, "bicubic"),
    ],
)
def test_rand_augment_is_timms_own(policy: str, size: int, interpolation: Any) -> None:
    factory = pytest.importorskip("timm.data.transforms_factory")
    _, theirs, _ = factory.transforms_imagenet_train(
        size, auto_augment=policy, interpolation=interpolation, mean=IMAGENET[0], std=IMAGENET[1], separate=True
    )
    whole = train_transform(Augmentation(rand_augment=policy, interpolation=interpolation), 224, size, *IMAGENET)
    (place,) = (i for i, step in enumerate(whole.transforms) if type(step).__name__ == "RandAugment")
    compared = changed = 0
    for seed in range(40):
        image = photo(seed, size, size)
        try:
            with seeded(seed):
                expected = theirs(image)
        except ValueError:
            continue  # posterize to 0 bits, which the test below looks at
        with seeded(seed):
            got = whole.transforms[place](image)
        assert got.tobytes() == expected.tobytes()
        compared += 1
        changed += got.tobytes() != image.tobytes()
    assert compared > 35 and changed > 20
    assert [type(step).__name__ for step in whole.transforms[place - 1 : place + 2 : 2]] == ["ToPILImage", "ToImage"]


def test_rand_augment_goes_through_at_full_magnitude() -> None:
    pytest.importorskip("timm")
    whole = train_transform(Augmentation(rand_augment="rand-m10-n1-p1-inc1"), 224, 32, *IMAGENET)
    (augment,) = (step for step in whole.transforms if type(step).__name__ == "RandAugment")
    assert len(augment.ops) == 15
    for op in augment.ops:
        out = op(photo(1, 32, 32))
        assert (out.size, out.mode) == ((32, 32), "RGB")
        assert (out.getextrema() == ((0, 0),) * 3) is (op.name == "PosterizeIncreasing")


def test_grey_images_are_augmented_too() -> None:
    pytest.importorskip("timm")
    whole = DATASETS["fashion_mnist"].transform(
        True, None, Augmentation(rand_augment="rand-m9-n4-p1-inc1", erasing=0.5)
    )
    image = photo(0, 28, 28).convert("L")
    outs = []
    for seed in range(30):
        with seeded(seed):
            outs.append(whole(image))
    assert all(out.shape == (1, 28, 28) and torch.isfinite(out).all() for out in outs)


def test_without_timm_rand_augment_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.data.auto_augment", None)
    DATASETS["imagenet"].transform(True, 32)  # needs none
    with pytest.raises(InputError, match=r'rand_augment needs timm: pip install "esbnn\[classification\]"'):
        DATASETS["imagenet"].transform(True, 32, Augmentation(rand_augment="rand-m7"))


def test_lighting_is_one_shift_along_the_axes() -> None:
    image = torch.rand(3, 5, 6)
    for std in (0.1, 2.0):
        torch.manual_seed(4)
        a = [float(x) * std for x in torch.randn(3)]
        torch.manual_seed(4)
        shift = Lighting(std)(image) - image
        for channel, axes in enumerate(
            [(-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)]
        ):
            want = 0.2175 * a[0] * axes[0] + 0.0188 * a[1] * axes[1] + 0.0045 * a[2] * axes[2]
            torch.testing.assert_close(shift[channel], torch.full((5, 6), want), rtol=1e-4, atol=1e-6)
    gram = torch.tensor(Lighting.AXES).T @ torch.tensor(Lighting.AXES)
    torch.testing.assert_close(gram, torch.eye(3), rtol=0, atol=2e-3)


def test_lighting_and_erasing_do_what_they_say_in_the_whole_transform() -> None:
    image = photo(5, 64, 64)
    plain = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    base = train_transform(plain, 224, 64, *IMAGENET)(image)
    torch.manual_seed(0)
    lit = train_transform(Augmentation(**{**vars(plain), "lighting": 0.5}), 224, 64, *IMAGENET)(image)
    shift = (lit - base) * torch.tensor(IMAGENET[1]).view(3, 1, 1)
    assert shift.flatten(1).std(1).max() < 1e-5 and shift.abs().max() > 1e-3
    areas = []
    for seed in range(60):
        torch.manual_seed(seed)
        erased = train_transform(Augmentation(**{**vars(plain), "erasing": 1.0}), 224, 64, *IMAGENET)(image)
        rows, columns = ((erased != base).any(0)).nonzero(as_tuple=True)
        height, width = (int(places.max() - places.min()) + 1 for places in (rows, columns))
        assert len(rows) == height * width  # one rectangle, wholly other
        areas.append(height * width / 64**2)
    assert 0.015 < min(areas) < 0.08 and 0.25 < max(areas) < 0.35


def draw(workers: int, *epochs: int) -> list[list[tuple[Tensor, Tensor]]]:
    data = ClassificationDataModule(
        "generated",
        num_classes=7,
        image_size=40,
        batch_size=8,
        train_size=32,
        num_workers=workers,
        seed=3,
        augmentation=EVERYTHING,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    out = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        random.seed(workers)
        np.random.seed(workers + epoch)
        torch.manual_seed(workers)
        out.append(list(loader))
    return out


@pytest.mark.slow
def test_every_draw_is_the_same_for_any_number_of_workers() -> None:
    pytest.importorskip("timm")
    alone = draw(0, 0, 1, 0)
    assert [len(epoch) for epoch in alone] == [4, 4, 4]
    for epochs in (draw(1, 0, 1), draw(2, 0, 1)):
        for mine, theirs in zip(alone[:2], epochs, strict=True):
            for (x, y), (u, v) in zip(mine, theirs, strict=True):
                assert torch.equal(x, u) and torch.equal(y, v)
    for (x, y), (u, v), (w, z) in zip(*alone, strict=True):
        assert torch.equal(x, w) and torch.equal(y, z)  # the same epoch again
        assert not torch.equal(x, u) and not torch.equal(y, v)
        assert x.shape == (8, 3, 40, 40) and y.shape == (8, 7) and torch.isfinite(x).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixtures_are_those_of_their_papers(make_data: MakeData, mixup: float, cutmix: float) -> None:
    plain = make_data(augmentation=Augmentation())
    mixed = make_data(augmentation=Augmentation(mixup=mixup, cutmix=cutmix))
    kinds = []
    for data in (plain, mixed):
        data.setup("fit")
    for epoch in range(4):
        loaders = plain.train_dataloader(), mixed.train_dataloader()
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for (x, y), (u, v) in zip(*loaders, strict=True):
            first, second = torch.eye(10)[y], torch.eye(10)[y.roll(1)]
            differ = y != y.roll(1)
            share = v[differ].gather(1, y[differ, None])
            lam = share[0].item()
            torch.testing.assert_close(v, lam * first + (1 - lam) * second, rtol=0, atol=1e-6)
            taken, other = u == x, u == x.roll(1, 0)
            if (taken | other).all():
                kinds.append("cutmix")
                here = (~taken).flatten(0, 1).any(0)  # what came from the neighbours
                rows, columns = here.nonzero(as_tuple=True)
                area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) if len(rows) else 0
                assert 1 - lam == pytest.approx(int(area) / 28**2, abs=2 / 28)  # dark borders are alike in both
            else:
                kinds.append("mixup")
                torch.testing.assert_close(u, lam * x + (1 - lam) * x.roll(1, 0), rtol=1e-5, atol=1e-5)
    assert len(kinds) == 16
    assert set(kinds) == {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0}


def test_evaluation_and_unaugmented_training_are_not_mixed(make_data: MakeData) -> None:
    options = {"augmentation": Augmentation(mixup=1.0, repeats=4)}
    data = make_data(**options)
    data.setup()
    assert all(labels.dim() == 1 for loader in (data.val_dataloader(), data.test_dataloader()) for _, labels in loader)
    off = make_data(augment=False, **options)
    off.setup("fit")
    assert all(labels.dtype == torch.int64 for _, labels in off.train_dataloader())
    assert len({index for index, _ in off.train_dataloader().sampler}) == 64
    assert len({index for index, _ in data.train_dataloader().sampler}) == 16


@pytest.mark.slow
def test_a_resumed_run_mixes_what_the_whole_one_mixed(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer
) -> None:
    def data() -> ClassificationDataModule:
        augmentation = Augmentation(mixup=0.8, cutmix=1.0, erasing=0.3, repeats=2)
        return make_data(augmentation=augmentation, batch_size=4, train_size=16, val_size=8)

    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    whole, resumed = make_module(), make_module()
    make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[EpochSeed(0), checkpoint]).fit(whole, data())
    torch.manual_seed(77)
    make_trainer(max_epochs=2).fit(resumed, data(), ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"crop_scale": (0.5, 0.1)}, "crop_scale must be two positive numbers"),
        ({"flip": 1.5}, "flip must be a probability, got 1.5"),
        ({"erasing": -0.1}, "erasing must be .*, got -0.1"),
        ({"mixup": float("nan")}, "mixup must be .*, got nan"),
        ({"cutmix": -1.0}, "cutmix must be .*, got -1.0"),
        ({"repeats": 0}, "repeats must be .*, got 0"),
        ({"crop_pct": 95.0}, "crop_pct must be .*, got 95.0"),
        ({"std": (0.1, 0.0, 0.2)}, "std must be positive numbers"),
        ({"interpolation": "cubic"}, "interpolation must be bilinear or bicubic, got cubic"),
        ({"rand_augment": "m7-mstd0.5"}, "rand_augment must be timm's policy, .*, got m7-mstd0.5"),
        ({"rand_augment": "rand-m7-mstdd0.5"}, "rand_augment must be timm's policy, .*, got rand-m7-mstdd0.5"),
    ],
)
def test_values_out_of_range_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=f"augmentation {sentence}"):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("dataset", "options", "sentence"),
    [
        ("cifar10", {"crop_scale": (0.5, 1.0)}, "crop_scale must stay as it is for cifar10, whose images of 32 pixels"),
        (
            "cifar10",
            {"eval_interpolation": "bicubic"},
            "eval_interpolation must stay as it is for cifar10, .*, got bicubic",
        ),
        ("fashion_mnist", {"lighting": 0.1}, "lighting must be 0 for fashion_mnist, whose images have no colour"),
        ("imagenet", {"mean": (0.5,)}, "mean must have one number for each of the 3 channels of imagenet, got 1"),
    ],
)
def test_options_without_a_meaning_are_refused(dataset: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=f"augmentation {sentence}"):
        ClassificationDataModule(dataset, augmentation=Augmentation(**options))
    with pytest.raises(InputError, match="prefetch_factor must be a whole number of at least 1, got 0"):
        ClassificationDataModule(dataset, prefetch_factor=0)


def test_mean_and_std_of_a_recipe_replace_the_datasets() -> None:
    a = Augmentation(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4), crop_pct=1.0)
    image = Image.new("RGB", (50, 50), (255, 51, 0))
    for transform in (train_transform, eval_transform):
        x = transform(a, 224, 40, *IMAGENET)(image)
        torch.testing.assert_close(x[:, 0, 0], torch.tensor([5.0, -1.0, -0.75]), rtol=1e-5, atol=1e-5)


def test_yaml_gives_the_options_by_name(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "model: {network: reactnet_resnet8}\n"
        "data:\n  dataset: generated\n  augmentation: {crop_scale: [0.08, 1.25], rand_augment: rand-m7-mstd0.5-inc1,"
        " mixup: 0.8, mean: [0.5, 0.5, 0.5]}\n"
    )
    cli = TaskCLI(
        ClassificationModule,
        ClassificationDataModule,
        run=False,
        args=["--config", str(config), "--data.augmentation.repeats=3", "--trainer.logger=false"],
        seed_everything_default=0,
    )
    want = Augmentation(
        crop_scale=(0.08, 1.25), rand_augment="rand-m7-mstd0.5-inc1", mixup=0.8, mean=(0.5,) * 3, repeats=3
    )
    assert cli.datamodule.augmentation == want
