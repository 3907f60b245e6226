"""Every recipe parses, builds and says what it is: header against body, learning rates against the papers' formulas."""

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import RealWeights, ReCU, Temperature
from esbnn_core.lit.callbacks import ExportWeights, ReCUSchedule, TemperatureSchedule
from esbnn_core.lit.cli import TaskCLI
from esbnn_core.lit.recipes import read_config, read_recipe
from tasks.classification.augment import Augmentation
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tasks.classification.objectives import ConsecutiveObjective, LatentObjective, TeacherObjective

ROOT = Path(__file__).parents[2]
RECIPES = sorted(p for p in (ROOT / "configs/classification").glob("*.yaml") if not p.stem.startswith("demo_"))
NAMES = [path.stem for path in RECIPES]
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
FACTS = ("Epochs", "Global batch", "Learning rate", "Teacher", "The paper reports", "Differs from the paper")


def path(name: str) -> Path:
    return ROOT / "configs/classification" / f"{name}.yaml"


def body(name: str) -> dict[str, Any]:
    return read_recipe(path(name), ClassificationModule.monitor)


def header(name: str) -> str:
    """The comment on top as one line of text."""
    lines = []
    for line in path(name).read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return " ".join(lines)


@cache
def build(name: str, *words: str) -> TaskCLI:
    """Parsed against the type hints and built without data; step 1's file is not there."""
    with torch.device("meta"):
        return TaskCLI(
            ClassificationModule,
            ClassificationDataModule,
            run=False,
            args=["--config", str(path(name)), "--model.weights=null", "--trainer.accelerator=cpu", *words],
            seed_everything_default=0,
        )


# peak * factor(epoch) of every recipe, as the papers' scripts have it (papers.md#two-steps, #bnext-optimizer,
# #bireal, #recu, #adambnn, #binaryvit-training)
def linear(epoch: int, epochs: int) -> float:
    return 1 - (epoch + 1) / epochs


def bnext(epoch: int, epochs: int) -> float:
    if epoch < 5:
        return (1e-5 + epoch * (1e-3 - 1e-5) / 5) / 1e-3
    return (1e-7 + (1e-3 - 1e-7) * 0.5 * (1 + math.cos(math.pi * (epoch - 5) / epochs))) / 1e-3


def binaryvit(epoch: int, epochs: int) -> float:
    return (1e-5 + (5e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * max(0, epoch - 1) / epochs))) / 5e-4


def recu(epoch: int, epochs: int) -> float:
    return (epoch + 1) / 5 if epoch < 5 else 0.5 * (1 + math.cos(math.pi * (epoch - 4) / (epochs - 4)))


# start of the name -> (peak, factor, epochs, global batch)
RATES: dict[str, tuple[float, Callable[[int, int], float], int, int]] = {
    "reactnet_r18": (2.5e-3, linear, 128, 512),
    "reactnet_a": (1.25e-3, linear, 128, 256),
    "adambnn_reactnet_a": (1.25e-3, linear, 256, 256),
    "bireal_r18": (1e-3, linear, 256, 512),
    "bidet_": (1e-3, linear, 256, 512),
    "latent_r": (1e-3, linear, 256, 512),
    "bnext_large": (1e-3, bnext, 512, 128),
    "bnext": (1e-3, bnext, 512, 512),
    "binaryvit": (5e-4, binaryvit, 300, 512),
    "recu_r20_cifar10": (0.1, recu, 600, 256),
    "recu_r18_imagenet": (0.1, recu, 200, 512),
}


def rates(name: str) -> tuple[float, Callable[[int, int], float], int, int]:
    base = re.sub(r"^(es|rep)_", "", name)
    return next(row for start, row in RATES.items() if base.startswith(start))


