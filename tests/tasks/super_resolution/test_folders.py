"""Layouts as people have them: the right files are paired, and every fault is one sentence that names the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from esbnn_core.errors import InputError
from tasks.super_resolution.folders import read_images, read_set
from tests.helpers.super_resolution.images import EMBEDDED, low, place

ROOT = EMBEDDED.parent


LAYOUTS: dict[str, tuple[str, list[str], list[str]]] = {
    # set, HR files, LR files in the same order, below the root
    "EDSR": ("Set5", ["Set5/HR/a.png", "Set5/HR/b.png"], ["Set5/LR_bicubic/X2/ax2.png", "Set5/LR_bicubic/X2/bx2.png"]),
    "benchmark": ("Set14", ["benchmark/Set14/HR/a.png"], ["benchmark/Set14/LR_bicubic/X2/ax2.png"]),
    "LR/x2": ("Urban100", ["Urban100/HR/img_001.png"], ["Urban100/LR/x2/img_001.png"]),
    "alias": ("B100", ["BSD100/HR/3096.jpg"], ["BSD100/LR_bicubic/X2/3096x2.png"]),
    "BasicSR": ("Set5", ["Set5/GTmod12/a.png"], ["Set5/LRbicx2/a.png"]),
    "SelfExSR": (
        "Urban100",
        ["Urban100/image_SRF_2/img_001_SRF_2_HR.png"],
        ["Urban100/image_SRF_2/img_001_SRF_2_LR.png"],
    ),
    "Manga109": ("Manga109", ["Manga109/HR/ARMS.png"], ["Manga109/LR_bicubic/X2/ARMS_LRBI_x2.png"]),
    "Manga109 flat": ("Manga109", ["Manga109/ARMS.png"], ["Manga109/ARMS_LRBI_x2.png"]),
    "Manga109 X2": ("Manga109", ["Manga109/ARMS.png"], ["Manga109/X2/ARMSx2.png"]),
    "Manga109 RCAN": ("Manga109", ["Manga109/HR/ARMS_HR_x2.png"], ["Manga109/LRBI/x2/ARMS_LRBI_x2.png"]),
    "DIV2K": (
        "DIV2K",
        ["DIV2K/DIV2K_train_HR/0001.png"],
        ["DIV2K/DIV2K_train_LR_bicubic/X2/0001x2.png"],
    ),
    "Flickr2K": ("Flickr2K", ["Flickr2K/Flickr2K_HR/1.png"], ["Flickr2K/Flickr2K_LR_bicubic/X2/1x2.png"]),
    "DIV2K_train_HR": ("DIV2K_train_HR", ["DIV2K_train_HR/0001.png"], ["DIV2K_train_LR_bicubic/X2/0001x2.png"]),
    "DIV2K beside": ("DIV2K", ["DIV2K_train_HR/0001.png"], ["DIV2K_train_LR_bicubic/X2/0001x2.png"]),
    "DF2K": ("DF2K", ["DF2K/HR/0001.png"], ["DF2K/LR_bicubic/X2/0001x2.png"]),
    "DF2K_train_HR": ("DF2K", ["DF2K_train_HR/0001.png"], ["DF2K_train_LR_bicubic/X2/0001x2.png"]),
    "DF2K of two": (
        "DF2K",
        ["DIV2K/DIV2K_train_HR/0001.png", "Flickr2K/HR/1.png"],
        ["DIV2K/DIV2K_train_LR_bicubic/X2/0001x2.png", "Flickr2K/LR_bicubic/X2/1x2.png"],
    ),
    "any folder": (
        "mine/train",
        ["mine/train/a.webp", "mine/train/x.JPG"],
        ["mine/train/LR/a.png", "mine/train/LR/x.png"],
    ),
    "both scales in one": ("mine", ["mine/HR/a.png"], ["mine/LR/a_x2.png"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read(tmp_path: Path, layout: str) -> None:
    name, high, below = LAYOUTS[layout]
    place(tmp_path, *high)
    low(tmp_path, *below)
    if layout == "both scales in one":
        place(tmp_path, "mine/LR/a_x4.png", size=(12, 9))
    if layout == "Manga109 flat":
        place(tmp_path, "Manga109/ARMS_LRBI_x4.png", size=(12, 9))
    if layout == "SelfExSR":
        place(tmp_path, "Urban100/image_SRF_2/img_001_SRF_2_bicubic.png", "Urban100/image_SRF_4/img_001_SRF_4_HR.png")
    made, read = read_set(tmp_path, name, 2), read_set(tmp_path, name, 2, read_lr=True)
    assert [pair.hr for pair in made.pairs] == [pair.hr for pair in read.pairs] == [tmp_path / n for n in high]
    assert [pair.lr for pair in read.pairs] == [tmp_path / n for n in below]
    assert all(pair.lr is None for pair in made.pairs) and not read.skipped
    # of another scale there is nothing, or what does not fit
    with pytest.raises(InputError, match=r"must have LR images of scale 3|must have a folder|pixels at scale 3"):
        read_set(tmp_path, name, 3, read_lr=True)


def test_names_are_those_that_hr_and_lr_share() -> None:
    pairs = read_set(ROOT, "Set5", 4, read_lr=True).pairs
    assert [pair.name for pair in pairs] == ["baby", "bird", "butterfly", "head", "woman"]
    assert pairs[0].lr == EMBEDDED / "LR_bicubic" / "X4" / "babyx4.png"
    assert len(read_set(ROOT, "manga-like-train", 2).pairs) == 2 and len(read_set(ROOT, "manga-like", 2).pairs) == 1


def test_hr_that_looks_like_lr_is_hr_unless_it_is_paired(tmp_path: Path) -> None:
    place(tmp_path, "HR/matrix2.png", "HR/box.png", "HR/boxx2.png")
    assert [pair.name for pair in read_set(tmp_path, "HR", 2).pairs] == ["box", "matrix2"]
    low(tmp_path, "HR_LR_bicubic/X2/matrix2.png", "HR_LR_bicubic/X2/boxx2.png")
    assert [p.lr and p.lr.stem for p in read_set(tmp_path, "HR", 2, read_lr=True).pairs] == ["boxx2", "matrix2"]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    place(tmp_path, *(f"mine/HR/{c}.png" for c in "abc"))
    low(tmp_path, *(f"mine/LR_bicubic/X2/{c}x2.png" for c in "abc"))
    return tmp_path


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (lambda m: (m / "HR/a.png").write_text("words"), r"HR/a\.png cannot be read as an image"),
    "empty": (lambda m: (m / "HR/a.png").write_bytes(b""), r"HR/a\.png cannot be read as an image"),
    "cut off": (
        lambda m: (m / "HR/a.png").write_bytes((m / "HR/b.png").read_bytes()[:-14]),
        r"HR/a\.png is cut off",
    ),
    "LR is no image": (lambda m: (m / "LR_bicubic/X2/ax2.png").write_text("words"), r"ax2\.png cannot be read"),
    "no LR": (lambda m: (m / "LR_bicubic/X2/ax2.png").unlink(), r"HR/a\.png has no LR image ax2 in .*X2: place it"),
    "no HR": (lambda m: (m / "HR/a.png").unlink(), r"LR image .*X2/ax2\.png has no HR image a in .*HR"),
    "LR of another size": (
        lambda m: place(m, "LR_bicubic/X2/ax2.png", size=(24, 17)),
        r"LR image .*ax2\.png must have 24x18 pixels at scale 2, got 24x17 for the 48x36 of HR image .*a\.png",
    ),
    "HR of another size": (
        lambda m: place(m, "HR/a.png", size=(50, 36)),
        r"must have 25x18 pixels .* for the 50x36 of HR image .*a\.png",
    ),
    "one name twice": (lambda m: place(m, "HR/a.webp"), r"HR/a\.png and .*HR/a\.webp have the same name, a"),
    "small": (
        lambda m: place(m, "HR/a.png", size=(40, 31)),
        r"a\.png must have at least 32x32 pixels for patches of 32, got 40x31",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_skip_bad_passes_over_it(mine: Path, fault: str) -> None:
    assert len(read_set(mine, "mine", 2, read_lr=True, patch=32).pairs) == 3
    damage, sentence = FAULTS[fault]
    damage(mine / "mine")
    with pytest.raises(InputError, match=sentence) as error:
        read_set(mine, "mine", 2, read_lr=True, patch=32)
    assert "\n" not in str(error.value)
    found = read_set(mine, "mine", 2, read_lr=True, patch=32, skip_bad=True)
    assert found.skipped == {"a": str(error.value)}
    assert [pair.name for pair in found.pairs] == ["b", "c"]


def test_hr_that_the_scale_does_not_divide_is_no_fault(mine: Path) -> None:
    place(mine, "mine/HR/a.png", size=(49, 37))
    assert len(read_set(mine, "mine", 2, read_lr=True).pairs) == 3
    # cropped first, it is one patch wide, and less
    assert len(read_set(mine, "mine", 2, patch=36).pairs) == 3
    place(mine, "mine/HR/a.png", size=(49, 35))
    with pytest.raises(InputError, match="at least 35x35 pixels for patches of 35, got 49x35"):
        read_set(mine, "mine", 2, patch=35)


def test_whole_images_must_leave_room_for_a_window(mine: Path) -> None:
    place(mine, "mine/HR/a.png", size=(40, 15))
    with pytest.raises(InputError, match=r"a\.png must have at least 15x15 pixels for SSIM, got 40x15"):
        read_set(mine, "mine", 2)
    place(mine, "mine/HR/a.png", size=(40, 16))
    assert len(read_set(mine, "mine", 2).pairs) == 3


def test_what_is_missing_as_a_whole_is_one_sentence(mine: Path) -> None:
    with pytest.raises(InputError, match="must have a folder Set5, Set5/HR or Set5_train_HR with images"):
        read_set(mine, "Set5", 2)
    with pytest.raises(InputError, match=r"must have a folder DIV2K, .* for the set DIV2K, got none"):
        read_set(mine, "DF2K", 2)
    with pytest.raises(
        InputError, match=r"must have LR images of scale 4, e\.g\. namex4\.png in LR_bicubic/X4, got none"
    ):
        read_set(mine, "mine", 4, read_lr=True)
    for c in "abc":
        (mine / f"mine/HR/{c}.png").write_text("")
    with pytest.raises(
        InputError, match=r"no image left because all 3 were skipped, the first because .*a\.png cannot"
    ):
        read_set(mine, "mine", 2, skip_bad=True)


def test_any_folder_can_be_upscaled_with_or_without_hr(mine: Path) -> None:
    images, hr = mine / "mine/LR_bicubic/X2", mine / "mine/HR"
    alone = read_images(images, None, 2).pairs
    assert [(p.name, p.hr) for p in alone] == [("ax2", None), ("bx2", None), ("cx2", None)]
    (images / "bx2.png").rename(images / "b.png")
    place(mine, "mine/HR/more.png")
    both = read_images(images, hr, 2).pairs
    assert [(p.name, p.hr) for p in both] == [("ax2", hr / "a.png"), ("b", hr / "b.png"), ("cx2", hr / "c.png")]
    low(mine, "mine/LR_bicubic/X2/new.png")
    with pytest.raises(InputError, match=r"new\.png has no HR image new in .*HR: place it there or unset data\.hr"):
        read_images(images, hr, 2)
    assert len(read_images(images, hr, 2, skip_bad=True).pairs) == 3
    (images / "ax2.png").rename(images / "a.png")
    with pytest.raises(InputError, match=r"a\.png must have 12x9 pixels at scale 4, got 24x18"):
        read_images(images, hr, 4)
    for folder, sentence in ((mine / "none", "does not exist: set data.images"), (mine, "has no image")):
        with pytest.raises(InputError, match=sentence):
            read_images(folder, None, 2)
    with pytest.raises(InputError, match=r"does not exist: set data\.hr"):
        read_images(images, mine / "none", 2)
