"""Image files of every mode: the pixels are those of the file, and a result can have its kind again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import list_images, read_image_size
from tasks.super_resolution.comparison_sheet import write_png
from tasks.super_resolution.image_files import convert_image, read_image
from tasks.super_resolution.pipeline_images import to_pil

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = RANDOM.integers(0, 256, (6, 9), dtype=np.uint8)


def saved(tmp_path: Path, image: Image.Image, **options: object) -> Path:
    image.save(tmp_path / "a.png", **options)  # type: ignore[arg-type]
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (GREY, "L"),
        (COLOUR, "RGB"),
        (np.dstack([GREY, ALPHA]), "LA"),
        (np.dstack([COLOUR, ALPHA]), "RGBA"),
    ],
)
def test_eight_bits_come_as_they_are(tmp_path: Path, array: np.ndarray, mode: str) -> None:
    picture = read_image(saved(tmp_path, Image.fromarray(array)))
    assert picture.mode == mode and picture.rgb.dtype == np.uint8 and picture.rgb.shape == (6, 9, 3)
    colours = array.reshape(6, 9, -1)
    channels = 1 if mode[0] == "L" else 3
    assert np.array_equal(picture.rgb, np.broadcast_to(colours[..., :channels], (6, 9, 3)))
    if picture.alpha is None:
        assert mode in ("L", "RGB")
    else:
        assert mode in ("LA", "RGBA") and np.array_equal(picture.alpha, ALPHA)


def test_palettes_are_spelled_out(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).quantize(16)
    plain = np.array(image.convert("RGB"))
    picture = read_image(saved(tmp_path, image))
    assert picture.mode == "RGB" and picture.alpha is None and np.array_equal(picture.rgb, plain)
    clear = int(np.array(image)[2, 3])
    see_through = read_image(saved(tmp_path, image, transparency=clear))
    assert see_through.mode == "RGBA" and see_through.alpha is not None and np.array_equal(see_through.rgb, plain)
    assert np.array_equal(see_through.alpha, np.where(np.array(image) == clear, 0, 255))


def test_one_bit_and_sixteen_are_grey_in_eight(tmp_path: Path) -> None:
    picture = read_image(saved(tmp_path, Image.fromarray(GREY > 127)))
    assert picture.mode == "L" and np.array_equal(picture.rgb[..., 0], np.where(GREY > 127, 255, 0))
    deep = GREY.astype(np.uint16) * 257
    deep[0, :3] = 0, 65535, 257 * 100 + 129
    picture = read_image(saved(tmp_path, Image.fromarray(deep)))
    assert picture.mode == "L" and picture.rgb[0, :3, 1].tolist() == [0, 255, 101]
    assert np.array_equal(picture.rgb[1:, :, 2], GREY[1:])


def test_print_colours_and_what_lies_on_its_side(tmp_path: Path) -> None:
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    assert convert_image(cmyk).mode == "RGB" and np.array_equal(convert_image(cmyk).rgb, np.array(cmyk.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(COLOUR), exif=exif)
    assert read_image_size(path) == (6, 9)
    assert np.array_equal(read_image(path).rgb, np.rot90(COLOUR, -1))


def profile_of(colours: bytes) -> bytes:
    """A real sRGB profile, under the name of other colours; the second in which it was made stands in it."""
    whole = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return whole[:16] + colours + whole[20:]


@pytest.mark.parametrize(
    ("mode", "colours", "kept"),
    [
        *(("RGB", b"RGB ", True), ("RGBA", b"RGB ", True), ("P", b"RGB ", True), ("L", b"GRAY", True)),
        *(("LA", b"GRAY", True), ("I;16", b"GRAY", True), ("L", b"RGB ", False), ("RGB", b"CMYK", False)),
    ],
)
def test_a_result_keeps_profile_and_density_where_they_are_true(
    tmp_path: Path, mode: str, colours: bytes, kept: bool
) -> None:
    array = {"L": GREY, "LA": np.dstack([GREY, ALPHA]), "I;16": GREY.astype(np.uint16), "P": COLOUR, "RGB": COLOUR}
    image = Image.fromarray(array.get(mode, np.dstack([COLOUR, ALPHA])))
    image = image.quantize(16) if mode == "P" else image
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = profile_of(colours)
    source = read_image(saved(tmp_path, image, icc_profile=profile, dpi=(300, 150), exif=exif))
    assert source.rgb.shape == (9, 6, 3)
    tensor = torch.rand(3, 18, 12)
    write_png(tmp_path / "out.png", to_pil(tensor, source.mode, source.alpha, 2, source.info))
    with Image.open(tmp_path / "out.png") as out:
        assert out.size == (12, 18) and not out.getexif()  # turned once
        assert out.info.get("icc_profile") == (profile if kept else None)
        assert [round(value) for value in out.info["dpi"]] == [300, 150]


def test_a_density_that_is_none_is_left_out() -> None:
    image = Image.fromarray(COLOUR)
    for dpi in ((0, 0), (float("nan"), 72), ("x", 1), 72, (72, -1)):
        image.info["dpi"] = dpi
        assert convert_image(image).info == {}
    assert convert_image(Image.fromarray(COLOUR).convert("CMYK")).info == {}


def test_what_is_no_image_is_one_sentence(tmp_path: Path) -> None:
    for read in (read_image, read_image_size):
        with pytest.raises(InputError, match=r"b\.png does not exist"):
            read(tmp_path / "b.png")
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(InputError, match=r"b\.png cannot be read as an image"):
        read_image_size(tmp_path / "b.png")
    whole = saved(tmp_path, Image.fromarray(COLOUR.repeat(9, 0).repeat(9, 1))).read_bytes()
    for name, picture in (("c.png", whole[:-30]), ("d.png", whole[:300] + bytes(600) + whole[900:])):
        (tmp_path / name).write_bytes(picture)
        with pytest.raises(InputError, match=rf"{name} cannot be read to its end"):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match=r"c\.png is cut off"):
        read_image_size(tmp_path / "c.png")
    for mode in ("I", "F"):
        with pytest.raises(InputError, match="must have 8 or 16 bits, got 32"):
            convert_image(Image.new(mode, (3, 3)))


def test_a_folder_s_images_are_its_visible_image_files_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "._a.jpg", "LICENSE.txt", "c.webp", "d"):
        (tmp_path / name).write_text("")
    (tmp_path / "e.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.webp"]