def test_the_recipes_that_were_asked_for_are_there() -> None:
    two = ("reactnet_r18", "es_reactnet_r18", "reactnet_a", "es_reactnet_a", "adambnn_reactnet_a")
    want = {f"{name}_step{step}" for name in (*two, "rep_adambnn_reactnet_a") for step in (1, 2)}
    want |= {f"bnext_{size}" for size in ("tiny", "small", "middle", "large")} | {"es_bnext_tiny", "bireal_r18"}
    want |= {"binaryvit", "es_binaryvit", "recu_r18_imagenet", "latent_r18", "latent_r34"}
    want |= {f"{prefix}bidet_{trunk}" for prefix in ("", "es_") for trunk in ("vgg16", "resnet18")}
    want |= {f"{prefix}recu_r20_cifar10" for prefix in ("", "rep_", "es_")}
    assert want <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_the_body_does(name: str) -> None:
    text, recipe = header(name), body(name)
    for fact in FACTS:
        assert re.search(rf"\b{fact}: \S", text), f"{fact} is not in the header"
    peak, _, epochs, batch = rates(name)
    assert f"Epochs: {epochs}." in text and recipe["trainer"]["max_epochs"] == epochs
    (said,) = re.findall(r"Global batch: (\d+) = (\d+) process(?:es)? x (\d+)", text)
    assert [int(said[0])] == [int(said[1]) * int(said[2])] == [batch]
    assert recipe["data"]["batch_size"] == int(said[2])
    machines = yaml.safe_load(
        (ROOT / "configs/trainer" / ("ddp8" if said[1] == "8" else "gpu1")).with_suffix(".yaml").read_text()
    )
    assert machines["trainer"]["devices"] == int(said[1])
    optimizer = recipe["model"]["optimizer"]
    assert f"Learning rate: {optimizer['class_path'].rsplit('.', 1)[1]}" in text
    assert optimizer["init_args"]["lr"] == peak and f"{peak:g}" in [
        f"{float(x):g}" for x in re.findall(r"\d[\d.e-]*\d", text)
    ]
    assert (
        f"configs/classification/{name}.yaml" in text
        and f"configs/trainer/{'ddp8' if said[1] == '8' else 'gpu1'}.yaml" in text
    )
    assert recipe["trainer"]["default_root_dir"] == f"runs/{name}"
    assert recipe["trainer"]["logger"][0]["init_args"]["save_dir"] == f"runs/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_its_learning_rate_is_the_papers(name: str) -> None:
    cli = build(name)
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    peak, factor, epochs, _ = rates(name)
    module.trainer = trainer
    # the network is on meta, as an optimizer and a schedule do not mind
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "epoch" and trainer.max_epochs == epochs
    got = []
    for epoch in range(epochs):
        schedule.last_epoch = epoch
        got.append(schedule.get_lr()[0])
    assert optimizer.param_groups[0]["lr"] == got[0]
    assert got == pytest.approx([peak * factor(epoch, epochs) for epoch in range(epochs)], rel=1e-6, abs=1e-12)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.network.parameters())
    assert module.num_classes == data.num_classes == (10 if "cifar10" in name else 1000)
    assert any(isinstance(callback, ExportWeights) for callback in trainer.callbacks)
    module.check_data(data)


@pytest.mark.parametrize("name", NAMES)
def test_quantizers_have_the_callback_that_drives_them(name: str) -> None:
    cli = build(name)
    kinds = {type(layer.quantizer) for _, layer in binary_layers(cli.model.network)}
    callbacks = {type(callback) for callback in cli.trainer.callbacks}
    assert (Temperature in kinds) is (TemperatureSchedule in callbacks)
    assert (ReCU in kinds) is (ReCUSchedule in callbacks)
    for callback in cli.trainer.callbacks:
        if isinstance(callback, TemperatureSchedule):
            assert callback.factor == 0.9 and "Temperature: 0.9^e in epoch e" in header(name)
        if isinstance(callback, ReCUSchedule):
            assert (callback.start, callback.end) == (0.85, 0.99) and "0.85 up to 0.99" in header(name)
    assert (kinds == {RealWeights}) is name.endswith("_step1") and (RealWeights in kinds) is name.endswith("_step1")


@pytest.mark.parametrize("name", NAMES)
def test_the_decay_is_the_papers(name: str) -> None:
    groups = build(name).model
    optimizer = groups.make_optimizer(
        list(groups.network.parameters()) if groups.decay is None else groups.decay.groups(groups.network)
    )
    got = [group["weight_decay"] for group in optimizer.param_groups]
    if name.endswith("_step1"):
        assert got == [5e-6 if "adambnn" in name else 1e-5, 0]
    elif "bnext" in name:
        assert got == [1e-8, 1e-3]
    elif name == "recu_r18_imagenet":
        assert got == [1e-4, 0]
    else:
        assert got == [5e-4 if "recu" in name else 0]
    for value in got:
        assert not value or f"{value:g}" in [f"{float(x):g}" for x in re.findall(r"\d[\d.e-]*\d", header(name))]


