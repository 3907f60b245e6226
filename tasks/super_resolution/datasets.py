"""Items of super-resolution: random patches to train on, whole images to upscale."""

import random
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tasks.super_resolution.folders import Pair
from tasks.super_resolution.image_files import Picture, read_picture
from tasks.super_resolution.patches import cut, mod_crop
from tasks.super_resolution.resize import imresize

Pixels = NDArray[np.uint8]


@dataclass
class Item:
    """One image to upscale.

    name: without the ending of its file. dataset: its set, or the folder of `images`. path: of the LR file, or of the
    HR file that LR was made of. lr: uint8 (h, w, 3), RGB. hr: uint8 (scale * h, scale * w, 3) or None. mode: "L", "LA",
    "RGB" or "RGBA", what the file holds. alpha: uint8 (h, w), of the modes that have it. padded: true of a stand-in
    where the processes do not divide the set, to be left out of every result.
    """

    name: str
    dataset: str
    path: str
    lr: Pixels
    hr: Pixels | None
    mode: str
    alpha: Pixels | None
    padded: bool


class TrainItems(Dataset[dict[str, Tensor]]):
    """Random patches of images; items are asked for by EpochSampler's (index, seed), and drawn from that seed alone.

    Args:
        pairs: images. scale, patch: the HR side over the LR side, and the patches' side in HR pixels.
        repeat: patches of each image in an epoch. cache: bytes of decoded images to keep, the latest ones.
    """

    def __init__(self, pairs: list[Pair], scale: int, patch: int, repeat: int, cache: int) -> None:
        self.pairs, self.scale, self.patch, self.repeat, self.cache = pairs, scale, patch, repeat, cache
        self._kept: OrderedDict[int, tuple[Pixels, Pixels | None]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self.pairs) * self.repeat

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = key
        hr, lr = self._images(index % len(self.pairs))
        draw, side = random.Random(seed), self.patch // self.scale
        top, left = (draw.randint(0, hr.shape[axis] // self.scale - side) for axis in (0, 1))
        turns, mirror = draw.randrange(4), draw.randrange(2)
        patch, condition = cut(hr, lr, self.scale, top, left, side)
        return {
            "hr": _tensor(patch, turns, mirror).float() / 255,
            "condition": _tensor(condition, turns, mirror),
        }

    def _images(self, place: int) -> tuple[Pixels, Pixels | None]:
        """HR, cropped to a multiple of the scale, and LR, None where it is to be made."""
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        pair = self.pairs[place]
        assert pair.hr is not None
        hr = mod_crop(read_picture(pair.hr).rgb, self.scale)
        both = hr, None if pair.lr is None else read_picture(pair.lr).rgb
        self._kept[place] = both
        self._size += _bytes(both)
        while self._size > self.cache:
            self._size -= _bytes(self._kept.popitem(last=False)[1])
        return both


class EvalItems(Dataset[Item]):
    """Whole images of one set, HR cropped to a multiple of the scale; a padded one (index -1) is the first again."""

    def __init__(self, pairs: list[Pair], name: str, scale: int) -> None:
        self.pairs, self.name, self.scale = pairs, name, scale

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        pair = self.pairs[max(key[0], 0)]
        high = None if pair.hr is None else read_picture(pair.hr)
        if pair.lr is not None:
            low = read_picture(pair.lr)
        else:
            assert high is not None
            alpha = None if high.alpha is None else self._shrunk(high.alpha)
            low = Picture(self._shrunk(high.rgb), high.mode, alpha)
        hr = None if high is None else np.ascontiguousarray(mod_crop(high.rgb, self.scale))
        path = str(pair.lr or pair.hr)
        return Item(pair.name, self.name, path, low.rgb, hr, low.mode, low.alpha, padded=key[0] < 0)

    def _shrunk(self, image: Pixels) -> Pixels:
        return imresize(mod_crop(image, self.scale), 1 / self.scale)


def _tensor(patch: NDArray[np.generic], turns: int, mirror: int) -> Tensor:
    """(C, H, W) of (H, W, C), mirrored and turned: one of the eight ways of the square."""
    turned = np.rot90(patch[:, ::-1] if mirror else patch, turns)
    return torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1)))


def _bytes(both: tuple[Pixels, Pixels | None]) -> int:
    return sum(image.nbytes for image in both if image is not None)
