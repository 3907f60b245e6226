"""Recipes: what `base` resolves to, what a run gets that its recipe leaves open, and who wins over whom."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from esbnn_core.errors import InputError
from esbnn_core.lit.cli import TaskCLI, run
from esbnn_core.lit.recipes import find_setting, read_config, read_recipe
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule

ROOT = Path(__file__).parents[2]
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests/golden/recipes.json").read_text())
MONITORS = {"classification": "val_top1", "detection": "val_map_11point", "super_resolution": "val_psnr"}
OPENED = {"model.real_weights": False, "model.decay": None}
"""What a step 2 takes back of its base, step 1; both are the defaults of the module."""
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a nested mapping."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def test_the_golden_file_has_every_recipe() -> None:
    found = [path for task in MONITORS for path in (ROOT / "configs" / task).glob("*.yaml")]
    recipes = {f"{path.parent.name}/{path.stem}" for path in found if "seed_everything" in read_config(path)}
    assert recipes == set(GOLDEN) and len(recipes) == 47


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recipe_resolves_to_what_it_was_when_it_was_written_out(name: str) -> None:
    got = dict(flat(read_recipe(ROOT / "configs" / f"{name}.yaml", MONITORS[name.split("/")[0]])))
    want = dict(flat(GOLDEN[name]))
    for key, value in OPENED.items():
        if name.endswith("_step2") and got[key] == value:
            del got[key]
    differing = {
        key: (got.get(key), want.get(key)) for key in got.keys() | want.keys() if got.get(key) != want.get(key)
    }
    assert not differing and got.keys() == want.keys()


def write(folder: Path, **bodies: Any) -> None:
    for name, body in bodies.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(body))


def test_a_base_is_merged_key_by_key(tmp_path: Path) -> None:
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1, "eps": 1e-7}}
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2}}
    write(
        tmp_path,
        first={"model": {"optimizer": adam, "options": {"tau": 2}, "sizes": [1, 2]}, "data": {"root": "a"}},
        second={"base": "first.yaml", "model": {"optimizer": {"init_args": {"lr": 0.3}}, "options": {"groups": 1}}},
        third={"base": "second.yaml", "model": {"optimizer": sgd, "sizes": [3], "options": None}},
        same={"base": "first.yaml", "model": {"optimizer": {**adam, "init_args": {"eps": 1e-3}}}},
    )
    second = read_config(tmp_path / "second.yaml")
    assert second == {
        "model": {
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.3, "eps": 1e-7}},
            "options": {"tau": 2, "groups": 1},
            "sizes": [1, 2],
        },
        "data": {"root": "a"},
    }
    third = read_config(tmp_path / "third.yaml")
    assert third["model"] == {"optimizer": sgd, "options": None, "sizes": [3]} and third["data"] == {"root": "a"}
    assert read_config(tmp_path / "same.yaml")["model"]["optimizer"]["init_args"] == {"lr": 0.1, "eps": 1e-3}


def test_what_a_recipe_adds_to_a_list_is_added_to_its_base(tmp_path: Path) -> None:
    write(
        tmp_path,
        one={"trainer": {"callbacks": [1]}},
        two={"base": "one.yaml", "trainer": {"callbacks+": [2]}},
        three={"trainer": {"callbacks+": [3]}},
        four={"base": "three.yaml", "trainer": {"callbacks+": [4]}},
        five={"base": "four.yaml", "trainer": {"callbacks": [5]}},
    )
    assert read_config(tmp_path / "two.yaml")["trainer"] == {"callbacks": [1, 2]}
    assert read_config(tmp_path / "four.yaml")["trainer"] == {"callbacks+": [3, 4]}
    assert read_config(tmp_path / "five.yaml")["trainer"] == {"callbacks": [5]}
    # and to the defaults of a run, before the export
    checkpoint, rate, *added, export = read_recipe(tmp_path / "four.yaml")["trainer"]["callbacks"]
    assert added == [3, 4] and kinds([checkpoint, rate, export])[2] == "ExportWeights"


def test_a_base_is_looked_for_beside_the_recipe_and_below_the_repository(tmp_path: Path) -> None:
    write(tmp_path, mine={"base": "configs/classification/es_bnext_tiny.yaml", "data": {"batch_size": 2}})
    want = read_config(ROOT / "configs/classification/es_bnext_tiny.yaml")
    assert read_config(tmp_path / "mine.yaml") == {**want, "data": {**want["data"], "batch_size": 2}}
    (tmp_path / "numbers.yaml").write_text("a: 1e-3\nb: 5.0e-6\n")  # as the command line reads them
    assert read_config(tmp_path / "numbers.yaml") == {"a": 1e-3, "b": 5e-6}


@pytest.mark.parametrize(
    ("bodies", "sentence"),
    [
        (
            {"a": {"base": "b.yaml"}, "b": {"base": "c.yaml"}, "c": {"base": "a.yaml"}},
            "a.yaml -> b.yaml -> c.yaml -> a",
        ),
        ({"a": {"base": "a.yaml"}}, "the base of a config must not lead back to it, got a.yaml -> a.yaml: remove"),
        ({"a": {"base": "gone.yaml"}}, r"a.yaml must be a file beside it or below the repository, got 'gone.yaml'"),
        ({"a": {"base": ["b.yaml"]}, "b": {}}, r"below the repository, got \['b.yaml'\]: correct the path"),
        ({"a": {"base": "b.yaml"}, "b": [1]}, "b.yaml must hold a mapping, got list: restore it"),
        ({"a": {"base": "b.yaml"}, "b": None}, "b.yaml must hold a mapping, got NoneType"),
    ],
)
def test_a_base_that_does_not_resolve_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bodies: dict[str, Any], sentence: str
) -> None:
    write(tmp_path, **bodies)
    with pytest.raises(InputError, match=sentence):
        read_config(tmp_path / "a.yaml")
    # and of the command, which writes nothing
    before = set(tmp_path.iterdir())
    assert run(ClassificationModule, ClassificationDataModule, ["fit", "--config", str(tmp_path / "a.yaml")]) == 2
    assert capsys.readouterr().err.count("error: ") == 1 and set(tmp_path.iterdir()) == before


def kinds(callbacks: list[dict[str, Any]]) -> list[str]:
    return [entry["class_path"].rsplit(".", 1)[1] for entry in callbacks]


def test_a_run_gets_a_folder_a_logger_and_callbacks(tmp_path: Path) -> None:
    write(
        tmp_path, mine={"model": {"lr_interval": "epoch"}}, own={"trainer": {"default_root_dir": "x", "logger": None}}
    )
    trainer = read_recipe(tmp_path / "mine.yaml", "val_top1")["trainer"]
    assert trainer["default_root_dir"] == trainer["logger"][0]["init_args"]["save_dir"] == "runs/mine"
    assert kinds(trainer["callbacks"]) == ["ModelCheckpoint", "ModelCheckpoint", "LearningRateMonitor", "ExportWeights"]
    best, last, rate, _ = trainer["callbacks"]
    assert best["init_args"]["monitor"] == "val_top1" and last["init_args"]["filename"] == "last"
    assert rate["init_args"] == {"logging_interval": "epoch"}
    own = read_recipe(tmp_path / "own.yaml")["trainer"]
    assert own["default_root_dir"] == "x" and own["logger"] is None
    assert "monitor" not in own["callbacks"][0]["init_args"]


def parsed(*words: str) -> Any:
    """The config of a command line, parsed and built."""
    return TaskCLI(
        ClassificationModule,
        ClassificationDataModule,
        run=False,
        args=[*words, "--trainer.accelerator=cpu"],
        seed_everything_default=0,
        save_config_callback=SaveConfigCallback,
    ).config


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ([], ["ModelCheckpoint", "ModelCheckpoint", "LearningRateMonitor", "ExportWeights"]),
        (["--trainer.logger=false"], ["ModelCheckpoint", "ModelCheckpoint", "ExportWeights"]),
        (["--trainer.barebones=true"], ["ExportWeights"]),
        (["--trainer.enable_checkpointing=false"], ["LearningRateMonitor", "ExportWeights"]),
        (["--trainer.callbacks=[]"], []),
    ],
)
def test_what_lightning_refuses_is_left_out_of_the_defaults(tmp_path: Path, words: list[str], left: list[str]) -> None:
    write(tmp_path, mine={"model": {"network": "reactnet_resnet8", "network_options": {"in_channels": 1}}})
    callbacks = parsed("--config", str(tmp_path / "mine.yaml"), *words).trainer.callbacks
    assert [entry.class_path.rsplit(".", 1)[1] for entry in callbacks] == left


def test_later_files_win_over_the_recipe_and_options_over_both(tmp_path: Path) -> None:
    small = {"network": "reactnet_resnet8", "network_options": {"in_channels": 1}}
    write(
        tmp_path,
        base={"model": small, "trainer": {"max_epochs": 9, "log_every_n_steps": 3}},
        recipe={"base": "base.yaml", "trainer": {"max_epochs": 8}},
        machine={"trainer": {"max_epochs": 7}},
        quiet={"trainer": {"logger": False, "callbacks": [], "default_root_dir": "runs/quiet"}},
        more={"trainer": {"callbacks+": [{"class_path": "esbnn_core.lit.callbacks.FlipRatio"}]}},
    )
    recipe = ["--config", str(tmp_path / "recipe.yaml")]
    first = parsed(*recipe).trainer
    assert (first.max_epochs, first.log_every_n_steps, first.default_root_dir) == (8, 3, "runs/recipe")
    assert first.logger[0].init_args.save_dir == "runs/recipe" and len(first.callbacks) == 4
    # the defaults belong to the first file: a later one keeps what is there and replaces what it names
    later = parsed(*recipe, "--config", str(tmp_path / "machine.yaml"), "--config", str(tmp_path / "more.yaml")).trainer
    assert (later.max_epochs, later.default_root_dir, len(later.callbacks)) == (7, "runs/recipe", 5)
    quiet = parsed(*recipe, "--config", str(tmp_path / "quiet.yaml"), "--trainer.max_epochs=6").trainer
    assert (quiet.max_epochs, quiet.logger, quiet.callbacks, quiet.default_root_dir) == (6, False, [], "runs/quiet")
    # no file, no recipe: Lightning's own
    bare = parsed("--model.network=reactnet_resnet8", "--model.network_options={in_channels: 1}").trainer
    assert (bare.logger, bare.callbacks, bare.default_root_dir) == (None, None, None)


def test_a_setting_is_that_of_the_last_config_that_has_it() -> None:
    bodies = [{"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 3}, "d": 4}]
    assert [find_setting(bodies, name) for name in ("a.b", "a.c", "d", "d.e", "x")] == [1, 3, 4, None, None]


@pytest.mark.parametrize("before", [True, False])
def test_a_config_may_come_before_the_subcommand_or_after_it(
    before: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the subcommand comes first, the options of the other ones are left out; here both know data.batch_size."""
    body = {"data": {"batch_size": "many"}}
    write(tmp_path, config={"fit": body} if before else body)
    words = [f"--config={tmp_path / 'config.yaml'}", "fit"]
    with pytest.raises(SystemExit) as caught:
        run(ClassificationModule, ClassificationDataModule, words if before else words[::-1])
    text = capsys.readouterr().err
    assert caught.value.code == 2 and "batch_size" in text and "many" in text
