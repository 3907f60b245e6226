"""Lanes follow the weights that a call has: exchanged, written to in place, copied, stacked, wanted a gradient of."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from esbnn_core import create_model, pack_
from esbnn_core.layers import BinaryConvTranspose2d, BinaryLinear, ESBinaryConv2d
from esbnn_core.packed.lanes import OnLanes
from tests.helpers.networks import annealed, stir

SIGNS = {"weight_quantizer": "sign"}
BARE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: ESBinaryConv2d(16, 32, 3, padding=1, tau=2, groups=2, **SIGNS), (2, 64, 5, 4)),
    "transposed": (lambda: BinaryConvTranspose2d(24, 18, 3, 2, 1, **SIGNS), (2, 24, 5, 4)),
    "linear": (lambda: BinaryLinear(70, 33, **SIGNS), (3, 70)),
}
NETWORKS = {
    "row": ("reactnet_resnet8", False),
    "folded": ("es_reactnet_resnet8", True),
    "tokens": ("binaryvit_micro", False),
}


def built(kind: str, seed: int) -> nn.Module:
    """A packed module whose numbers are those of the seed."""
    torch.manual_seed(seed)
    if kind in BARE:
        return pack_(nn.Sequential(BARE[kind][0]()).eval())
    name, fold_real = NETWORKS[kind]
    return pack_(stir(annealed(create_model(name)), seed), fold_real=fold_real).to(memory_format=torch.channels_last)


def image(kind: str) -> Tensor:
    x = torch.randn(BARE[kind][1] if kind in BARE else (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x


def write_(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy every value into the tensors that are there."""
    for name, tensor in module.state_dict().items():
        tensor.copy_(state[name])


@torch.no_grad()
@pytest.mark.parametrize("kind", [*BARE, *NETWORKS])
def test_a_call_computes_with_the_weights_that_it_has(kind: str) -> None:
    one, other, x = built(kind, 0), built(kind, 1), image(kind)
    assert any(isinstance(module, OnLanes) for module in one.modules())
    own, want = one(x), other(x)
    assert not torch.equal(own, want)
    first = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    for _ in range(2):  # rows are learnt in between
        assert torch.equal(functional_call(one, other.state_dict(), (x,)), want)
        assert torch.equal(one(x), own)
    write_(one, other.state_dict())
    assert torch.equal(one(x), want)
    for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        layers = [module for module in twin.modules() if isinstance(module, OnLanes)]
        assert not any(layer.stale() for layer in layers)  # the lanes went along
        write_(twin, first)
        assert all(layer.stale() for layer in layers)
        late = copy.deepcopy(twin)
        assert torch.equal(twin(x), own) and torch.equal(late(x), own) and torch.equal(one(x), want)
    write_(one, first)
    one.double().float()
    write_(one, other.state_dict())
    assert torch.equal(one(x), want)
    write_(one, first)
    moved = one.to(torch.float32).to(memory_format=torch.contiguous_format)  # written to before it moved
    assert torch.equal(moved(x), own)


@torch.no_grad()
@pytest.mark.parametrize("kind", BARE)
def test_an_ensemble_of_states_is_each_of_its_networks(kind: str) -> None:
    several, x = [built(kind, seed) for seed in range(3)], image(kind)
    _, buffers = stack_module_state(several)
    buffers = {name: tensor for name, tensor in buffers.items() if name in several[0].state_dict()}
    got = vmap(lambda state: functional_call(several[0], state, (x,)))(buffers)
    for each, network in zip(got, several, strict=True):
        assert torch.equal(each, network(x))


def test_a_folded_layer_gives_the_gradient_of_a_weight_that_wants_one() -> None:
    """The logits are linear in the classifier's weight: a step along a direction changes their sum by the gradient."""
    network, x = built("folded", 0), image("folded")
    weight = network.get_parameter("fc.weight").detach().clone().requires_grad_()
    total = functional_call(network, {"fc.weight": weight}, (x,)).sum()
    (grad,) = torch.autograd.grad(total, weight)
    step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moved = functional_call(network, {"fc.weight": weight + step}, (x,)).sum()
    torch.testing.assert_close((grad * step).sum(), moved - total, rtol=1e-4, atol=1e-3)