# what each family's images are made with, beside the crop and mirror of all (papers.md#two-steps, #bnext-data, #recu,
# #binaryvit-training)
IMAGES: dict[str, dict[str, Any]] = {
    "bnext": {
        "rand_augment": "rand-m7-mstd0.5-inc1",
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "eval_interpolation": "bicubic",
    },
    "binaryvit": {"eval_interpolation": "bicubic"},
    "recu_r20": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "recu_r18": {"crop_scale": (0.08, 1.25), "lighting": 0.1},
    "": {"lighting": 0.1},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_images_are_the_papers(name: str) -> None:
    base = re.sub(r"^(es|rep)_", "", name)
    options = next(options for start, options in IMAGES.items() if base.startswith(start))
    assert build(name).datamodule.augmentation == Augmentation(**options)


STEP2 = [name for name in NAMES if name.endswith("_step2")]


@pytest.mark.parametrize("name", STEP2)
def test_step_2_starts_where_step_1_ends(name: str) -> None:
    first, second = body(name.replace("_step2", "_step1")), body(name)
    assert second["model"]["weights"] == f"{first['trainer']['default_root_dir']}/weights.safetensors"
    assert first["model"]["network"] == second["model"]["network"]
    assert first["model"].get("network_options") == second["model"].get("network_options")
    # AdamBNN goes on from the best network, ReActNet from the last (papers.md#two-steps, quirk b)
    export = build(name.replace("_step2", "_step1")).trainer.callbacks
    (which,) = [callback.which for callback in export if isinstance(callback, ExportWeights)]
    assert which == ("best" if "adambnn" in name else "last")
    assert f"Start: the {which} network of step 1" in header(name)
    a, b = (build(n).model.network.state_dict() for n in (name.replace("_step2", "_step1"), name))
    assert {k: t.shape for k, t in a.items()} == {k: t.shape for k, t in b.items()}


@pytest.mark.parametrize(
    ("name", "assistants", "main"),
    [
        ("bnext_tiny", ["b0"], "b2"),
        ("es_bnext_tiny", ["b0"], "b2"),
        ("bnext_small", ["b0"], "b2"),
        ("bnext_middle", ["b0", "b2"], "b4"),
        ("bnext_large", ["b0", "b4", "convnext_tiny"], "convnext_tiny"),
    ],
)
def test_bnexts_teachers_and_both_forms_of_its_loss(name: str, assistants: list[str], main: str) -> None:
    def short(teacher: Any) -> str:
        word: str = teacher.name.split(".")[0].removeprefix("efficientnet_")
        return word

    objective = build(name).model.objective
    assert isinstance(objective, ConsecutiveObjective) and objective.per_instance is False
    assert ([short(t) for t in objective.assistants], short(objective.main)) == (assistants, main)
    assert "--model.objective.init_args.per_instance true" in header(name)
    if main == "convnext_tiny":  # one option of one class: parsed once
        assert build(name, "--model.objective.init_args.per_instance=true").model.objective.per_instance is True
    assert body(name)["trainer"]["gradient_clip_val"] == 5.0 and "clipped at 5." in header(name)


@pytest.mark.slow
def test_the_other_objectives() -> None:
    for name in NAMES:
        objective = build(name).model.objective
        if "binaryvit" in name:
            assert objective.teacher.name == "deit_small_patch16_224.fb_in1k" and objective.label_share == 0
            assert body(name)["trainer"]["precision"] == "16-mixed"
        elif "reactnet" in name:
            assert (objective.teacher.name, objective.teacher.weights) == ("resnet34", "IMAGENET1K_V1")
            assert objective.label_share == 0
        elif "latent" in name:
            assert isinstance(objective, LatentObjective)
        assert isinstance(objective, TeacherObjective) is ("binaryvit" in name or "reactnet" in name)
        if "binaryvit" not in name:
            assert body(name)["trainer"]["precision"] == "32-true"


def test_the_start_that_is_recommended_goes_after_a_recipe_of_every_task() -> None:
    """It adds its callback to those of the recipe; the demo's ES network has the same."""
    start = read_config(ROOT / "configs/start_apart.yaml")["trainer"]["callbacks+"]
    demo = read_config(ROOT / "configs/classification/demo_es.yaml")["trainer"]["callbacks+"]
    assert start[0] in demo and len(start) == 1
    named = [path for path in (ROOT / "configs").glob("*/es_*.yaml") if "--config configs/start_" in path.read_text()]
    # the second of two steps starts from the weights of the first, and with them from its thresholds
    assert sorted(path.stem for path in (ROOT / "configs").glob("*/es_*.yaml") if path not in named) == [
        "es_reactnet_a_step2",
        "es_reactnet_r18_step2",
    ]
