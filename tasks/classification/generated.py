"""Images made from nothing, for smoke runs of the ImageNet recipes where there is no ImageNet."""

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

from esbnn_core.lit.data import mix_seed


class GeneratedImages(Dataset[tuple[Image.Image, int]]):
    """Stripes whose angle, width and colour depend on the label, with noise: only for smoke runs without data.

    Image i has label i mod classes. It is made on demand from (train, i), the same every time.

    Args:
        train: 64 images, or 32 others to evaluate.
        classes: number of labels.
        side: of the square images.
    """

    def __init__(self, train: bool, classes: int, side: int) -> None:
        self.train, self.classes, self.side = train, classes, side
        self.targets = [index % classes for index in range(64 if train else 32)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        label = self.targets[index]
        look = torch.rand(3, 2, generator=torch.Generator().manual_seed(mix_seed(label)))
        noise = torch.Generator().manual_seed(mix_seed(int(self.train), index, label))
        angle, stripes = look[0, 0] * torch.pi, 2 + 14 * look[0, 1]
        across = torch.linspace(0, 1, self.side)
        place = across * torch.cos(angle) + across[:, None] * torch.sin(angle)  # (side, side)
        wave = 0.5 + 0.4 * torch.sin(2 * torch.pi * (stripes * place + torch.rand(1, generator=noise)))
        colour = torch.stack([look[1, 0], look[1, 1], look[2, 0]]).view(3, 1, 1)
        image = wave * colour + 0.1 * torch.randn(3, self.side, self.side, generator=noise)
        return to_pil_image(image.clamp(0, 1)), label
