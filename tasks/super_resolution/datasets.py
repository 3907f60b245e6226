"""Items of super-resolution: random patches to train on, whole images to upscale."""

import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tasks.super_resolution.folders import Pair
from tasks.super_resolution.image_files import EightBitImage, read_image
from tasks.super_resolution.patches import crop_to_multiple, cut_patch
from tasks.super_resolution.resize import imresize

Pixels = NDArray[np.uint8]


@dataclass
class Item:
    """One image to upscale.

    Attributes:
        name: of its file, without suffix.
        dataset: its set, or the folder of `images`.
        path: of the LR file, or of the HR file that LR was made from.
        lr: uint8 (h, w, 3), RGB.
        hr: uint8 (scale * h, scale * w, 3), or None.
        mode: of the file, "L", "LA", "RGB" or "RGBA".
        alpha: uint8 (h, w), None for a mode without alpha.
        padded: whether it only fills up a set that the processes do not divide, and is left out of every result.
        info: of the file that LR comes from, as EightBitImage's.
    """

    name: str
    dataset: str
    path: str
    lr: Pixels
    hr: Pixels | None
    mode: str
    alpha: Pixels | None
    padded: bool
    info: dict[str, Any]


class TrainItems(Dataset[dict[str, Tensor]]):
    """Random patches of images; the key of an item is EpochSampler's (index, seed), and only the seed fixes its draw.

    Args:
        pairs: images.
        scale: the HR side over the LR side.
        patch: side of the patches in HR pixels.
        repeat: patches of each image in an epoch.
        cache: bytes of decoded images to keep, the latest ones.
    """

    def __init__(self, pairs: list[Pair], scale: int, patch: int, repeat: int, cache: int) -> None:
        self.pairs, self.scale, self.patch, self.repeat, self.cache = pairs, scale, patch, repeat, cache
        self._cached: OrderedDict[int, tuple[Pixels, Pixels | None]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self.pairs) * self.repeat

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = key
        hr, lr = self._images(index % len(self.pairs))
        draw, side = random.Random(seed), self.patch // self.scale
        top, left = (draw.randint(0, hr.shape[axis] // self.scale - side) for axis in (0, 1))
        turns, mirror = draw.randrange(4), draw.randrange(2)
        patch, condition = cut_patch(hr, lr, self.scale, top, left, side)
        return {
            "hr": _tensor(patch, turns, mirror).float() / 255,
            "condition": _tensor(condition, turns, mirror),
        }

    def _images(self, place: int) -> tuple[Pixels, Pixels | None]:
        """HR, cropped to a multiple of the scale, and LR, None if it is to be made."""
        if place in self._cached:
            self._cached.move_to_end(place)
            return self._cached[place]
        pair = self.pairs[place]
        assert pair.hr is not None
        hr = crop_to_multiple(read_image(pair.hr).rgb, self.scale)
        both = hr, None if pair.lr is None else read_image(pair.lr).rgb
        self._cached[place] = both
        self._size += _count_bytes(both)
        while self._size > self.cache:
            self._size -= _count_bytes(self._cached.popitem(last=False)[1])
        return both


class EvalItems(Dataset[Item]):
    """Whole images of one set, HR cropped to a multiple of the scale; a padded one (index -1) is the first again."""

    def __init__(self, pairs: list[Pair], name: str, scale: int) -> None:
        self.pairs, self.name, self.scale = pairs, name, scale

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        pair = self.pairs[max(key[0], 0)]
        high = None if pair.hr is None else read_image(pair.hr)
        if pair.lr is not None:
            low = read_image(pair.lr)
        else:
            assert high is not None
            alpha = None if high.alpha is None else self._shrink(high.alpha)
            low = EightBitImage(self._shrink(high.rgb), high.mode, alpha, high.info)
        hr = None if high is None else np.ascontiguousarray(crop_to_multiple(high.rgb, self.scale))
        path = str(pair.lr or pair.hr)
        padded = key[0] < 0
        return Item(pair.name, self.name, path, low.rgb, hr, low.mode, low.alpha, padded=padded, info=low.info)

    def _shrink(self, image: Pixels) -> Pixels:
        return imresize(crop_to_multiple(image, self.scale), 1 / self.scale)


def _tensor(patch: NDArray[np.generic], turns: int, mirror: int) -> Tensor:
    """(H, W, C) -> (C, H, W), mirrored and turned: one of the eight symmetries of the square."""
    turned = np.rot90(patch[:, ::-1] if mirror else patch, turns)
    return torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1)))


def _count_bytes(both: tuple[Pixels, Pixels | None]) -> int:
    return sum(image.nbytes for image in both if image is not None)
