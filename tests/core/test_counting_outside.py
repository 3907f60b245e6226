"""Work outside of layers is counted: against torchvision's own published operations, closed forms, changed layers."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

from esbnn_core import BinaryConfig, InputError, binarize_, count
from esbnn_core.layers import BinaryConv2d, BinaryMatmul
from esbnn_core.layers.products import Products

NETWORKS = [
    "resnet18",
    "vit_b_16",
    "swin_t",
    "swin_v2_t",
    "maxvit_t",
    "convnext_tiny",
    "efficientnet_b0",
    "densenet121",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_operations_are_those_that_torchvision_publishes(name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    side = weights.transforms().crop_size[0]
    found = count(model, (3, side, side))
    # torchvision counts the products of attention, this project's OPs leave them out and name them
    assert round((found.flops + found.matmul_flops) / 1e9, 3) == weights.meta["_ops"]
    assert found.params == weights.meta["num_params"]
    assert (found.matmul_flops > 0) == (name in ("vit_b_16", "swin_t", "swin_v2_t", "maxvit_t"))


@pytest.mark.parametrize(("tokens", "width"), [(5, 8), (7, 12)])
def test_attention_by_its_closed_form(tokens: int, width: int) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return out

    found = count(Attends(), (tokens, width))
    assert found.flops == found.ops == 4 * tokens * width * width
    assert (
        found.matmul_flops == 2 * tokens * tokens * width and found.ops_with_matmuls == found.ops + found.matmul_flops
    )
    assert {row.name for row in found.layers} == {"attention"}


class Functional(nn.Module):
    """A convolution, a linear layer and a product of two inputs, all as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(4, 6))
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.conv2d(x, self.kernel, stride=2))
        y = y + torch.relu(F.conv_transpose2d(x[:, :1], self.kernel[:1, :, :1, :1].reshape(1, 3, 1, 1)).mean())
        return F.linear((y @ y.transpose(2, 3)).mean((2, 3)), self.matrix.T)


def test_functions_are_counted_and_named() -> None:
    found = count(Functional(), (3, 9, 9))
    conv, transposed, layer, linear = 4 * 27 * 16, 3 * 81, 16 * 16, 24
    assert found.flops == conv + transposed + layer + linear
    assert found.matmul_flops == 4 * 4 * 4 * 4
    assert [row.kind for row in found.layers if row.kind != "Conv2d"] == [
        *("(convolution)", "(convolution)", "(bmm)", "(mm)"),
    ]


CHANGES: list[Callable[[nn.Module], nn.Module]] = [
    lambda layer: weight_norm(layer),
    lambda layer: parametrizations.weight_norm(layer),
    lambda layer: parametrizations.spectral_norm(layer),
    lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    lambda layer: layer.register_forward_hook(lambda module, given, out: out * 2) and layer,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_layer_with_hooks_or_a_computed_weight_costs_what_it_did(change: Callable[[nn.Module], nn.Module]) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 25, 2)]
    plain = count(nn.Sequential(*layers), (3, 9, 9))
    change(layers[1])
    model = nn.Sequential(*layers)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count(model, (3, 9, 9)).ops == plain.ops
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_lazy_layer_is_named() -> None:
    with pytest.raises(InputError, match=r"1\.weight must have a shape, its layer is lazy"):
        count(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3)), (3, 9, 9))


def test_shared_layers_are_counted_at_every_use() -> None:
    layer = nn.Linear(4, 4)
    found = count(nn.Sequential(nn.Linear(4, 4), layer, nn.PReLU(), layer), (4,))
    assert found.flops == 3 * 16 and found.params == 2 * 20 + 1


