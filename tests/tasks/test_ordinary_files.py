"""Image files as people have them: hidden ones and folders, every ending, 16 bits, and none that is replaced."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import (
    SUFFIXES,
    check_none_replaced,
    is_image,
    list_images,
    read_image_size,
    read_text,
    to_8_bits,
)
from tasks.classification.synsets import SynsetFolder, load_image
from tests.helpers.log import Log


def folder(root: Path, *names: str) -> Path:
    for part in ("train", "val"):
        for name in names:
            path = root / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path, format="JPEG")
    return root


def test_hidden_files_and_folders_are_neither_classes_nor_images(tmp_path: Path) -> None:
    root = folder(tmp_path, "cat/a.jpg", "cat/b.Webp", "dog/c.JPEG", "dog/d.jfif", ".ipynb_checkpoints/e.jpg")
    for part in ("train", "val"):
        (root / part / "cat" / "._a.jpg").write_bytes(b"resource fork")
        (root / part / "dog" / ".DS_Store").write_bytes(b"")
        (root / part / ".DS_Store").write_bytes(b"")
    data = SynsetFolder(str(root), train=True, num_classes=2)
    assert data.class_to_idx == {"cat": 0, "dog": 1}
    assert [(Path(path).name, label) for path, label in data.samples] == [
        *(("a.jpg", 0), ("b.Webp", 0), ("c.JPEG", 1), ("d.jfif", 1)),
    ]
    assert all(data[i][0].size == (8, 8) for i in range(4))


def test_a_folder_of_hidden_images_alone_is_an_empty_class(tmp_path: Path) -> None:
    root = folder(tmp_path, "cat/a.jpg", "dog/._a.jpg")
    with pytest.raises(FileNotFoundError, match="dog"):
        SynsetFolder(str(root), train=True, num_classes=2)


def test_every_image_ending_is_one_that_pillow_reads() -> None:
    known = Image.registered_extensions()
    assert {suffix for suffix in SUFFIXES if known.get(suffix) not in Image.OPEN} == set()
    assert is_image("A.JPG") and not is_image(".jpg") and not is_image("a.txt") and not is_image("x/.a.png")


@pytest.mark.parametrize("kind", ["png", "tif", "jp2"])
def test_white_is_white_in_16_bits(tmp_path: Path, kind: str) -> None:
    levels = np.array([[0, 256, 257, 32768], [65535, 65280, 128, 127]], np.uint16)
    path = tmp_path / f"grey.{kind}"
    Image.fromarray(levels).save(path, **({"irreversible": False} if kind == "jp2" else {}))
    image = load_image(str(path))
    assert image.mode == "RGB"
    assert (np.asarray(image)[..., 0] == np.rint(levels / 257)).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "deep.tif"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(
        InputError, match=rf"pixels of image .*deep\.tif must have 8 or 16 bits, got 32 \(mode {mode}\)"
    ):
        load_image(str(path))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_left_alone(mode: str) -> None:
    image = Image.new(mode, (4, 4))
    assert to_8_bits(image) is image


def test_files_of_a_folder(tmp_path: Path, caplog: Log) -> None:
    for name in ("b.PNG", "a.gif", ".a.png", "notes.md", "list.csv"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    with caplog.at_level("INFO"):
        assert [path.name for path in list_images(tmp_path, report_others=True)] == ["a.gif", "b.PNG"]
    assert "2 files are not images, left out: list.csv, notes.md" in caplog.text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_that_of_the_image_as_it_is_seen(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (9, 5)).save(tmp_path / "a", format=kind, exif=exif)
    assert read_image_size(tmp_path / "a") == ((5, 9) if orientation == 6 else (9, 5))


DAMAGE: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: data[:-100], "is cut off before its end"),
    (lambda data: b"", "cannot be read as an image"),
    (lambda data: b"GIF89a", "cannot be read as an image"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE)
def test_damaged_images_are_named(tmp_path: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    path = tmp_path / "a.jpg"
    Image.effect_noise((90, 50), 100).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"image .*a\.jpg {says}"):
        read_image_size(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_lose_their_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("größe\n".encode(encoding))
    assert read_text(tmp_path / "a.txt", "list") == "größe\n"


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("größe\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"list .*a\.txt must be text in UTF-8, got other bytes"):
        read_text(tmp_path / "a.txt", "list")


def test_no_prediction_may_replace_an_image_of_any_other(tmp_path: Path) -> None:
    read = [tmp_path / "a" / "x.jpg", tmp_path / "b" / "y.png"]
    (tmp_path / "out").symlink_to(tmp_path / "b")  # the same folder by another name
    for image in read:
        image.parent.mkdir()
        image.touch()
    check_none_replaced([(tmp_path / "a" / "x.png", read[0]), (tmp_path / "out" / "x.png", read[0])], read)
    linked = tmp_path / "out" / "y.png"
    for file, found in ((linked, read[1]), (read[1], linked)):
        says = rf"the prediction of {read[0]} would replace {found}: set model\.predictions"
        with pytest.raises(InputError, match=says):
            check_none_replaced([(tmp_path / "a" / "x.png", read[0]), (file, read[0])], [read[0], found])
