"""Every network of the catalogue: forward, backward, counts, ES at tau = groups = 1; packed ones exported, compiled."""

from functools import cache, partial
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import InputError, count, create_model, list_models, model_spec
from esbnn_core.layers import Expansion, RPReLU, SliceChannels
from esbnn_core.models import LatentResNet, bnext, registry, resnet
from esbnn_core.models.registry import register_model
from esbnn_core.transforms.pack import pack_
from esbnn_core.units.conv import BinaryUnit
from tests.helpers.networks import BRICKS, HEAVY, PLAIN, WITHOUT_REP, narrow

# in millions to three places, or exactly (papers.md#operations)
PUBLISHED = {
    "bireal_resnet18": 11.690e6,
    "reactnet_resnet18": 11.704e6,
    "bireal_resnet34": 21.798e6,
    "reactnet_resnet34": 21.827e6,
}


def batch(name: str) -> Tensor:
    """Two images just large enough that the last stage is not a single pixel."""
    side = 40 if "18" in name or "34" in name else 32
    return torch.randn(2, 3, 24 if "recu_resnet18" in name else side, side, generator=torch.Generator().manual_seed(0))


def create_small(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=5, **options)


@cache
def on_meta(name: str, **options: object) -> nn.Module:
    """A network that the tests only look at."""
    with torch.device("meta"):
        return create_model(name, **options)


def test_the_catalogue_holds_the_families() -> None:
    names = list_models()
    assert names == sorted(set(names)) and len(names) >= 24
    for name in PLAIN:
        assert f"es_{name}" in names and (f"rep_{name}" in names) is (name not in WITHOUT_REP)
    trunks = list_models(kind="trunk")
    assert trunks == ["bidet_resnet18", "bidet_vgg16", "es_bidet_resnet18", "es_bidet_vgg16"]
    assert sorted([*trunks, *list_models(kind="classifier")]) == names
    assert list_models("vgg", kind="trunk") == ["bidet_vgg16", "es_bidet_vgg16"]
    assert list_models("vgg", kind="classifier") == ["bidet_vgg16_classifier", "es_bidet_vgg16_classifier"]
    assert list_models("recu") == [name for name in names if "recu" in name] != []
    assert list_models("no such name") == []


@pytest.mark.parametrize("name", BRICKS)
def test_every_network_trains(name: str) -> None:
    with narrow():
        model = create_small(name)
    assert model.training
    out = model(batch(name))
    assert out.shape == (2, 5) and out.isfinite().all() and out.dtype == torch.float32
    assert not torch.equal(out[0], out[1])
    if isinstance(model, LatentResNet):
        out = torch.cat(model.both(batch(name)))
    out.square().sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad or not key.endswith(("unused_act", "unused_prelu")):
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    # what feeds the read-out has a gradient that is not zero everywhere
    for key in ("stem.conv.weight", "fc.weight"):
        assert model.get_parameter(key).grad.abs().max() > 0


@pytest.mark.parametrize("name", ["es_bnext_micro", "recu_resnet20", "bireal_resnet18"])
def test_gradients_stay_in_the_layout_of_the_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a channels_last network every norm's gradient is channels_last, and has the values that it has otherwise."""
    last = torch.channels_last
    network, x = create_small(name).double().to(memory_format=last), batch(name).double().to(memory_format=last)
    parameters = [p for p in network.parameters() if p.requires_grad]
    layouts: list[bool] = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_full_backward_hook(
                lambda _, __, grads: layouts.append(grads[0].is_contiguous(memory_format=last))
            )

    def gradients() -> list[Tensor]:
        layouts.clear()
        return [
            g for g in torch.autograd.grad(network(x).square().sum(), parameters, allow_unused=True) if g is not None
        ]

    kept = gradients()
    assert len(layouts) > 10 and all(layouts)
    for module in (bnext, resnet):
        monkeypatch.setattr(module, "keep_layout", lambda x: x)
    plain = gradients()
    assert not all(layouts)
    torch.testing.assert_close(kept, plain, rtol=1e-9, atol=1e-9)  # some cancel to 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BRICKS if name in PLAIN])
