"""Units in a row as one call of the library: equal to one call each, and nothing stale after a change."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import create_model, pack_
from esbnn_core.packed import PackedChain
from esbnn_core.packed.row import Known, Row
from tests.helpers import paths
from tests.helpers.networks import stir

if paths.usable() == ["naive"]:
    pytest.skip("no native library", allow_module_level=True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


def packed(name: str, **options: int) -> nn.Module:
    torch.manual_seed(0)
    return pack_(stir(create_model(name, num_classes=10, **options))).to(memory_format=torch.channels_last)


def one_by_one(model: nn.Module, *inputs: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Row, "run", lambda *_: None)
        return model(*inputs)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Units of every row that is one call."""
    ran: list[int] = []
    run = Known.run

    def record(self: Known, *inputs: Any) -> Any:
        ran.append(self.count)
        return run(self, *inputs)

    monkeypatch.setattr(Known, "run", record)
    return ran


@pytest.mark.parametrize("path", [name for name in paths.usable() if name != "naive"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [("reactnet_resnet18", {}), ("es_bireal_resnet18", {"tau": 2, "groups": 2}), ("es_reactnet_resnet8", {})],
)
@torch.no_grad()
def test_rows_change_no_bit(
    name: str, options: dict[str, int], threads: int, path: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.force(path, monkeypatch)
    network = packed(name, **options)  # its weights in the order of this path
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in ((2, 3, 32, 64), (1, 3, 32, 64)):
            x = drawn(*shape)
            want = one_by_one(network, x)
            for _ in range(3):  # the first one learns
                assert torch.equal(network(x), want)
            other = drawn(*shape, seed=1)
            assert torch.equal(network(other), one_by_one(network, other))
    finally:
        torch.set_num_threads(before)
    chains = [m for m in network.modules() if isinstance(m, PackedChain) and not isinstance(m[0], PackedChain)]
    # not where the signs of a layer have to start as zeros, because its filters do not fill blocks of 16
    fit = [chain for chain in chains if not any(unit.weight_shape[0] // unit.groups % 16 for unit in chain)]
    assert len(rows) == 2 * 3 * len(fit) > 0 and set(rows) == {len(chain) for chain in fit}


def change_in_place(chain: Any) -> None:
    chain[1].scale.mul_(1.5)


def change_buffers(chain: Any) -> None:
    chain[2].rprelu = chain[2].rprelu + 0.25


def change_memory(chain: Any) -> None:
    chain.share_memory()
    chain[0].bias.add_(0.5)


def change_unit(chain: Any) -> None:
    chain[2] = chain[3]


def add_hook(chain: Any) -> None:
    chain[1].register_forward_hook(lambda _, __, out: (out[0] + 1, out[1]) if isinstance(out, tuple) else out + 1)


def load_others(chain: Any) -> None:
    chain.load_state_dict({key: t.flip(0) for key, t in chain.state_dict().items()})


@pytest.mark.parametrize("change", [change_in_place, change_buffers, change_memory, change_unit, add_hook, load_others])
@torch.no_grad()
def test_a_change_is_seen(change: Callable[[Any], None], rows: list[int]) -> None:
    chain = packed("reactnet_resnet18").stages.layer1
    x = drawn(2, 64, 9, 11)
    first = [chain(x) for _ in range(2)][-1]
    assert rows == [4]
    change(chain)
    want = one_by_one(chain, x)
    assert not torch.equal(want, first)
    assert torch.equal(chain(x), want) and torch.equal(chain(x), want)


@torch.no_grad()
def test_copies_files_and_narrow_networks_begin_anew(rows: list[int]) -> None:
    chain = packed("reactnet_resnet18").stages.layer1
    x = drawn(1, 64, 6, 6)
    want = [chain(x) for _ in range(2)][-1]
    copied = copy.deepcopy(chain)
    make, arguments = chain.row.__reduce__()  # what pickle asks
    assert copied.row.known == make(*arguments).known == {} != chain.row.known
    assert torch.equal(copied(x), want)
    rows.clear()
    for narrow in (x.bfloat16(), x.contiguous(), x[:, :, :1, :1]):
        assert torch.equal(chain(narrow), one_by_one(chain, narrow))
        assert torch.equal(chain(narrow), one_by_one(chain, narrow))
    assert rows == []
    with torch.enable_grad():  # as before: nothing to differentiate through
        wanted = x.clone().requires_grad_()
        assert torch.equal(chain(wanted), want)
    assert rows == []
