"""Units in a row as one call of the library: equal to one call each, and nothing stale after a change."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import create_model, pack_
from esbnn_core.packed import PackedChain
from esbnn_core.packed.row import Row
from esbnn_core.packed.segment import Segment
from tests.helpers import paths
from tests.helpers.networks import annealed, narrow, stir

if paths.usable() == ["naive"]:
    pytest.skip("no native library", allow_module_level=True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


@cache
def latent(name: str, *options: tuple[str, int]) -> nn.Module:
    """A network of which each case packs a copy."""
    torch.manual_seed(0)
    with narrow():
        return stir(annealed(create_model(name, num_classes=10, **dict(options))))


def packed(name: str, fold_real: bool = False, **options: int) -> nn.Module:
    return pack_(copy.deepcopy(latent(name, *options.items())), fold_real=fold_real).to(
        memory_format=torch.channels_last
    )


def one_by_one(model: nn.Module, *inputs: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Row, "run", lambda *_: None)
        return model(*inputs)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Units of every program that runs."""
    ran: list[int] = []
    run = Segment.run

    def record(self: Segment, *inputs: Any) -> Any:
        ran.append(len(self.units))
        return run(self, *inputs)

    monkeypatch.setattr(Segment, "run", record)
    return ran


@pytest.mark.parametrize("path", [name for name in paths.usable() if name != "naive"])
@pytest.mark.parametrize(
    ("name", "options", "fold_real", "units"),
    [
        ("reactnet_resnet18", {}, False, [4, 4, 4, 4]),
        ("reactnet_resnet8x4", {}, True, [6]),  # of up to 256 channels
        ("es_bireal_resnet18", {"tau": 2, "groups": 2}, False, [4, 4, 4, 4]),
        ("es_reactnet_resnet8", {}, False, [2, 2, 2]),  # whose filters do not fill blocks of 16
        ("es_reactnet_resnet8", {}, True, [6]),
    ],
)
@torch.no_grad()
def test_rows_change_no_bit(
    name: str,
    options: dict[str, int],
    fold_real: bool,
    units: list[int],
    path: str,
    rows: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths.force(path, monkeypatch)
    network = packed(name, fold_real, **options)  # its weights in the order of this path
    if path == "portable" and fold_real:
        units = [2, 2, 2]  # where torch runs the shortcuts
    side = 1 if "18" in name else 2  # whose stem makes the maps smaller
    shapes = (2, 3, 32 // side, 64 // side), (1, 3, 36 // side, 44 // side)
    before = torch.get_num_threads()
    for threads in (1, 3):  # a row is learnt for each
        rows.clear()
        torch.set_num_threads(threads)
        try:
            for shape in shapes:
                x = drawn(*shape)
                want = one_by_one(network, x)
                for _ in range(3):  # the first one learns
                    assert torch.equal(network(x), want)
                other = drawn(*shape, seed=1)
                assert torch.equal(network(other), one_by_one(network, other))
            assert torch.equal(network(drawn(*shapes[0])), one_by_one(network, drawn(*shapes[0])))
        finally:
            torch.set_num_threads(before)
        assert rows == 7 * units, threads


@torch.no_grad()
def test_chains_and_their_parts_are_rows_of_their_own(rows: list[int]) -> None:
    """A chain after a module that is no unit, one that starts from signs, and one whose output is 1x1."""
    first, second, third, last = packed("reactnet_resnet18", True).stages
    stages = PackedChain(first, second, nn.Hardtanh(), third, last)
    x = drawn(2, 16, 10, 6)
    want = one_by_one(stages, x)
    assert [torch.equal(stages(x), want) for _ in range(3)] == [True] * 3
    assert rows == 2 * [4, 4, 4, 4]
    rows.clear()
    want, signs = one_by_one(first, x, None, second[0])
    for _ in range(2):
        y, bits = first(x, None, second[0])
        assert torch.equal(y, want) and torch.equal(bits, signs)
        assert torch.equal(second(y, bits), one_by_one(second, y)) and torch.equal(second(y), second(y, signs))
    assert rows == 7 * [4]
    small = drawn(3, 64, 2, 2)
    want = one_by_one(last, small)
    for _ in range(2):
        assert torch.equal(last(small), want) and last(small).stride() == want.stride()


def one_more(_: nn.Module, __: Any, out: Any) -> Any:
    return (out[0] + 1, out[1]) if isinstance(out, tuple) else out + 1


def change_in_place(stages: Any) -> None:
    stages.layer3[1].scale.mul_(1.5)


def change_buffers(stages: Any) -> None:
    stages.layer1[2].rprelu = stages.layer1[2].rprelu + 0.25


def change_memory(stages: Any) -> None:
    stages.share_memory()
    stages.layer2[0].bias.add_(0.5)


def change_storage(stages: Any) -> None:
    stages.layer4[3].shift.set_(stages.layer4[3].shift - 0.5)


def change_unit(stages: Any) -> None:
    stages.layer1[2] = stages.layer1[3]


def add_unit(stages: Any) -> None:
    stages.layer1.append(stages.layer1[3])


def change_shortcut(stages: Any) -> None:
    stages.layer1[1].shortcut = None


def change_act(stages: Any) -> None:
    stages.layer3[2].act = nn.ReLU()


def change_stage(stages: Any) -> None:
    stages.layer1 = nn.Sequential(*stages.layer1, nn.Tanh())


def add_hook(stages: Any) -> None:
    stages.layer1[1].register_forward_hook(one_more)


def add_hook_after_shortcut(stages: Any) -> None:
    stages.layer3[0].register_forward_hook(one_more)


def add_hook_to_act(stages: Any) -> None:
    stages.layer4[3].act.register_forward_hook(lambda _, __, out: out + 1)


def add_hook_to_stage(stages: Any) -> None:
    stages.layer3.register_forward_hook(lambda _, __, out: (out[0] + 1, None) if isinstance(out, tuple) else out + 1)


def add_hook_to_pool(stages: Any) -> None:
    stages.layer2[0].shortcut[0].register_forward_pre_hook(lambda _, x: x[0] + 1)


def change_forward(stages: Any) -> None:
    stages.layer2[0].shortcut[0].forward = lambda x: x[:, :, ::2, ::2]


def change_pool(stages: Any) -> None:
    stages.layer2[0].shortcut[0].stride, stages.layer2[0].shortcut[0].kernel_size = 2, (2, 1)


def change_real(stages: Any) -> None:
    real = stages.layer3[0].shortcut[1]
    weights = [*real.parameters(), *real.buffers()]  # after folding the second ones are read
    for weight in weights:
        weight.add_(0.25)


def load_others(stages: Any) -> None:
    stages.load_state_dict({key: t.flip(0) for key, t in stages.state_dict().items()})


CHANGES = [
    *(
        change_in_place,
        change_buffers,
        change_memory,
        change_storage,
        change_unit,
        add_unit,
        change_shortcut,
        change_act,
    ),
    *(
        change_stage,
        add_hook,
        add_hook_after_shortcut,
        add_hook_to_act,
        add_hook_to_stage,
        add_hook_to_pool,
        change_forward,
        change_pool,
    ),
    *(change_real, load_others),
]


@pytest.mark.parametrize("fold_real", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_is_seen(
    change: Callable[[Any], None], fold_real: bool, rows: list[int], small: dict[bool, nn.Module]
) -> None:
    stages = copy.deepcopy(small[fold_real])
    x = drawn(2, 16, 9, 11)
    first = [stages(x) for _ in range(2)][-1]
    assert rows == ([16] if fold_real else [4] * 4)
    change(stages)
    want = one_by_one(stages, x)
    assert not torch.equal(want, first)
    assert torch.equal(stages(x), want) and torch.equal(stages(x), want)


@pytest.fixture(scope="module")
def small() -> dict[bool, nn.Module]:
    return {fold_real: packed("reactnet_resnet18", fold_real).stages for fold_real in (False, True)}


@torch.no_grad()
def test_a_chain_that_begins_with_a_real_shortcut_sees_changes(small: dict[bool, nn.Module], rows: list[int]) -> None:
    x = drawn(2, 16, 8, 8)
    for change in (change_unit, change_in_place, add_hook_to_act, change_real):
        for stages in map(copy.deepcopy, small.values()):
            alone = nn.Module()
            alone.layer1 = alone.layer2 = alone.layer3 = alone.layer4 = chain = stages.layer2
            rows.clear()
            first = [chain(x) for _ in range(2)][-1]
            assert rows == [4]
            change(alone)
            want = one_by_one(chain, x)
            assert not torch.equal(want, first)
            assert torch.equal(chain(x), want) and torch.equal(chain(x), want)


@torch.no_grad()
def test_hooks_of_real_shortcuts_run_once_a_call(small: dict[bool, nn.Module]) -> None:
    x = drawn(1, 16, 8, 8)
    ran: list[int] = []
    for stages in map(copy.deepcopy, small.values()):
        ran.clear()
        for _ in range(2):
            stages(x)
        for stage in (stages.layer2, stages.layer4):
            stage[0].shortcut.register_forward_hook(lambda *_: ran.append(1))
        for number in range(1, 4):
            stages(x)
            assert len(ran) == 2 * number


@torch.no_grad()
def test_training_and_gradients_are_as_unit_by_unit(small: dict[bool, nn.Module]) -> None:
    for fold_real, stages in small.items():
        stages, x = copy.deepcopy(stages), drawn(2, 16, 8, 8)
        for training in (False, True, False):
            stages.train(training)  # norms of real shortcuts then take the batch's statistics
            for _ in range(2):
                other = copy.deepcopy(stages)
                assert torch.equal(stages(x), one_by_one(other, x))
        with torch.enable_grad():
            y = stages(x)
            assert y.requires_grad is not fold_real and torch.equal(y, one_by_one(stages, x))


@torch.no_grad()
def test_copies_files_and_narrow_networks_begin_anew(rows: list[int]) -> None:
    chain = packed("reactnet_resnet18").stages.layer1
    x = drawn(1, 16, 6, 6)
    want = [chain(x) for _ in range(2)][-1]
    copied = copy.deepcopy(chain)
    make, arguments = chain.row.__reduce__()  # what pickle asks
    assert copied.row.known == make(*arguments).known == {} != chain.row.known
    assert torch.equal(copied(x), want)
    rows.clear()
    for other in (x.bfloat16(), x.contiguous(), x[:, :, :1, :1]):
        assert torch.equal(chain(other), one_by_one(chain, other))
        assert torch.equal(chain(other), one_by_one(chain, other))
    assert rows == []
    with torch.enable_grad():  # as before: nothing to differentiate through
        wanted = x.clone().requires_grad_()
        assert torch.equal(chain(wanted), want)
    assert rows == []
