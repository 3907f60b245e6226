"""BIDiffSRUNet: timesteps and groups, ES on every path, costs, training on bits, files, and what is refused."""

import copy
import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from esbnn_core import InputError, bit_training_report, train_on_bits_
from esbnn_core.layers.base import binary_layers
from esbnn_core.units.timestep import TimestepUnit
from tasks.super_resolution.blocks import PixelAttention
from tasks.super_resolution.cost import UNetCost, count_unet
from tasks.super_resolution.unet import BIDiffSRUNet
from tests.helpers.super_resolution.unet import SMALL, meta, named, pair, randn, small
from tests.helpers.units import relative

PATHS = [
    {"real_path": real_path, "copy_rule": copy_rule}
    for real_path, copy_rule in product(("slice", "carry"), ("block", "mix"))
]


def run(unet: BIDiffSRUNet, timestep: Any, side: int = 16, batch: int = 2) -> torch.Tensor:
    noisy, condition = pair(side, batch)
    with torch.no_grad():
        return unet(noisy, timestep, condition).sample


@pytest.mark.parametrize("group_rule", ["sample", "first"])
def test_a_timestep_is_a_number_a_tensor_or_one_a_sample(group_rule: str) -> None:
    unet = small(group_rule=group_rule)
    want = run(unet, 700)
    for timestep in (700.0, torch.tensor(700), torch.tensor([700]), torch.tensor([700.0, 700.0])):
        assert relative(run(unet, timestep), want) < 1e-12
    noisy, condition = pair()
    assert torch.equal(unet(noisy, 700, condition, return_dict=False)[0], unet(noisy, 700, condition).sample)
    assert relative(run(unet, 701), want) > 1e-4


def test_each_sample_has_its_own_group_or_that_of_the_first() -> None:
    ways = {rule: small(group_rule=rule, total_steps=1000) for rule in ("sample", "first")}
    noisy, condition = pair(batch=3)
    t = torch.tensor([199, 900, 200])
    with torch.no_grad():
        for rule, unet in ways.items():
            together = unet(noisy, t, condition).sample
            for i in range(3):
                own = slice(i, i + 1)
                alone = unet(noisy[own], t[own], condition[own]).sample
                same = relative(together[own], alone) < 1e-9
                assert same == (rule == "sample" or i == 0), (rule, i)
    assert ways["sample"].moment(t, 3).group.tolist() == [0, 4, 1]
    assert ways["first"].moment(t, 3).group.tolist() == [0]
    assert ways["sample"].moment(999, 3).group.tolist() == [4]


def test_every_parameter_takes_part() -> None:
    """Five samples, one a group, in training mode; 5 of 6 activations of a sign may be out of the estimator's reach."""
    unet = small().train()
    noisy, condition = pair(32, batch=5)
    unet(noisy, torch.tensor([0, 500, 900, 1300, 1999]), condition).sample.square().sum().backward()
    without = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("options", PATHS, ids=str)
def test_tau_and_groups_of_one_are_the_base_network(options: dict[str, Any]) -> None:
    base, unet = small(), small(tau=1, groups=1, **options)
    assert list(unet.state_dict()) == list(base.state_dict())
    assert torch.equal(run(unet, 1200), run(base, 1200))


def copies_of(base: BIDiffSRUNet, unet: BIDiffSRUNet) -> BIDiffSRUNet:
    """Fill an expanded network of tau = 1 with the base's numbers, every vector that is carried repeated."""
    state = base.state_dict()
    for key, value in unet.state_dict().items():
        given = state[key]
        value.copy_(given if given.shape == value.shape else given.repeat(unet.wide))
    return unet


@pytest.mark.parametrize(("options", "groups"), zip(PATHS, (2, 4, 4, 2), strict=True), ids=str)
def test_groups_that_see_copies_of_one_map_compute_the_base_network(options: dict[str, Any], groups: int) -> None:
    """With tau = 1 group j holds the j-th part of the base's filters over the j-th copy of its channels: as long as the
    copies are copies, all of them are the base network's map. Mixing takes them apart."""
    base = small()
    unet = copies_of(base, small(groups=groups, **options))
    same = relative(run(unet, 900), run(base, 900)) < 1e-10
    assert same == (options["copy_rule"] == "block")


