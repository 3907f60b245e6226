"""Small networks whose channels are moved, gated, grouped and normalised in every way that expand_ has a rule for."""

from collections.abc import Callable

import timm
import torch
import torchvision
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from esbnn_core.layers import BinaryConv2d, RSign, SqueezeExcite
from esbnn_core.transforms.binarize import BinaryConfig, binarize_
from esbnn_core.units.conv import BinaryUnit


def conv(inputs: int, outputs: int, kernel: int = 1, **options: int) -> nn.Sequential:
    """A binary convolution and its norm."""
    sign = RSign(inputs)
    binary = BinaryConv2d(inputs, outputs, kernel, padding=kernel // 2, bias=True, activation=sign, **options)
    return nn.Sequential(binary, nn.BatchNorm2d(outputs), nn.PReLU(outputs))


class Net(nn.Module):
    """A stem of 16 channels, an operation, a classifier of `width` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Linear(width, 5)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.stem(x)).mean((2, 3)))


class Dense(Net):
    """As DenseNet: every layer reads all before it, through a norm over runs of several widths."""

    def __init__(self) -> None:
        super().__init__(48)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(4))
        self.convs = nn.ModuleList(conv(16 + 8 * i, 8, 3) for i in range(4))
        self.last = nn.GroupNorm(8, 48)  # needs whole copies

    def between(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(norm(x))], 1)
        return self.last(x)


class Shuffle(nn.Module):
    """As ShuffleNet: half of the channels go by, then both are shuffled by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(8, 8), nn.Conv2d(8, 8, 3, padding=1, groups=8), conv(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        x = torch.cat((one, self.branch(other)), dim=1)
        number, channels, height, width = x.size()
        x = x.view(number, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(number, -1, height, width)


class Shuffles(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.blocks = nn.Sequential(Shuffle(), Shuffle(), Shuffle(), nn.ChannelShuffle(4), conv(16, 16, 3))

    def between(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        first, rest = x[:, : x.shape[1] // 4], x[:, x.shape[1] // 4 :]
        return torch.cat([rest, first], 1)


class Literal(nn.Module):
    """Splits by numbers in its code, so that its inside is nominal."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(self.inside(x), [4, 12], 1)
        return torch.cat([other, one], 1)


class Literals(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.before, self.cut, self.then = conv(16, 16), Literal(), nn.Sequential(conv(16, 16), conv(16, 16))

    def between(self, x: Tensor) -> Tensor:
        return self.then(self.cut(self.before(x)))


class Pixels(Net):
    """A small U-Net: unshuffles and shuffles of pixels, a skip, an interpolation to the size of another tensor."""

    def __init__(self) -> None:
        super().__init__(16)
        self.down = nn.Sequential(nn.PixelUnshuffle(2), conv(64, 32, 3))
        self.up = nn.Sequential(conv(32, 64), nn.PixelShuffle(2), StochasticDepth(0.0, "row"))
        self.merge = conv(16 + 16 + 32, 16, 3)

    def between(self, x: Tensor) -> Tensor:
        y = self.down(x)
        wide = F.interpolate(y, size=x.shape[-2:], mode="nearest")
        return self.merge(torch.cat([self.up(y), x, wide], 1))


class Tokens(Net):
    """As ConvNeXt V2: depthwise, permute, LayerNorm, linear layers, global response norm, LayerScale."""

    def __init__(self) -> None:
        super().__init__(16)
        self.spread = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm, self.scale = nn.LayerNorm(16), nn.Parameter(torch.rand(16, 1, 1))
        self.block = binarize_(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), GlobalResponseNorm(32), nn.Dropout(0.0), nn.Linear(32, 16)),
            BinaryConfig(filter_fn=lambda _, module: isinstance(module, nn.Linear)),
        )
        self.by_hand = nn.ParameterList([torch.rand(16), torch.rand(16)])

    def between(self, x: Tensor) -> Tensor:
        y = self.block(self.norm(self.spread(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = x + self.scale * y
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.by_hand[0][:, None, None] * x + self.by_hand[1].view(1, -1, 1, 1)


class Gates(Net):
    """Squeeze-excite of torchvision and timm, efficient channel attention, gates by views."""

    def __init__(self) -> None:
        super().__init__(16)
        self.first = nn.Sequential(conv(16, 16), torchvision.ops.SqueezeExcitation(16, 8), conv(16, 16))
        self.second = nn.Sequential(timm.layers.SqueezeExcite(16, rd_channels=8), timm.layers.EcaModule(16))
        self.gate = nn.Sequential(nn.Linear(16, 8), nn.PReLU(), nn.Linear(8, 16), nn.Sigmoid())
        self.act = nn.InstanceNorm2d(16, affine=True)

    def between(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.first(x)))
        number, channels = x.size()[:2]
        gate = self.gate(F.adaptive_avg_pool2d(x, 1).view(number, channels)).view(number, channels, 1, 1)
        return x * gate.expand_as(x)


class Untraceable(nn.Module):
    """Looks at values, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x if x.sum() > 0 else -x)


class Around(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.before, self.then = nn.Sequential(conv(16, 16), conv(16, 16)), nn.Sequential(conv(16, 16), conv(16, 16))
        self.middle = Untraceable()

    def between(self, x: Tensor) -> Tensor:
        return self.then(self.middle(self.before(x)))


class Units(Net):
    """Units and a squeeze-excite of ours after a concatenation, and a flattened run."""

    def __init__(self) -> None:
        super().__init__(16)
        self.first = BinaryUnit(16, 16, inner_act=True)
        shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16))
        self.second = BinaryUnit(32, 16, stride=2, shortcut=shortcut)
        self.gate = SqueezeExcite(32)
        wide = nn.Sequential(nn.Linear(32 * 48, 16), nn.PReLU())
        self.wide = binarize_(wide, BinaryConfig(filter_fn=lambda name, _: name == "0"))

    def between(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.first(x)], 1)
        x = x * self.gate(x)
        one, other = x.chunk(2, 1)
        return self.second(x) + self.wide(torch.cat([other, one], 1).flatten(1))[:, :, None, None]


class Twice(Net):
    """A layer whose second call has its channels in another order, which no module could change."""

    def __init__(self) -> None:
        super().__init__(16)
        self.first, self.twice, self.last = conv(16, 16), conv(32, 32), nn.Sequential(conv(32, 16), conv(16, 16))

    def between(self, x: Tensor) -> Tensor:
        x = self.twice(torch.cat([x, self.first(x)], 1))
        return self.last(self.twice(torch.cat([x[:, :8], x[:, 8:]], 1)))


class TwoReaders(Net):
    """The tensor that is split by halves has another reader, which gets the same order."""

    def __init__(self) -> None:
        super().__init__(16)
        self.before, self.branch = conv(16, 16), conv(8, 8)

    def between(self, x: Tensor) -> Tensor:
        x = self.before(x)
        one, other = torch.chunk(x, 2, 1)
        return x + torch.cat([self.branch(other), one], 1)


class Groups(Net):
    """Convolutions with groups: as many filters in each as copies, or fewer; between different orders."""

    def __init__(self) -> None:
        super().__init__(32)
        self.wide = conv(16, 32, 3, groups=2)
        self.narrow = conv(32, 32, 3, groups=16)
        self.depthwise = conv(32, 32, 3, groups=32)
        self.multiplied = conv(16, 32, 3, groups=16)

    def between(self, x: Tensor) -> Tensor:
        return self.depthwise(self.narrow(self.wide(x))) + self.multiplied(x)


NETS: dict[str, Callable[[], nn.Module]] = {
    net.__name__: net
    for net in (Dense, Shuffles, Literals, Pixels, Tokens, Gates, Groups, Around, Units, Twice, TwoReaders)
}