def test_without_expansion_es_is_the_plain_network(name: str) -> None:
    with narrow():
        plain, es = create_small(name), create_small(f"es_{name}", tau=1, groups=1)
    assert list(plain.state_dict()) == list(es.state_dict())
    x = batch(name)
    for training in (True, False):
        outs = [model.train(training)(x) for model in (plain, es)]
        assert torch.equal(*outs)
        if training:
            for out in outs:
                out.square().sum().backward()
    for (key, p), q in zip(plain.named_parameters(), es.parameters(), strict=True):
        assert torch.equal(p, q) and (p.grad is q.grad is None or torch.equal(p.grad, q.grad)), key
    for (key, a), b in zip(plain.state_dict().items(), es.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    count = sum(p.numel() for p in on_meta(name).parameters())
    assert round(count / 1e6, 3) == PUBLISHED[name] / 1e6


def test_recu_resnet20_has_the_published_count() -> None:
    assert sum(p.numel() for p in create_model("recu_resnet20").parameters()) == 270522


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (2, 2), (4, 1)])
def test_expansion_keeps_weights_and_widens_what_is_per_channel(name: str, tau: int, groups: int) -> None:
    def sizes(model: nn.Module) -> tuple[int, int]:
        """Weights of convolutions and linear layers, and all that is per channel."""
        weights = (p for key, p in model.named_parameters() if key.endswith("weight"))
        matrices = sum(p.numel() for p in weights if p.dim() > 1)
        return matrices, sum(p.numel() for p in model.parameters()) - matrices

    plain, es = on_meta(name), on_meta(f"es_{name}", tau=tau, groups=groups)
    assert sizes(es)[0] == sizes(plain)[0]
    assert sizes(es)[1] > sizes(plain)[1]
    units = [[m for m in model.modules() if isinstance(m, BinaryUnit)] for model in (plain, es)]
    assert units[0]
    for unit, wide in zip(*units, strict=True):
        assert (unit.copies, wide.copies) == (1, tau * tau * groups)
        assert wide.conv.in_channels == tau * groups * unit.conv.in_channels
        assert wide.conv.out_channels * tau == unit.conv.out_channels
        assert wide.norm.num_features == tau * groups * unit.norm.num_features


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in WITHOUT_REP])
def test_rep_reads_all_channels_and_es_the_first(name: str) -> None:
    plain, es, rep = (on_meta(f"{rule}{name}") for rule in ("", "es_", "rep_"))
    width = plain.fc.in_features
    assert es.fc.in_features == width and isinstance(es.readout, SliceChannels) and es.readout.channels == width
    assert rep.fc.in_features == 2 * width and isinstance(rep.readout, nn.Identity)