@pytest.mark.parametrize(("options", "tau", "groups"), zip(PATHS, (2, 2, 2, 2), (1, 2, 2, 1), strict=True), ids=str)
def test_an_expanded_network_carries_copies_that_learn_apart(options: dict[str, Any], tau: int, groups: int) -> None:
    unet = small(tau=tau, groups=groups, **options).train()
    noisy, condition = pair(batch=5)
    unet(noisy, torch.tensor([0, 500, 900, 1300, 1999]), condition).sample.square().sum().backward()
    without = {name for name, p in unet.named_parameters() if not p.grad.any()}
    if options == {"real_path": "slice", "copy_rule": "mix"}:
        # all that the second convolution of the last CP-Up makes stands behind the cut: why "block" is the default
        assert without and all(name.startswith("ups.9.second") for name in without)
    else:
        assert without == set()
    shift = unet.downs[0].conv1.shift.shifts[0].grad.view(tau * groups, -1)
    assert all(relative(shift[j], shift[0]) > 1e-3 for j in range(1, tau * groups))
    if options == {"real_path": "slice", "copy_rule": "block"}:
        ends = [shift.grad.view(tau * groups, -1) for shift in unet.ups[9].first.act.shifts_out]
        assert all(end[0].any() and not end[1:].any() for end in ends)  # the first copy alone is read
    carried = {name: m.conv.in_channels for name, m in named(unet, TimestepUnit).items() if m.tau == tau}
    assert carried["downs.0.conv1"] == 8 * tau * groups and carried["middle.1.conv2"] == 32 * tau * groups


@pytest.mark.parametrize(
    "options", [{}, {"tau": 2}, {"tau": 2, "real_resolutions": ()}, {"groups": 2, "real_path": "carry"}], ids=str
)
def test_the_head_reads_the_first_copy(options: dict[str, Any]) -> None:
    unet, seen = small(**options), []
    unet.ups[-1].register_forward_hook(lambda _, __, y: seen.append(y))
    got = run(unet, 100)
    wide = unet.wide if len(options) == 2 else 1
    assert seen[0].shape[1] == 8 * wide
    want = unet.head(nn.functional.silu(unet.norm(seen[0].unflatten(1, (wide, 8))[:, 0])))
    assert relative(got, want.detach()) < 1e-12


@pytest.mark.parametrize("real_path", ["slice", "carry"])
def test_a_norm_keeps_the_size_of_its_groups(real_path: str) -> None:
    base, unet = named(small(), nn.GroupNorm), named(small(tau=2, groups=2, real_path=real_path), nn.GroupNorm)
    assert base.keys() == unet.keys()
    for name, norm in unet.items():
        assert norm.num_channels // norm.num_groups == base[name].num_channels // base[name].num_groups, name
    wide = {name for name, norm in unet.items() if norm.num_groups != base[name].num_groups}
    # the head and the attention read one copy
    assert ("ups.11.norm1" in wide) == (real_path == "carry") and not wide & {"norm", "middle.0.attention.norm"}


def test_the_published_cost() -> None:
    """Spec 0.6: 98.65 G binary and 33.63 G real operations for 3x256x256, and a binary weight as 1/32 parameter."""
    cost = count_unet(meta())
    assert (f"{cost.layers.bops / 1e9:.2f}", f"{cost.layers.flops / 1e9:.2f}") == ("98.65", "33.63")
    assert (f"{cost.ops / 1e9:.2f}", f"{cost.ops_with_attention / 1e9:.2f}") == ("35.17", "36.24")
    assert (f"{cost.params / 1e6:.3f}", f"{cost.params_32bit / 1e6:.3f}") == ("51.280", "4.575")
    assert cost.layers.binary_params == 48_211_968
    sentence = cost.sentence()
    assert all(number in sentence for number in ("35.17 G at 256x256", "36.24 G", "51.280 M", "4.575 M"))


