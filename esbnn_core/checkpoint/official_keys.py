"""Names and shapes of the originals' tensors: one KeyMap for each family of networks, in one table.

Source: papers.md#checkpoints, #golden-records.

Every official key is used exactly once. Names and shapes are facts; none of the originals' code is here.
A new family is one entry of KEY_MAPS. For a network that is built outside esbnn_core a module declares the entry; the
class of the network or of a part of it names that module in its attribute `official_keys`, and the module is imported
when such a network is first read or written.
"""

import functools
import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.models import BiDetResNet, BiDetVGG16, BinaryResNet, BinaryViT, BNext, ReActNetA, model_spec
from esbnn_core.models.vgg import BiDetVGG16Classifier

Rules = tuple[tuple[str, str], ...]
"""(pattern, replacement) of re.sub, applied in order."""


@dataclass(frozen=True)
class KeyMap:
    """How one family's originals name and shape their tensors.

    Attributes:
        fits: whether a network is of the family.
        rules: from our key to the official one.
        looks: (part of an official key, what a file with such a key looks like); the first family with a hit is named.
        fix: (name after the rules, our key, all our keys) -> official name, for what no rule can express.
        shapes: pattern of an official key -> its shape in the original, -1 for all elements; others are as ours.
        spelling: from a key in a file to the official one, for files that differ among themselves.
        negated: pattern of the official keys whose values have the opposite sign of ours.
        ours_only: pattern of our keys that the originals do not have; they keep their values.
    """

    fits: Callable[[nn.Module], bool]
    rules: Rules
    looks: tuple[tuple[str, str], ...]
    fix: Callable[[str, str, Collection[str]], str] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spelling: Rules = ()
    negated: str | None = None
    ours_only: str | None = None

    def sign(self, name: str) -> int:
        """+1, or -1 for an official key whose values are the negative of ours."""
        return -1 if self.negated and re.search(self.negated, name) else 1


def _named(*ends: str) -> Callable[[nn.Module], bool]:
    """Whether a network is a BinaryResNet of one of these names, plain, es_ or rep_."""

    def fits(model: nn.Module) -> bool:
        spec = model_spec(model)
        return isinstance(model, BinaryResNet) and spec is not None and spec.name.endswith(ends)

    return fits


def _pair_units(name: str, key: str, keys: Collection[str]) -> str:
    """layer1.5.conv -> layer1.2.conv2: the originals of ReCU keep two units in a block."""
    match = re.match(r"^(layer\d)\.(\d+)\.(conv|norm)\.(.*)$", name)
    if not match:
        return name
    stage, unit, part, rest = match.groups()
    return f"{stage}.{int(unit) // 2}.{'conv' if part == 'conv' else 'bn'}{int(unit) % 2 + 1}.{rest}"


def _bidet_blocks(name: str, key: str, keys: Collection[str]) -> str:
    """layer2.1.norm -> layer2.0.conv2.bn, layer2.0.shortcut.1 -> layer2.0.shortcut.0.1: two units are one block."""
    match = re.match(r"^(layer\d)\.(\d+)\.(conv|norm|shortcut)\.(.*)$", name)
    if not match:
        return name
    stage, unit, part, rest = match.groups()
    block, number = divmod(int(unit), 2)
    inner = {"conv": f"conv{number + 1}.conv", "norm": f"conv{number + 1}.bn", "shortcut": "shortcut.0"}[part]
    return f"{stage}.{block}.{inner}.{rest}"


def _doubles(key: str, keys: Collection[str], branch: str) -> bool:
    """Whether the block of our key has a second branch, so that its width doubles."""
    return f"{'.'.join(key.split('.')[:2])}.point.1.{branch}" in keys


def _branches(name: str, key: str, keys: Collection[str]) -> str:
    """feature.1.point.1.norm -> bn2_2 where the width doubles, bn2 where there is one branch."""
    match = re.match(r"^(feature\.\d+)\.point\.(\d)\.(conv|norm)\.(.*)$", name)
    if not match:
        return name
    doubled = _doubles(key, keys, "conv.weight")
    block, branch, part, rest = match.groups()
    number = int(branch) + 1
    if part == "conv":
        return f"{block}.binary_pw{f'_down{number}' if doubled else ''}.{rest}"
    return f"{block}.bn2{f'_{number}' if doubled else ''}.{rest}"


