"""Forwards that torch.fx cannot trace: binarize_, expand_ and count follow them as they run on an example."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from esbnn_core import ESConfig, InputError, binarize_, count, expand_, pack_, plan_expansion
from esbnn_core.layers import BinaryConv2d, BinaryLinear
from esbnn_core.layers.base import BinaryLayer, binary_layers
from tests.helpers.expansion import stirred
from tests.helpers.layout_networks import conv


class Levels(nn.Module):
    """A list of images of several sizes, a pyramid, and heads shared by its levels: a detector in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.down = nn.ModuleList([conv(16, 16, 3), conv(16, 16, 3)])
        self.side = nn.ModuleList([nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)])
        self.tower = conv(16, 16, 3)
        self.classes, self.boxes = nn.Conv2d(16, 6, 1), nn.Conv2d(16, 8, 1)
        self.half = 8

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        side = max(max(image.shape[-2:]) for image in images)
        batch = images[0].new_zeros(len(images), 3, side, side)
        for image, place in zip(images, batch, strict=True):
            place[:, : image.shape[1], : image.shape[2]].copy_(image)
        x = self.stem(batch)
        maps = {}
        for i, layer in enumerate(self.down):
            x = F.max_pool2d(layer(x), 2)
            assert x.shape[1] == 2 * self.half
            x = torch.cat([x[:, self.half :], x[:, : self.half]], 1)
            maps[str(i)] = self.side[i](x)
        maps["0"] = maps["0"] + F.interpolate(maps["1"], size=maps["0"].shape[-2:])
        towers = [self.tower(each) for each in maps.values()]
        scores = [self.classes(each).flatten(2) for each in towers]
        boxes = [self.boxes(each).flatten(2) for each in towers]
        best = torch.cat(scores, 2).detach().amax(1).argmax(1)
        return {"scores": torch.cat(scores, 2), "boxes": torch.cat(boxes, 2), "best": best}


def images(kind: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *size, generator=generator).to(kind) - 0.5 for size in ((16, 12), (8, 16))]


def levels() -> nn.Module:
    torch.manual_seed(0)
    return stirred(binarize_(Levels(), example=(images(),)))


def values(out: dict[str, Tensor]) -> list[Tensor]:
    return list(out.values())


def test_stem_and_what_makes_the_outputs_of_every_level_stay_real() -> None:
    real = [name for name, module in levels().named_modules() if isinstance(module, nn.Conv2d)]
    assert real == ["stem.0", "classes", "boxes"]


def test_two_groups_of_plain_weights_compute_the_plain_network() -> None:
    plain = levels().double()
    model = expand_(copy.deepcopy(plain), ESConfig(tau=1, groups=2), example=(images(torch.float64),))
    kinds = (BinaryLayer, nn.Conv2d)
    pairs = [[m for m in net.modules() if isinstance(m, kinds)] for net in (plain, model)]
    for old, new in zip(*pairs, strict=True):
        new.weight.data.copy_(old.weight.data)
        if old.bias is not None:
            new.bias.data.copy_(old.bias.data)
    assert model.half == 16 and plain.half == 8
    for mode in (True, False):
        want, got = (values(net.train(mode)(images(torch.float64))) for net in (plain, model))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau, groups", [(2, 1), (4, 2)])
def test_costs_stay_it_trains_and_packs(tau: int, groups: int) -> None:
    model, config, example = levels(), ESConfig(tau, groups), (images(),)
    before, layers = count(model, example=example), {name for name, _ in binary_layers(model)}
    plan = plan_expansion(model, config, example)
    assert layers == set(plan.expanded)
    assert model.half == 8  # a plan changes nothing
    after = count(expand_(model, config, example), example=example)
    assert (after.bops, after.flops, after.binary_params) == (before.bops, before.flops, before.binary_params)
    out = model(images())
    (out["scores"].square().mean() + out["boxes"].square().mean()).backward()
    assert all(layer.weight.grad is not None for layer in model.modules() if isinstance(layer, BinaryLayer))
    model.eval()
    with torch.no_grad():
        latent, packed = values(model(images())), values(pack_(model)(images()))
    assert all(torch.equal(one, other) for one, other in zip(latent, packed, strict=True))


def test_a_record_changes_nothing() -> None:
    model = Levels().train()
    model.down[0].eval()
    state, seed = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    plan_expansion(model, example=(images(),))
    assert torch.equal(torch.get_rng_state(), seed)
    assert type(model.half) is int and model.training and not model.down[0].training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("verb", [binarize_, expand_, plan_expansion])