@cache
def base_cost() -> UNetCost:
    return count_unet(small(), 32)


@pytest.mark.parametrize(("tau", "groups"), [(4, 1), (2, 2)])
@pytest.mark.parametrize("options", PATHS[:3], ids=str)
def test_expansion_leaves_weights_and_operations_as_they_are(options: dict[str, Any], tau: int, groups: int) -> None:
    base, unet = base_cost(), count_unet(small(tau=tau, groups=groups, **options), 32)
    assert (unet.layers.bops, unet.layers.flops, unet.attention) == (
        base.layers.bops,
        base.layers.flops,
        base.attention,
    )
    assert unet.layers.binary_params == base.layers.binary_params and unet.params > base.params
    assert [(row.name, row.macs, row.weights) for row in unet.layers.layers] == [
        (row.name, row.macs, row.weights) for row in base.layers.layers
    ]


def test_the_attentions_products_grow_with_the_fourth_power_of_the_side() -> None:
    unet = small()
    assert [count_unet(unet, side).attention for side in (16, 32)] == [2 * 32 * 4**4, 2 * 32 * 8**4]
    assert not any(module._forward_hooks for module in unet.modules())


@pytest.mark.parametrize("options", [{}, {"tau": 2, "groups": 2}, {"variant": "irnet"}], ids=str)
def test_training_on_bits_gives_the_plain_gradients(options: dict[str, Any]) -> None:
    unet = small(dropout=0.0, **options).train()
    twin = train_on_bits_(copy.deepcopy(unet))
    report = bit_training_report(twin)
    assert len(report) == len(binary_layers(unet)) > 20 and set(report.values()) == {""}
    noisy, condition = pair(batch=3)
    found = []
    for one in (unet, twin):
        y = one(noisy, torch.tensor([10, 1900, 1000]), condition).sample
        y.backward(randn(*y.shape, seed=9))
        found.append({"y": y.detach(), **{name: p.grad for name, p in one.named_parameters()}})
    for name, want in found[0].items():
        assert relative(found[1][name], want) < 1e-8 if want.any() else not found[1][name].any(), name


@pytest.mark.parametrize("options", [{}, {"tau": 2, "real_path": "carry", "variant": "reactnet"}], ids=str)
def test_a_folder_is_written_and_read_back(tmp_path: Path, options: dict[str, Any]) -> None:
    unet = small(**options).float()
    unet.save_pretrained(tmp_path)
    files = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == files | {"sha256.json"}
    assert json.loads((tmp_path / "sha256.json").read_text()).keys() == files
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["channel_mults"] == [1, 2, 4] and config["tau"] == options.get("tau", 1)
    other = BIDiffSRUNet.from_pretrained(tmp_path)
    assert not other.training and other.config.variant == options.get("variant", "bi")
    state = unet.state_dict()
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    assert torch.equal(run(other.double(), 300), run(unet.double(), 300))
    other, info = BIDiffSRUNet.from_pretrained(tmp_path, torch_dtype=torch.float64, output_loading_info=True)
    assert other.dtype == torch.float64 and not info["missing_keys"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("head.bias", None, r"head\.bias is missing"),
        ("tail.bias", torch.zeros(3), r"tail\.bias is not expected"),
        ("head.bias", torch.zeros(4), r"size mismatch for head\.bias"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    tmp_path: Path, key: str, value: torch.Tensor | None, words: str
) -> None:
    small().float().save_pretrained(tmp_path)
    (tmp_path / "sha256.json").unlink()  # of a folder that a person edits
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor for name, tensor in {**load_file(file), key: value}.items() if tensor is not None}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"do not fit the network of its config.json: {words}"):
        BIDiffSRUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": 3}, "width 8, which tau=3"),
        ({"tau": 0}, "tau must be a whole number of at least 1, got 0"),
        ({"inner_channels": 7, "norm_groups": 7}, "norm_groups=7, got 7"),
        ({"norm_groups": 3}, "norm_groups=3"),
        ({"channel_mults": (1, 2, 3)}, "must be twice the one before"),
        ({"channel_mults": ()}, "must be twice the one before"),
        ({"real_resolutions": (100,)}, "256, 128, 64"),
        ({"real_resolutions": (128,), "tau": 2}, "'carry'"),
        ({"variant": "ternary"}, "got 'ternary'"),
        ({"group_rule": "last"}, "group_rule must be one of sample, first, got 'last'"),
        ({"real_path": "cut"}, "real_path must be one of slice, carry, got 'cut'"),
        ({"copy_rule": "shuffle"}, "copy_rule must be one of block, mix, got 'shuffle'"),
        ({"timestep_groups": 0}, "timestep_groups must be a whole number of at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be a probability of at least 0 and below 1, got 1.0"),
        ({"variant": "xnor", "tau": 2, "copy_spread": 0.3}, "'xnor', which has no shift to spread"),
        ({"variant": "real", "tau": 2, "copy_spread": 0.3}, "'real', which has no shift to spread"),
    ],
)
def test_options_out_of_range_are_refused_in_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        BIDiffSRUNet(**{**SMALL, **options})
    assert words in str(caught.value)