def _bnext_units(name: str, key: str, keys: Collection[str]) -> str:
    """feature.2.point.0 -> feature.2.FFN_1 where the width doubles, else FFN; the 3x3 unit -> FFN_3x3 without ELM."""
    # with ELM every second 3x3 unit attends, and the original calls all of them Attention (papers.md#bnext)
    if not any(".attention.act_in." in other for other in keys):
        name = name.replace(".Attention.", ".FFN_3x3.")
    doubled = _doubles(key, keys, "core.conv.weight")
    number = (lambda m: f".FFN_{int(m.group(1)) + 1}.") if doubled else (lambda m: ".FFN.")
    return re.sub(r"\.point\.(\d)\.", number, name)


_VIT_UNITS = {  # our unit -> (official prefix, letter after move, norm and rprelu, linear layer)
    "attention.query": ("attention.attention.", "q", "query"),
    "attention.key": ("attention.attention.", "k", "key"),
    "attention.value": ("attention.attention.", "v", "value"),
    "attention.reduce": ("attention.attention.", "r", "reduction"),
    "attention.project": ("attention.output.", "", "dense"),
    "ffn.expand": ("intermediate.", "", "dense"),
    "ffn.shrink": ("output.", "", "dense"),
}


def _vit_rules() -> Rules:
    """Rules of BinaryViT's token units, then of what is around them."""
    rules: list[tuple[str, str]] = []
    for unit, (prefix, letter, linear) in _VIT_UNITS.items():
        start = rf"^(layers\.\d+)\.{re.escape(unit)}\."
        norm = "norm_r" if letter == "r" else f"norm{letter}"
        rules += [
            (start + r"linear\.sign\.shift$", rf"\1.{prefix}move{letter}"),
            (start + r"linear\.weight$", rf"\1.{prefix}{linear}.weight"),
            (start + r"norm\.", rf"\1.{prefix}{norm}."),
            (start + r"act\.", rf"\1.{prefix}rprelu{letter}."),
        ]
    return (
        *rules,
        (r"\.attention\.sign_([qkv])\.shift$", r".attention.attention.move\g<1>2"),
        (r"\.attention\.softmax\.threshold$", ".attention.attention.att_prob_clip"),
        (r"(layers\.\d+)\.attention\.norm\.", r"\1.attention.attention.norm_context."),
        (r"(layers\.\d+)\.attention\.act\.", r"\1.attention.attention.rprelu_context."),
        (r"\.attention\.scale\.", ".attention.output.layerscale."),
        (r"\.ffn\.scale\.", ".output.layerscale."),
        (r"\.pools\.scales\.(\w+)\.", r".layerscale_\1."),
        (r"\.norm_(before|after)\.", r".layernorm_\1."),
        (r"\.merge\.conv\.sign\.shift$", ".move"),
        (r"\.merge\.conv\.weight$", ".proj.weight"),
        (r"\.merge\.act\.", ".rprelu."),
        (r"\.merge\.norm\.", ".norm."),
        (r"\.norm_in\.", ".norm0."),
        (r"\.slope$", ".prelu.weight"),
        (r"\.shift_in$", ".move1"),
        (r"\.shift_out$", ".move2"),
        (r"\.position$", ".position_embeddings"),
        (r"^stem\.conv\.", "vit.embeddings.patch_embeddings.projection."),
        (r"^stem\.", "vit.embeddings."),
        (r"^layers\.", "vit.encoder.layer."),
        (r"^norm\.", "vit.layernorm."),
        (r"^fc\.", "classifier."),
    )


def _merges(name: str, key: str, keys: Collection[str]) -> str:
    """merges.3.proj -> vit.encoder.patch_embed1.proj: ours have the number of the next layer, the originals count."""
    match = re.match(r"^merges\.(\d+)\.(.*)$", name)
    if not match:
        return name
    places = sorted({int(k.split(".")[1]) for k in keys if k.startswith("merges.")})
    return f"vit.encoder.patch_embed{places.index(int(match.group(1))) + 1}.{match.group(2)}"


# (C,) here
_SHIFTS = {r"\.move\d*\.bias$": (1, -1, 1, 1)}