@pytest.mark.parametrize(
    "example, said",
    [
        (torch.rand(1, 3, 8, 8), "example must be a tuple of the positional arguments of one forward .* got Tensor"),
        ((3,), "example must be a tuple .* with a tensor in it"),
        (
            ([torch.rand(2, 8, 8)],),
            "example must be the arguments that Levels takes, its forward stops with The size of tensor a",
        ),
    ],
)
def test_an_example_that_does_not_fit_is_one_sentence(verb: Callable, example: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        verb(levels() if verb is not binarize_ else Levels(), example=example)


def test_without_an_example_each_verb_names_what_to_give() -> None:
    with pytest.warns(UserWarning, match=r"cannot trace Levels.*stem.0 and boxes stay real.*example=\(images,\)"):
        binarize_(Levels())
    with pytest.raises(InputError, match=r"such as expand_\(model, config, example=\(images,\)\)"):
        expand_(levels())
    with pytest.raises(InputError, match="either input_size or example"):
        count(levels())


class Decides(nn.Module):
    """Reads the number of channels in ways that a wider tensor would change."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.read = nn.Conv2d(3, 8, 1), read
        self.first, self.second, self.fc = conv(8, 8), conv(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.read(self.first(self.stem(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    "read, fits",
    [
        (lambda x: x if x.shape[1] < 9 else -x, False),
        (lambda x: x if x.shape[1] < 99 else -x, True),
        (lambda x: x if x.shape[1] == 8 else -x, False),
        (lambda x: x if x.shape[2] == 4 else -x, True),
        (lambda x: x * float(x.shape[1]), False),
        (lambda x: x * x.shape[1] ** -0.5, False),
        (lambda x: x / x.numel(), False),
        (lambda x: x if x.numel() < 2**31 else x.contiguous(), True),
        (lambda x: x + 0 * x.new_zeros(x.shape), False),
    ],
)
def test_a_branch_or_factor_that_the_width_decides_keeps_it_nominal(read: Callable, fits: bool) -> None:
    x = torch.randn(2, 3, 4, 4)
    model = stirred(Decides(read))
    plan = plan_expansion(model, example=(x,))
    assert ("second.0" in plan.expanded and "first.0" in plan.expanded) is fits, plan.left


class Widths(nn.Module):
    """An attribute that is a width, and one of the same value that is not one alone."""

    def __init__(self, sliced: bool) -> None:
        super().__init__()
        self.stem, self.before, self.fc = nn.Conv2d(3, 8, 1), conv(8, 8), nn.Linear(8, 2)
        self.inner, self.after = conv(4, 4), conv(8, 8)
        self.parts, self.times, self.sliced = [4, 4], 4, sliced

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(self.before(self.stem(x)), self.parts, 1)
        for _ in range(self.times):
            one = one + 1
        one = one[:, : self.times] if self.sliced else one
        return self.fc(self.after(torch.cat([self.inner(other), one], 1)).mean((2, 3)))


@pytest.mark.parametrize("sliced, parts", [(False, [8, 8]), (True, [4, 4])])
def test_an_attribute_that_counts_something_else_too_is_not_widened(sliced: bool, parts: list[int]) -> None:
    model = expand_(stirred(Widths(sliced)))
    assert model.parts == parts and model.times == 4
    before, after = count(Widths(sliced), (3, 4, 4)), count(model, (3, 4, 4))
    assert (before.bops, before.flops) == (after.bops, after.flops)


@pytest.mark.slow
def test_faster_rcnn_of_torchvision() -> None:
    torch.manual_seed(0)
    trunk = torchvision.models.resnet18()
    # torchvision's own head has a hidden width of 1024
    head, predictor = TwoMLPHead(256 * 7 * 7, 32), FastRCNNPredictor(32, 3)
    sizes = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_test": 8, "box_score_thresh": 0.0}
    model = FasterRCNN(_resnet_fpn_extractor(trunk, 5), box_head=head, box_predictor=predictor, **sizes)
    example = ([torch.rand(3, 64, 64), torch.rand(3, 48, 64)],)
    stirred(binarize_(model, example=example))
    real = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    boxes = ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"]
    assert real == ["backbone.body.conv1", "rpn.head.cls_logits", "rpn.head.bbox_pred", *boxes]
    before = count(model, example=(example[0][:1],))
    expand_(model, example=example)
    after = count(model, example=(example[0][:1],))
    per_image = [[row for row in each.layers if not row.name.startswith("roi_heads")] for each in (before, after)]
    assert sum(row.macs for row in per_image[0]) == sum(row.macs for row in per_image[1])
    assert before.binary_params == after.binary_params
    assert not [name for name, layer in binary_layers(model) if type(layer) in (BinaryConv2d, BinaryLinear)]
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = model.train()(example[0], [target, target])
    sum(losses.values()).backward()
    assert not [name for name, layer in binary_layers(model) if layer.weight.grad is None]
    model.eval()
    with torch.no_grad():
        latent, packed = model(*example), pack_(model)(*example)
    for one, other in zip(latent, packed, strict=True):
        assert len(one["boxes"]) and all(torch.equal(one[key], other[key]) for key in one)
