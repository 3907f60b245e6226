"""Keep small images whole on the device that trains: cropped, mirrored and normalised there, a batch at a time.

A loader that decodes and crops image by image takes longer for CIFAR-10 than a small network takes to train on it. Here
the loader gives only indices, and the images are gathered from one uint8 tensor. The random numbers of a batch come
from the seed of its first item, on the CPU: no worker, device or resumed run changes them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import v2

from esbnn_core.errors import InputError
from esbnn_core.lit.data import IGNORE, mix_seed, seeded

_BATCH, _MIX = 2, 3
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Keys(NamedTuple):
    """What the loader gives for a batch.

    Attributes:
        places: in the split, int64 (B,), -1 for padding.
        seed: of the batch, int64 (1,).
        part: of the data: train, val or test.
    """

    places: Tensor
    seed: Tensor
    part: str


class KeyBatches(Dataset[Any]):
    """Turns EpochSampler's (index, seed) pairs into Keys; the loader needs collate_fn=as_it_is.

    Args:
        size: number of images of the part.
        part: name of the part.
    """

    def __init__(self, size: int, part: str) -> None:
        self.size, self.part = size, part

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Keys:
        """torch's hook for a whole batch."""
        return Keys(torch.tensor([index for index, _ in keys]), torch.tensor([keys[0][1]]), self.part)


class ResidentImages:
    """The images of one split as one uint8 tensor (N, C, H, W), and the augmentation of a batch of them.

    Args:
        items: gives (PIL image, label) for an index, all of one size.
        mean: of the normalisation, for values in [0, 1].
        std: of the normalisation.
        pad: pixels of black around a training image before it is cropped to its size, 0 for no crop.
        flip: probability of a mirror.
        size: side of the images that a batch has, scaled after crop and mirror, or None for their own.
        mix: mixture of a training batch and its labels, or None.

    Raises:
        InputError: images of several sizes.
    """

    def __init__(
        self,
        items: Any,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        pad: int = 0,
        flip: float = 0.0,
        size: int | None = None,
        mix: Mix | None = None,
    ) -> None:
        pairs = [items[index] for index in range(len(items))]
        arrays = [np.asarray(image) for image, _ in pairs]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise InputError(
                f"images kept on the device must be of one size, got {shapes[0]} and {shapes[-1]}: set data.on_device "
                f"to false"
            )
        pixels = torch.from_numpy(np.stack(arrays))
        self.pixels = (pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)).contiguous()
        self.labels = torch.tensor([int(label) for _, label in pairs])
        self.mean, self.std = list(mean), list(std)
        self.pad, self.flip, self.size, self.mix = pad, flip, size, mix

    def batch(self, keys: Keys, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images float32 (B, C, H, W) and labels, int64 (B,) or mixed (B, classes), on `device`.

        The whole split moves there with the first batch.
        """
        if self.pixels.device != device:
            self.pixels, self.labels = self.pixels.to(device), self.labels.to(device)
        places, seed = keys.places.to(device), int(keys.seed)
        images = self._crop(self.pixels[places.clamp(min=0)], seed)
        if self.size is not None:
            images = v2.functional.resize(images, [self.size, self.size], antialias=True)
        images = v2.functional.normalize(v2.functional.to_dtype(images, torch.float32, True), self.mean, self.std)
        labels = torch.where(places < 0, IGNORE, self.labels[places.clamp(min=0)])
        if self.mix is None:
            return images, labels
        with seeded(mix_seed(seed, _MIX)):
            return self.mix(images, labels)

    def _crop(self, pixels: Tensor, seed: int) -> Tensor:
        """Crop and mirror every image of uint8 (B, C, H, W) on its own."""
        if not self.pad and not self.flip:
            return pixels
        number, channels, height, width = pixels.shape
        generator = torch.Generator().manual_seed(mix_seed(seed, _BATCH))
        corner = torch.randint(2 * self.pad + 1, (2, number, 1), generator=generator)
        mirrored = torch.rand(number, 1, generator=generator) < self.flip
        across = torch.arange(width).expand(number, width)
        rows = (corner[0] + torch.arange(height)).to(pixels.device)
        columns = (corner[1] + torch.where(mirrored, across.flip(1), across)).to(pixels.device)
        padded = F.pad(pixels, (self.pad,) * 4)
        return padded[
            torch.arange(number, device=pixels.device)[:, None, None, None],
            torch.arange(channels, device=pixels.device)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
