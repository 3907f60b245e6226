"""BiDet's detectors under bfloat16 autocast: what follows from one input is near float32's, part by part.

A whole binary network is not compared: its signs turn at the least change of what is near 0, so that float32 itself has
gradients of another direction once an image moves by a ten-thousandth.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import create_model
from esbnn_core.layers import BinaryConv2d
from esbnn_core.units.conv import BinaryUnit
from tests.helpers.detection.faster_rcnn import batch, losses, made, stir, switch_on
from tests.helpers.detection.small_bidet import detector

pytestmark = pytest.mark.usefixtures("narrow_trunks")

Loss = Callable[[Any], dict[str, Tensor]]


def half(on: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=on)


def step(model: nn.Module, loss: Loss, on: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a copy of the model, by name."""
    model = copy.deepcopy(model)
    with half(on):
        found = loss(model)
    sum(value for key, value in found.items() if key != "acc").backward()
    grads = {key: p.grad.flatten() for key, p in model.named_parameters() if p.grad is not None}
    grads.pop("rpn_head.rpn_conv.conv.bias", None)  # in front of a norm: it is 0 but for rounding
    assert all(grad.dtype == torch.float32 for grad in grads.values()) and len(grads) > 2
    return found, grads


def near(model: nn.Module, loss: Loss) -> list[float]:
    """Losses within 2 %; returns the cosines between the gradients of each parameter, the last of all in one row."""
    (one, want), (two, got) = (step(model, loss, on) for on in (False, True))
    assert one.keys() == two.keys() and want.keys() == got.keys()
    whole, other = (sum(v.item() for k, v in found.items() if k != "acc") for found in (one, two))
    assert other == pytest.approx(whole, rel=0.02)
    for key in one:
        # what the prior counts as a detection is cut at a score and an overlap
        if key != "acc" and "prior" not in key:
            assert two[key].item() == pytest.approx(one[key].item(), rel=0.02), key
    pairs = [(want[key], got[key]) for key in want]
    pairs.append((torch.cat(list(want.values())), torch.cat(list(got.values()))))
    assert not torch.equal(*pairs[-1])
    return [torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bidet", "es_bidet"])
def test_both_stages_of_faster_rcnn_on_given_features_and_proposals(name: str) -> None:
    model = made(name)
    x, samples = batch()
    with torch.no_grad():
        (features,) = model.extract_feat(x)
    switch_on(model)
    objects = copy.deepcopy(samples)
    for each in objects:
        each.gt_instances.labels.zero_()  # the first stage knows objects alone
    proposals: list[Any] = []

    def first(network: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        found, boxes = network.rpn_head.loss_and_predict(
            (features,), copy.deepcopy(objects), network.train_cfg.rpn_proposal
        )
        assert {each.bboxes.dtype for each in boxes} == {torch.float32}
        if not proposals:
            proposals.extend(boxes)
        return {key: sum(value) if isinstance(value, list) else value for key, value in found.items()}

    def second(network: Any) -> dict[str, Tensor]:
        torch.manual_seed(2)
        found: dict[str, Tensor] = network.roi_head.loss(
            (features,), [boxes.clone() for boxes in proposals], copy.deepcopy(samples)
        )
        return found

    assert near(model, first)[-1] > 0.98
    assert near(model, second)[-1] > 0.98


def test_the_ssd_head_on_given_features() -> None:
    model: Any = detector("ssd").network
    switch_on(model)
    x, samples = batch(64, 64)
    with torch.no_grad():
        features = model.extract_feat(x)

    def loss(network: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        found: dict[str, Tensor] = network.bbox_head.loss(features, copy.deepcopy(samples))
        return found

    assert set(loss(model)) == {"loss_cls", "loss_bbox", "loss_feature", "loss_prior"}
    assert near(model, loss)[-1] > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bidet_resnet18", "es_bidet_resnet18", "es_bidet_vgg16"])
def test_every_unit_of_the_trunks_on_its_own_input(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    met: dict[BinaryUnit, Tensor] = {}
    for unit in (module for module in model.modules() if isinstance(module, BinaryUnit)):
        unit.register_forward_pre_hook(lambda unit, args: met.update({unit: args[0].detach()}))
    with torch.no_grad():
        y = model(torch.randn(2, 3, 64, 64))
        if "resnet" in name:
            model.layer4(y)
    assert len(met) == (16 if "resnet" in name else 17)
    units = list(met.items())
    for unit, x in units:

        def loss(unit: Any, x: Tensor = x) -> dict[str, Tensor]:
            y = unit(x)
            weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
            return {"loss": (y.float() * weights).mean() + y.float().square().mean()}

        assert min(near(unit, loss)) > 0.999


@pytest.mark.parametrize("name", ["bidet", "es_bidet", "ssd"])
def test_a_whole_step_is_finite(name: str) -> None:
    model: Any = detector("ssd").network if name == "ssd" else made(name)
    switch_on(model.train())
    x, samples = batch()
    with half():
        found = losses(model, x, samples)
    total = sum(value for key, value in found.items() if key != "acc")
    total.backward()
    assert torch.isfinite(total) and total.dtype == torch.float32
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all() and parameter.dtype == torch.float32, key


@pytest.mark.parametrize("name", ["bidet", "es_bidet"])
def test_an_evaluation_has_the_sums_of_float32(name: str) -> None:
    """bfloat16 holds whole numbers up to 256: the sums of the binary layers are not computed in it."""
    model = stir(made(name))
    for unit in (module for module in model.modules() if isinstance(module, BinaryUnit)):
        with torch.no_grad():  # mostly +1 against mostly +1: sums of hundreds and thousands
            unit.norm.bias.add_(1.0)
            unit.conv.weight.add_(unit.conv.weight.std())
    seen: list[Tensor] = []

    def check(layer: BinaryConv2d, args: tuple[Tensor, ...], options: dict[str, Any], got: Tensor) -> None:
        with half(False):
            assert torch.equal(got, layer.forward(args[0].float(), **options))
        seen.append(got)

    layers = [module for module in model.modules() if isinstance(module, BinaryConv2d)]
    for layer in layers:
        layer.register_forward_hook(check, with_kwargs=True)
    x, samples = batch()
    with torch.no_grad(), half():
        model.predict(x, copy.deepcopy(samples), rescale=False)
    assert len(seen) == len(layers) == 17
    assert {sums.dtype for sums in seen} == {torch.float32}
    whole = torch.cat([sums.flatten() for sums in seen])
    assert torch.equal(whole, whole.round()) and not torch.equal(whole, whole.bfloat16().float())