KEY_MAPS: dict[str, KeyMap] = {
    "bnext": KeyMap(
        fits=lambda model: isinstance(model, BNext),
        rules=(
            (r"^stem\.conv\.", "feature.0.conv1."),
            (r"^stem\.norm\.", "feature.0.bn1."),
            (r"^stem\.unused_prelu$", "feature.0.prelu.weight"),
            (r"^blocks\.", "feature."),
            (r"\.attention\.", ".Attention."),
            (r"\.core\.conv\.sign\.shift$", ".move.bias"),
            (r"\.core\.conv\.weight$", ".binary_conv.weight"),
            (r"\.core\.conv\.quantizer\.temperature$", ".binary_conv.temperature"),
            (r"\.activation_temperature$", ".binary_activation.temperature"),
            (r"\.core\.norm\.", ".norm1."),
            (r"\.core\.inner_act\.weight$", ".activation2.weight"),
            (r"\.act_in\.weight$", ".activation1.weight"),
            (r"\.unused_act$", ".activation1.weight"),
            (r"\.gate\.se\.", ".se.se."),
            (r"^act\.weight$", "prelu.weight"),
        ),
        looks=(
            (".Attention.", "a BNext (bnext_*, es_bnext_*)"),
            (".FFN_3x3.", "a BNext without ELM (bnext_*, es_bnext_* with elm=False)"),
        ),
        fix=_bnext_units,
        shapes=_SHIFTS,
    ),
    "reactnet_a": KeyMap(
        fits=lambda model: isinstance(model, ReActNetA),
        rules=(
            (r"^stem\.conv\.", "feature.0.conv1."),
            (r"^stem\.norm\.", "feature.0.bn1."),
            (r"^blocks\.", "feature."),
            (r"\.spatial\.conv\.sign\.shift$", ".move11.bias"),
            (r"\.spatial\.conv\.weight$", ".binary_3x3.weight"),
            (r"\.spatial\.norm\.", ".bn1."),
            (r"\.spatial\.act\.shift_in$", ".move12.bias"),
            (r"\.spatial\.act\.slope$", ".prelu1.weight"),
            (r"\.spatial\.act\.shift_out$", ".move13.bias"),
            (r"\.point\.\d\.conv\.sign\.shift$", ".move21.bias"),
            (r"\.(point\.0\.)?act\.shift_in$", ".move22.bias"),
            (r"\.(point\.0\.)?act\.slope$", ".prelu2.weight"),
            (r"\.(point\.0\.)?act\.shift_out$", ".move23.bias"),
        ),
        looks=((".binary_3x3.", "ReActNet-A (reactnet_a, rep_reactnet_a)"),),
        fix=_branches,
        shapes=_SHIFTS,
    ),
    "reactnet": KeyMap(
        fits=_named("reactnet_resnet18", "reactnet_resnet34", "bireal_resnet18", "bireal_resnet34"),
        rules=(
            (r"^stem\.conv\.", "conv1."),
            (r"^stem\.norm\.", "bn1."),
            (r"^stages\.", ""),
            (r"\.conv\.sign\.shift$", ".move0.bias"),
            (r"\.conv\.weight$", ".binary_conv.weight"),
            (r"\.norm\.", ".bn1."),
            (r"\.shortcut\.", ".downsample."),
            (r"\.act\.shift_in$", ".move1.bias"),
            (r"\.act\.slope$", ".prelu.weight"),
            (r"\.act\.shift_out$", ".move2.bias"),
        ),
        looks=(
            (".move0.", "a ReActNet-ResNet (reactnet_resnet18 or 34)"),
            (".binary_conv.", "a Bi-Real ResNet (bireal_resnet18 or 34)"),
        ),
        shapes=_SHIFTS,
    ),
    "recu": KeyMap(
        fits=_named("recu_resnet20"),
        rules=(
            (r"^stem\.conv\.", "conv1."),
            (r"^stem\.norm\.", "bn1."),
            (r"^stages\.", ""),
            (r"\.quantizer\.tau$", ".tau"),
            (r"\.learned_scale$", ".alpha"),
            (r"^head_norm\.", "bn2."),
            (r"^fc\.", "linear."),
        ),
        looks=((".alpha", "a ReCU ResNet (recu_resnet20)"),),
        fix=_pair_units,
        shapes={r"\.alpha$": (-1, 1, 1)},
    ),
    # The original's list of names was not available. These names reproduce the reference outputs, whose weights depend
    # only on the sum of a name's letters: the shortcut's could be others of the same sum. A file with other names is
    # refused by the first that differs.
    "bidet_resnet18": KeyMap(
        fits=lambda model: isinstance(model, BiDetResNet),
        rules=((r"^stem\.conv\.", "conv1."), (r"^stem\.norm\.", "bn1."), (r"^stages\.", "")),
        looks=((".conv1.bn.", "BiDet's ResNet-18 (bidet_resnet18)"),),
        fix=_bidet_blocks,
    ),
    "bidet_vgg16": KeyMap(
        # the file holds the trunk alone: a classifier that was filled from it would answer from a random read-out
        fits=lambda model: isinstance(model, BiDetVGG16) and not isinstance(model, BiDetVGG16Classifier),
        rules=(
            (r"^stem\.conv\.", "vgg.layers.0."),
            (r"^stem\.norm\.", "vgg.layers.1."),
            (r"^(front|back)\.", "vgg.layers."),
            (r"^conv6\.conv\.", "vgg.layers.19."),
            (r"^conv6\.norm\.", "vgg.layers.20."),
            (r"^conv7\.conv\.", "vgg.layers.22."),
            (r"^conv7\.norm\.", "vgg.layers.23."),
            (r"\.norm\.", ".bn."),
            (r"\.shortcut\.", ".downsample."),
        ),
        looks=(("17.bn.", "BiDet's VGG-16 (bidet_vgg16)"),),
        # the file of the trunk alone has the keys without the detector's prefix
        spelling=((r"^(layers\.)?(?=\d)", "vgg.layers."),),
    ),
    "binaryvit": KeyMap(
        fits=lambda model: isinstance(model, BinaryViT),
        rules=_vit_rules(),
        looks=(("vit.encoder.", "a BinaryViT (binaryvit, binaryvit_some_real)"),),
        fix=_merges,
        shapes={r"\.patch_embed\d\.move$": (1, -1, 1, 1)},
        negated=r"\.move1$",  # its RPReLU subtracts the first shift (papers.md#binaryvit)
    ),
}
"""By family; a file looks like the first family whose part it holds, so special families come before general ones."""


