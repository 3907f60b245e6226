"""Images of every kind in all three tasks: the right pixels, or one sentence that names the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from esbnn_core import InputError
from esbnn_core.lit.image_files import list_images, read_image_size
from tasks.classification.predictions import FolderImages
from tasks.classification.synsets import load_image
from tasks.detection import pipelines
from tasks.detection.data import DetectionItems
from tasks.super_resolution.image_files import read_image
from tests.helpers.broken_images import SIZE, broken, pixels, readable, write_places

LOAD = [{"type": "LoadImageFromFile"}, {"type": "PackDetInputs", "meta_keys": ("ori_shape",)}]


def detect(path: Path) -> Any:
    """RGB as detection's loader gives it: the size is of the header, the pixels are of OpenCV."""
    width, height = read_image_size(path)
    record = {"img_path": str(path), "width": width, "height": height, "instances": []}
    items = DetectionItems([record], pipelines.compose(LOAD), random=False)
    return items[(0, 0)]["inputs"].numpy()[::-1].transpose(1, 2, 0)


READERS: dict[str, Callable[[Path], Any]] = {
    "classification": lambda path: np.array(load_image(str(path))),
    "detection": detect,
    "super_resolution": lambda path: read_image(path).rgb,
}


@pytest.mark.parametrize("task", READERS)
def test_odd_images_have_the_right_pixels(tmp_path: Path, task: str) -> None:
    for name, data in readable().items():
        (tmp_path / name).write_bytes(data)
        want = pixels() if not name.startswith("grey") else np.repeat(pixels(grey=True)[..., None], 3, axis=2)
        found = READERS[task](tmp_path / name)
        # a file of 16 bits is rounded by one library and cut by another: both give v of 257 * v
        assert found.shape == want.shape and np.array_equal(found, want), name
    assert len(list_images(tmp_path)) == len(readable())


@pytest.mark.parametrize("task", READERS)
def test_broken_images_are_one_sentence(tmp_path: Path, task: str) -> None:
    paths = write_places(tmp_path)
    for name, data in broken().items():
        (tmp_path / name).write_bytes(data)
        paths.append(tmp_path / name)
    assert list_images(tmp_path) == sorted(paths)  # none is left out in silence
    for path in paths:
        with pytest.raises(InputError) as caught:
            READERS[task](path)
        said = str(caught.value)
        assert path.name in said and "\n" not in said and len(said) - len(str(path)) < 300, (path.name, said)


def test_an_image_that_opencv_raises_on_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it did once, in place of None: of a damaged file it may take a size from memory that nothing was read into."""
    Image.new("RGB", SIZE).save(tmp_path / "a.png")

    def read(*_: Any) -> None:
        raise cv2.error("pixels <= CV_IO_MAX_IMAGE_PIXELS")

    monkeypatch.setattr(cv2, "imdecode", read)
    monkeypatch.setattr(cv2, "imread", read)
    with pytest.raises(InputError, match=r"image .*a\.png cannot be read by OpenCV, it is damaged"):
        detect(tmp_path / "a.png")


def test_a_photograph_is_turned_before_it_is_classified(tmp_path: Path) -> None:
    """A folder of one's own; what networks are trained and measured on is read in torchvision's way."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels()).save(tmp_path / "photo.png", exif=turned)
    image, _ = FolderImages(tmp_path, 3, None)[0]
    assert np.array_equal(np.array(image), np.rot90(pixels(), -1)) and image.size == SIZE[::-1]
    assert load_image(str(tmp_path / "photo.png")).size == SIZE