def test_the_two_forms_of_recu_resnet18_and_the_34() -> None:
    for name, stem, size in (("", "cifar", 32), ("es_", "imagenet", 224), ("rep_", "imagenet", 224)):
        with narrow():
            model = create_small(f"{name}recu_resnet18", stem=stem)
        spec = model_spec(model)
        assert spec is not None and spec.input_size == (3, size, size) and spec.options["stem"] == stem
        starts = {m.weight.unique().item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
        assert starts == {torch.tensor(1e-8).item() if stem == "imagenet" else 1.0}
        assert model.head_norm.weight.unique().item() == 1 and model.stem.conv.kernel_size[0] == (3, 7)[size > 32]
        down = model.stages.layer2[0].shortcut
        assert isinstance(down[0], nn.Conv2d) and (down[0].stride, down[0].kernel_size) == ((2, 2), (1, 1))
    with pytest.raises(InputError, match=r"stem must be one of imagenet, cifar, got None"):
        create_small("recu_resnet18", stem=None)
    with torch.device("meta"):
        for name, base in (("recu_resnet34", "bireal_resnet34"), ("es_recu_resnet34", "bireal_resnet34")):
            result, want = (count(create_model(full), (3, 224, 224)) for full in (name, base))
            assert (result.bops, result.flops) == (want.bops, want.flops)


def test_in_a_stem_the_max_pool_and_the_hardtanh_may_change_places() -> None:
    with narrow():
        conv, norm, act, pool = create_small("recu_resnet34").double().stem
    with torch.no_grad():
        norm.weight.fill_(1.5)
        x = norm(conv(torch.randn(2, 3, 45, 38, dtype=torch.float64)))
        assert torch.equal(pool(act(x)), act(pool(x))) and (x.abs() > 1).any()


@pytest.mark.parametrize("count", [1, 3])
def test_further_acts_start_as_the_identity_and_bend_where_they_say(count: int) -> None:
    x = batch("reactnet_resnet8")
    torch.manual_seed(0)
    plain = create_model("reactnet_resnet8").eval()
    torch.manual_seed(0)
    model = create_model("reactnet_resnet8", further_acts=count)
    numbers = [sum(p.numel() for p in m.parameters()) for m in (plain, model)]
    units = [m for m in plain.modules() if isinstance(m, BinaryUnit)]
    assert numbers[1] - numbers[0] == 3 * count * sum(u.norm.num_features for u in units)
    torch.testing.assert_close(model.eval()(x), plain(x), rtol=1e-5, atol=1e-6)
    rows = [m for m in model.modules() if isinstance(m, nn.Sequential) and all(isinstance(a, RPReLU) for a in m)]
    assert [len(row) for row in rows] == [count] * len(units)
    # a slope of 0 leaves max(x, kink)
    kinks = [NormalDist().inv_cdf((j + 0.5) / count) for j in range(count)]
    for act, kink in zip(rows[0], kinks, strict=True):
        with torch.no_grad():
            act.slope.fill_(0)
        values = torch.linspace(-3, 3, 13).view(13, 1, 1, 1).expand(-1, act.slope.numel(), 1, 1)
        torch.testing.assert_close(act(values), values.clamp(min=kink))
    assert torch.equal(pack_(model)(x), model(x))
    with pytest.raises(InputError, match="further_acts must be a whole number of at least 0, got -1"):
        create_model("reactnet_resnet8", further_acts=-1)


def test_the_last_half_of_es_is_not_read() -> None:
    model = create_small("es_reactnet_resnet8")
    model(batch("es_reactnet_resnet8")).square().sum().backward()
    last = [m for m in model.modules() if isinstance(m, BinaryUnit)][-1]
    grad = last.norm.weight.grad
    assert grad[64:].abs().max() == 0 and grad[:64].abs().min() > 0
    rep = create_small("rep_reactnet_resnet8")
    rep(batch("es_reactnet_resnet8")).square().sum().backward()
    last = [m for m in rep.modules() if isinstance(m, BinaryUnit)][-1]
    assert last.norm.weight.grad.abs().min() > 0


@pytest.mark.parametrize("name", ["es_reactnet_resnet8", "es_bireal_resnet18"])
def test_stem_copies_start_equal_and_copy_spread_parts_them(name: str) -> None:
    x = batch(name)
    with narrow():
        model = create_small(name, tau=2, groups=2).eval()
    first, *others = model.stem(x).chunk(4, 1)
    assert all(torch.equal(first, other) for other in others)
    if "reactnet" in name:
        spread = create_small(name, copy_spread=1.0)
        shift = next(m for m in spread.modules() if isinstance(m, BinaryUnit)).conv.sign.shift
        assert shift.unique().numel() == 4
        spread(x).sum().backward()
        assert shift.grad is not None
    else:
        with pytest.raises(InputError, match=r"copy_spread.*stages.layer1.0"):
            create_small(name, copy_spread=1.0)


@pytest.mark.slow
def test_a_rule_adds_its_factors_to_the_options_of_the_plain_network() -> None:
    for name in list_models():
        rule, _, plain = name.partition("_")
        if rule not in ("es", "rep") or "binaryvit" in name or name.endswith(HEAVY):
            continue
        options, base = (list(model_spec(on_meta(n)).options.items()) for n in (name, plain))  # type: ignore[union-attr]
        factors = [("tau", 2), ("groups", 1), ("copy_spread", 0.0)] if rule == "es" else [("tau", 2)]
        place = [key for key, _ in base].index("in_channels") + 1
        assert options == [*base[:place], *factors, *base[place:]]


def test_a_family_builds_with_the_expansion_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", {})

    class Stub(nn.Module):
        def __init__(self, expansion: Expansion, in_channels: int = 3, depth: int = 7) -> None:
            super().__init__()
            self.given = expansion, in_channels, depth

    registry.register_family("stub", partial(Stub, depth=9), 32)
    assert list_models() == ["es_stub", "rep_stub", "stub"]
    assert create_model("stub").given == (Expansion(), 3, 9)
    assert create_model("es_stub", depth=1, copy_spread=0.5).given == (Expansion(2, 1, 0.5), 3, 1)
    assert create_model("rep_stub", tau=4).given == (Expansion(4, rule="rep"), 3, 9)
    with pytest.raises(InputError, match=r"rep_stub has no option 'groups': its options are in_channels, tau, depth$"):
        create_model("rep_stub", groups=2)
    registry.register_family("other", Stub, 32, rules=("plain", "es"), kind="trunk")
    assert list_models(kind="trunk") == ["es_other", "other"]


def test_names_and_options_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'reactnet_resnet81'.*reactnet_resnet8"):
        create_model("reactnet_resnet81")
    with pytest.raises(InputError, match=r"'zzz'.*list_models"):
        create_model("zzz")
    with pytest.raises(InputError, match=r"reactnet_resnet8 has no option 'tau'.*num_classes"):
        create_model("reactnet_resnet8", tau=2)
    with pytest.raises(InputError, match="'depth'"):
        create_model("es_reactnet_resnet8", depth=3)
    with pytest.raises(InputError, match="reactnet_resnet8"):
        register_model("reactnet_resnet8", nn.Identity, 32)


@pytest.mark.parametrize(("tau", "groups"), [(3, 1), (2, 16), (1, 5)])
def test_widths_are_refused_by_layer(tau: int, groups: int) -> None:
    with pytest.raises(InputError) as error:
        create_small("es_reactnet_resnet20", tau=tau, groups=groups)
    for word in ("stages.layer1.0", "width 16", f"tau={tau}", f"groups={groups}"):
        assert word in str(error.value)


@pytest.mark.parametrize("value", [0, -2, 1.5, "2", True])
def test_factors_are_refused_by_name(value: object) -> None:
    for key in ("tau", "groups"):
        with pytest.raises(InputError, match=f"{key} must be"):
            create_small("es_reactnet_resnet8", **{key: value})


def test_the_spec_rebuilds_the_network() -> None:
    model = create_model("es_reactnet_resnet8", tau=4, in_channels=1)
    spec = model_spec(model)
    assert spec is not None and spec.input_size == (1, 32, 32)
    options = {"num_classes": 10, "in_channels": 1, "tau": 4, "groups": 1, "copy_spread": 0.0, "further_acts": 0}
    assert spec.options == options
    again = create_model(spec.name, **spec.options)
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 20, 20)
    assert torch.equal(model.eval()(x), again.eval()(x))
    assert model_spec(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("name", [name for name in BRICKS if name in PLAIN])
def test_odd_sizes_and_other_channels(name: str) -> None:
    with narrow():
        model = create_small(f"es_{name}", in_channels=4).eval()
    x = torch.randn(1, 4, 29, 21, generator=torch.Generator().manual_seed(0))
    assert model(x).shape == (1, 5)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    wide = Expansion(2)
    units = [
        BinaryUnit(8, 8, expansion=wide, shortcut=nn.Identity()),
        BinaryUnit(8, 16, stride=2, expansion=wide, inner_act=True),
    ]
    return pack_(nn.Sequential(nn.Conv2d(3, 16, 3), *units))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_packed_network_compiles_without_graph_breaks(backend: str) -> None:
    model = small_network()
    x = torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