def test_levels_that_are_real_or_not_in_any_order() -> None:
    for real in ((), (64,), (128, 64), (256, 128, 64)):
        unet = small(real_resolutions=real)
        assert run(unet, 5).shape == (2, 3, 16, 24)
        kinds = [isinstance(unet.ups[i].odd, TimestepUnit) for i in (0, 5, 10)]
        assert kinds == [side not in real for side in (64, 128, 256)]
    assert run(small(real_resolutions=(), tau=2), 5).shape == (2, 3, 16, 24)
    assert run(small(real_resolutions=(128,), tau=2, real_path="carry"), 5).shape == (2, 3, 16, 24)


@pytest.mark.parametrize(
    ("sample", "condition", "timestep", "words"),
    [
        ((2, 3, 18, 16), (2, 3, 18, 16), 0, "must be multiples of 4, got 18 x 16"),
        ((2, 3, 16, 8), (2, 3, 16, 16), 0, "must be (N, 3, H, W) of one size"),
        ((2, 3, 16, 16), (1, 3, 16, 16), 0, "must be (N, 3, H, W) of one size"),
        ((3, 16, 16), (3, 16, 16), 0, "must be (N, 3, H, W) of one size"),
        ((2, 3, 16, 16), (2, 3, 16, 16), torch.tensor([1, 2, 3]), "one for each of 2 samples, got shape (3,)"),
        ((2, 3, 16, 16), (2, 3, 16, 16), torch.tensor([[1], [2]]), "one for each of 2 samples, got shape (2, 1)"),
        ((0, 3, 0, 16), (0, 3, 0, 16), 0, "0 x 16"),
    ],
)
def test_maps_and_timesteps_that_do_not_fit_are_refused(
    sample: tuple[int, ...], condition: tuple[int, ...], timestep: Any, words: str
) -> None:
    unet = small().float()
    with pytest.raises(InputError) as caught:
        unet(torch.zeros(sample), timestep, torch.zeros(condition))
    assert words in str(caught.value)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_keeps_no_matrix_of_all_pairs_of_pixels(layout: torch.memory_format) -> None:
    for channels, height, width in ((16, 6, 9), (33, 5, 4)):
        maps = [randn(2, channels, height, width, seed=s).to(memory_format=layout) for s in range(3)]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # refuses what would need one
            got = PixelAttention()(*maps)
        q, k, v = (t.flatten(2).transpose(1, 2) for t in maps)
        weights = (q @ k.transpose(1, 2) / channels**0.5).softmax(-1)
        assert torch.allclose(got.flatten(2).transpose(1, 2), weights @ v, rtol=1e-10, atol=1e-12)