def declare(name: str, family: KeyMap) -> None:
    """Enter a family whose networks are built outside esbnn_core, before the others; a known name is replaced."""
    others = {known: other for known, other in KEY_MAPS.items() if known != name}
    KEY_MAPS.clear()
    KEY_MAPS.update({name: family, **others})


def key_map(model: nn.Module) -> KeyMap:
    """The key map of the network. Raises InputError for one without an original."""
    for module in dict.fromkeys(getattr(type(part), "official_keys", None) for part in model.modules()):
        if module is not None:
            importlib.import_module(module)  # declares its families
    for family in KEY_MAPS.values():
        if family.fits(model):
            return family
    spec = model_spec(model)
    name = spec.name if spec else type(model).__name__
    raise InputError(f"network {name} has no official files that a key map is declared for: give one that has")


def official_names(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our key -> (official key, official shape) for every tensor of the network; a shared tensor has two keys."""
    family, state = key_map(model), model.state_dict()
    names = {}
    for key, tensor in state.items():
        if family.ours_only is not None and re.search(family.ours_only, key):
            continue
        name = apply_rules(family.rules, key)
        if family.fix is not None:
            name = family.fix(name, key, state.keys())
        shape = tuple(tensor.shape)
        for pattern, kept in family.shapes.items():
            if re.search(pattern, name):
                shape = tuple(tensor.numel() if size == -1 else size for size in kept)
        names[key] = (name, shape)
    return names


@functools.lru_cache(10_000)
def apply_rules(rules: Rules, key: str) -> str:
    """The key after every rule, in order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def looks_like(keys: Iterable[str]) -> str:
    """The network that a file with these official keys looks like, in words."""
    keys = list(keys)
    for family in KEY_MAPS.values():
        for part, text in family.looks:
            if any(part in key for key in keys):
                return text
    return "another network"
