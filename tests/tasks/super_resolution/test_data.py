"""The data module: patches are pieces of images, draws belong to (seed, epoch, index), every image counts once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from esbnn_core.errors import InputError
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.datasets import Item
from tasks.super_resolution.image_files import read_image
from tasks.super_resolution.patches import crop_to_multiple, cut_patch
from tasks.super_resolution.resize import cubic_upsample, imresize
from tests.helpers.log import Log
from tests.helpers.super_resolution.images import EMBEDDED, low, place

Batch = dict[str, Tensor]
ROOT = EMBEDDED.parent


def make(**options: Any) -> SRDataModule:
    defaults: dict[str, Any] = {
        "root": str(ROOT),
        "train": ["manga-like-train", "Set5"],
        "test": ["Set5", "manga-like"],
        "patch": 32,
        "batch_size": 2,
    }
    return SRDataModule(**{**defaults, **options})


def loader(data: SRDataModule, epoch: int = 0) -> Any:
    data.setup("fit")
    train: Any = data.train_dataloader()
    train.sampler.set_epoch(epoch)
    return train


def batches(data: SRDataModule, epoch: int = 0) -> list[Batch]:
    return list(loader(data, epoch))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in ("hr", "condition")
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("made", [True, False])
def test_a_patch_is_bit_for_bit_that_of_the_whole_image(scale: int, made: bool) -> None:
    hr = crop_to_multiple(read_image(EMBEDDED / "HR" / "woman.webp").rgb, scale)
    hr = hr[: 30 * scale, : 25 * scale]
    lr = imresize(hr, 1 / scale)
    whole = cubic_upsample(lr, scale)
    for top, left, side in ((0, 0, 8), (22, 17, 8), (3, 1, 20), (0, 12, 6), (29, 24, 1), (5, 0, 25)):
        patch, condition = cut_patch(hr, None if made else lr, scale, top, left, side)
        area = slice(top * scale, (top + side) * scale), slice(left * scale, (left + side) * scale)
        assert np.array_equal(patch, hr[area]) and np.array_equal(condition, whole[area])


@pytest.mark.parametrize(("scale", "lr"), [(2, "make"), (4, "read")])
def test_hr_and_condition_show_the_same_piece_in_all_eight_ways(scale: int, lr: str) -> None:
    data = make(train=["Set5"], lr=lr, scale=scale, repeat=8, batch_size=4)
    found = batches(data)
    assert len(found) == 10 and found[0]["hr"].shape == found[0]["condition"].shape == (4, 3, 32, 32)
    images = [read_image(path).rgb for path in sorted((EMBEDDED / "HR").iterdir())]
    conditions = [cubic_upsample(imresize(image, 1 / scale), scale) for image in images]
    colours, ways = [packed(image) for image in images], set()
    for batch in found:
        for hr, condition in zip(batch["hr"], batch["condition"], strict=True):
            assert hr.dtype == condition.dtype == torch.float32 and hr.min() >= 0 and hr.max() <= 1
            way = find(hr, condition, colours, conditions, scale)
            assert way is not None
            ways.add(way)
    assert len(ways) == 8
    assert min(float(batch["condition"].min()) for batch in found) < 0  # not clipped


def packed(image: Any) -> Any:
    """One number a pixel."""
    return image.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def find(hr: Tensor, condition: Tensor, images: list[Any], conditions: list[Any], scale: int) -> tuple[int, int] | None:
    """How a patch was turned and mirrored, if both of its halves are those of one place of one image."""
    pixels = packed((hr * 255).round().byte().permute(1, 2, 0).numpy())
    for turns in range(4):
        for mirror in (0, 1):
            # the way back: first the turn is undone, then the mirror
            back, front = (np.rot90(x, -turns) for x in (pixels, condition.permute(1, 2, 0).numpy()))
            back, front = (x[:, ::-1] if mirror else x for x in (back, front))
            for image, whole in zip(images, conditions, strict=True):
                for y, x in np.argwhere(image[:-31:scale, :-31:scale] == back[0, 0]) * scale:
                    if np.array_equal(image[y : y + 32, x : x + 32], back):
                        return (turns, mirror) if np.array_equal(whole[y : y + 32, x : x + 32], front) else None
    return None


def test_patches_belong_to_seed_epoch_and_index() -> None:
    first = batches(make(repeat=2))
    assert len(first) == 7
    torch.manual_seed(7)
    np.random.seed(7)
    assert equal(first, batches(make(repeat=2)))
    assert equal(first, batches(make(repeat=2, num_workers=2)))
    assert equal(first, batches(make(repeat=2, cache_mib=0)))
    assert not equal(first, batches(make(repeat=2), epoch=1))
    assert not equal(first, batches(make(repeat=2, seed=1)))
    # each copy of an image is another patch
    data = make(train=["Set5"], train_size=1, repeat=4, batch_size=4)
    (batch,) = batches(data)
    assert len({patch.numpy().tobytes() for patch in batch["hr"]}) == 4
    items = data.splits["train"][0]
    one, again, other = (items[2, seed]["hr"] for seed in (5, 5, 6))  # type: ignore[call-overload]
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("cache_mib", [0, 256])
def test_an_epoch_shows_every_image_as_often(tmp_path: Path, cache_mib: int) -> None:
    (tmp_path / "mine").mkdir()
    for grey in (10, 20, 30):
        Image.new("L", (40, 50), grey).save(tmp_path / "mine" / f"{grey}.png")
    data = make(root=str(tmp_path), train=["mine"], val=["mine"], repeat=2, batch_size=3, cache_mib=cache_mib)
    for epoch in (0, 1):
        shown = [round(float(patch.mean()) * 255) for b in batches(data, epoch) for patch in b["hr"]]
        assert sorted(shown) == [10, 10, 20, 20, 30, 30]
    assert loader(data).sampler.shuffle and not data.val_dataloader()[0].sampler.shuffle  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [(0, 2), (2, 0)])
def test_an_interrupted_epoch_goes_on_with_the_same_batches(workers: tuple[int, int]) -> None:
    whole = batches(make(repeat=2), epoch=3)
    train = loader(make(repeat=2, num_workers=workers[0]), epoch=3)
    seen = [batch for batch, _ in zip(train, range(3), strict=False)]
    state = train.state_dict()
    again = loader(make(repeat=2, num_workers=workers[1]), epoch=3)
    again.load_state_dict(state)
    left = list(again)
    # zip took one batch more than it gave
    assert equal(seen, whole[:3]) and equal(left, whole[state["batches"] :]) and state["batches"] in (3, 4)
    assert equal(list(again), whole)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_counts_once_over_all_processes(world: int) -> None:
    seen: dict[str, list[str]] = {"Set5": [], "manga-like": []}
    steps = set()
    for rank in range(world):
        data = make()
        data.setup("test")
        data.trainer = type("Trainer", (), {"global_rank": rank, "world_size": world})()
        loaders = data.test_dataloader()
        assert data.test_names == ("Set5", "manga-like") and len(loaders) == 2
        items = [[item for batch in part for item in batch] for part in loaders]
        steps.add(tuple(len(part) for part in items))
        for name, part in zip(data.test_names, items, strict=True):
            assert all(item.dataset == name for item in part)
            seen[name] += [item.name for item in part if not item.padded]
    assert len(steps) == 1
    assert sorted(seen["Set5"]) == ["baby", "bird", "butterfly", "head", "woman"]
    assert seen["manga-like"] == ["Ubunchu_ch13_p01"]


@pytest.mark.parametrize("lr", ["make", "read"])
def test_items_are_whole_images(lr: str) -> None:
    data = make(test=["Set5"], lr=lr, scale=4, num_workers=1)
    data.setup("test")
    found = [batch for part in data.test_dataloader() for batch in part]
    assert [[item.name for item in batch] for batch in found] == [["baby", "bird"], ["butterfly", "head"], ["woman"]]
    item = found[2][0]
    # the folder's own LR, which is what MATLAB makes
    assert np.array_equal(item.lr, read_image(EMBEDDED / "LR_bicubic/X4/womanx4.png").rgb)
    assert item.hr is not None and np.array_equal(item.hr, read_image(EMBEDDED / "HR/woman.webp").rgb)
    path = "LR_bicubic/X4/womanx4.png" if lr == "read" else "HR/woman.webp"
    assert (item.path, item.mode, item.alpha, item.padded) == (str(EMBEDDED / path), "RGB", None, False)


def test_hr_is_cropped_to_the_scale_and_grey_and_alpha_are_known(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    random = np.random.default_rng(0)
    for name, channels in (("grey", 1), ("grey_alpha", 2), ("clear", 4)):
        array = random.integers(0, 256, (37, 50, channels), dtype=np.uint8).squeeze()
        Image.fromarray(array).save(tmp_path / "mine" / f"{name}.png")
    data = make(root=str(tmp_path), test=["mine"], scale=3, batch_size=4)
    data.setup("test")
    ((items,),) = (list(part) for part in data.test_dataloader())
    assert [(item.name, item.mode, item.alpha is not None) for item in items] == [
        ("clear", "RGBA", True),
        ("grey", "L", False),
        ("grey_alpha", "LA", True),
    ]
    for item in items:
        whole = read_image(item.path)
        assert np.array_equal(item.hr, whole.rgb[:36, :48])
        assert np.array_equal(item.lr, imresize(whole.rgb[:36, :48], 1 / 3))
        if item.alpha is not None and whole.alpha is not None:
            assert np.array_equal(item.alpha, imresize(whole.alpha[:36, :48], 1 / 3))


def test_predict_takes_a_folder_its_hr_or_the_test_sets() -> None:
    def names(data: SRDataModule) -> list[list[tuple[str, bool]]]:
        data.setup("predict")
        parts: list[list[list[Item]]] = [list(part) for part in data.predict_dataloader()]  # type: ignore[arg-type]
        return [[(item.name, item.hr is not None) for batch in part for item in batch] for part in parts]

    folder = str(EMBEDDED / "LR_bicubic" / "X2")
    alone = make(images=folder, test_size=2)
    # what somebody wants upscaled is upscaled, however short the tests are
    assert names(alone) == [[(f"{n}x2", False) for n in ("baby", "bird", "butterfly", "head", "woman")]]
    assert alone.predict_names == (folder,)
    assert all(hr for _, hr in names(make(images=folder, hr=str(EMBEDDED / "HR")))[0])
    sets = make(test_size=2)
    assert names(sets) == [[("baby", True), ("bird", True)], [("Ubunchu_ch13_p01", True)]]
    assert sets.predict_names == sets.test_names


def test_sets_are_joined_limited_and_their_faults_told(tmp_path: Path, caplog: Log) -> None:
    place(tmp_path, *(f"a/{c}.png" for c in "uvw"), "b/x.png")
    low(tmp_path, "a/small.png")
    (tmp_path / "b" / "y.png").write_text("words")
    options: dict[str, Any] = {"root": str(tmp_path), "train": ["a", "b"], "val": ["b"], "repeat": 3}
    with pytest.raises(InputError, match=r"small\.png must have at least 32x32 pixels .*, got 24x18"):
        make(**options).setup("fit")
    data = make(**options, skip_bad=True)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert len(data.splits["train"][0]) == 12 and len(data.splits["val"][0]) == 1 and data.val_names == ("b",)
    assert "a: 1 of 4 images skipped, the first because image" in caplog.text
    assert list(data.skipped["a"]) == ["small"] and list(data.skipped["b"]) == ["y"]
    fewer = make(**options, skip_bad=True, train_size=2)
    fewer.setup("fit")
    assert len(fewer.splits["train"][0]) == 6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train": []}, r"data\.train must be one or several different sets, got \[\]"),
        ({"test": ["Set5", "Set5"]}, r"data\.test must be .*, got \['Set5', 'Set5'\]"),
        ({"scale": 1}, r"data\.scale must be a whole number of at least 2, got 1"),
        ({"batch_size": 0}, r"data\.batch_size must be .*, got 0"),
        ({"repeat": 0}, r"data\.repeat must be .*, got 0"),
        ({"patch": 36}, r"data\.patch must be a multiple of 8 and of the scale 2, got 36"),
        ({"patch": 32, "scale": 3}, r"data\.patch must be a multiple of 8 and of the scale 3, got 32"),
        ({"lr": "guess"}, r"data\.lr must be one of make, read, got 'guess'"),
        ({"hr": "folder"}, r"data\.hr must be given with data\.images, got data\.hr=folder alone"),
        ({"root": "nowhere"}, "nowhere must have a folder manga-like-train"),
        ({"patch": 512}, r"bird\.webp must have at least 512x512 pixels .*, got 288x288"),
        ({"lr": "read"}, r"manga-like-train.* must have LR images of scale 2"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make(**options).setup("fit")