class Steps(nn.Module):
    """A table read at whole numbers, or a product with real ones; both come from one call but for its constant."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step
        self.table = nn.Embedding(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(3, device=x.device) + self.step
        return self.table(places) if isinstance(self.step, int) else x @ places


class Turned(nn.Module):
    """Turns its map in place, then norms of several results, then a convolution that is not square."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.group = nn.BatchNorm2d(6), nn.GroupNorm(3, 6)
        self.conv = nn.Conv2d(6, 4, (1, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().transpose_(2, 3).mul_(2).clamp_(min=0)
        return self.conv(self.group(self.norm(x)))


def test_what_works_in_place_and_what_returns_several_is_remembered_as_it_is() -> None:
    model = Turned()
    for height, width in ((9, 20), (20, 9), (9, 9), (9, 20)):
        (row,) = count(model, (6, height, width)).layers
        assert row.output == (4, width, height - 4) and row.macs == 4 * 6 * 5 * width * (height - 4)
        assert (row.name, row.binary) == ("conv", False)


def test_a_constants_type_counts_where_a_result_is_remembered() -> None:
    for step, macs in ((1.0, 6), (1, 0)):  # real places would index no table
        found = count(Steps(step), (2, 3))
        assert found.flops + found.matmul_flops == macs


@pytest.mark.parametrize("products", ["real", "binary"])
def test_a_binary_transformer(products: Products) -> None:
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    whole = count(model, (3, 224, 224))
    found = count(binarize_(model, BinaryConfig(products=products)), (3, 224, 224))
    assert found.bops == 12 * 197 * 768 * (4 * 768 + 2 * 3072) and found.bops + found.flops == whole.flops
    real = whole.matmul_flops if products == "real" else 0
    assert (found.matmul_flops, found.matmul_bops) == (real, whole.matmul_flops - real)


class Folds(nn.Module):
    """One image that is several items of each layer's batch, as windows of attention or boxes of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv, self.up = nn.Linear(6, 4), nn.Conv2d(6, 5, 3), nn.ConvTranspose2d(6, 5, 2, 2)
        self.product = BinaryMatmul()

    def forward(self, x: Tensor) -> Tensor:  # (1, 6, 8, 8)
        boxes = x.unflatten(2, (2, 4)).movedim(2, 0).flatten(0, 1)  # (2, 6, 4, 8)
        rows = self.linear(boxes.flatten(2).permute(2, 0, 1))  # (32, 2, 4), the batch in the middle
        product = self.product(boxes, boxes.transpose(2, 3))  # (2, 6, 4, 4)
        total: Tensor = self.conv(boxes).sum() + self.up(boxes).sum() + rows.sum() + product.sum()
        return total


def test_items_in_front_of_a_layer_are_counted() -> None:
    found = count(Folds(), (6, 8, 8))
    macs = {row.name: row.macs for row in found.layers}
    assert macs == {
        "linear": 64 * 24,
        "conv": 2 * 2 * 6 * 5 * 6 * 9,
        "up": 2 * 4 * 8 * 6 * 5 * 4,
        "product": 2 * 6 * 4 * 4 * 8,
    }
    assert {row.name: row.output for row in found.layers}["conv"] == (2, 5, 2, 6)


class Normalised(nn.Module):
    """A network that makes tensors in its forward: constants of its input, or numbers that it reads."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads, self.conv, self.fc = reads, BinaryConv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.reads:
            x = x[:, :, : int(torch.arange(7).sum())]
        else:
            x = (x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) * torch.linspace(0, 1, x.shape[-1])
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(("reads", "side"), [(False, 24), (False, 9), (True, 24), (True, 21)])
def test_tensors_that_a_forward_makes_are_no_obstacle(reads: bool, side: int) -> None:
    found = count(Normalised(reads), (3, side, side))
    height = min(side, 21) if reads else side
    assert found.bops == 8 * 27 * (height - 2) * (side - 2) and found.flops == 32 and len(found.layers) == 2


def test_what_does_not_run_is_told_as_it_fails_first() -> None:
    with pytest.raises(InputError, match=r"does not run on an input of size.*Invalid channel dimensions"):
        count(Normalised(reads=True), (5, 24, 24))
