"""python -m tasks.reproduce --mode train: the exact commands of the recipes, their resume, and what stops them."""

import json
import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from esbnn_core import InputError
from esbnn_core.files import ROOT
from esbnn_core.lit.cli import TaskCLI
from tasks.reproduce import command as reproduce
from tasks.reproduce.modes import stages as planning
from tasks.reproduce.modes import training
from tests.helpers.tables import table

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def stages(name: str, row: str, root: Path, **options: Any) -> list[planning.Stage]:
    return planning.plan_stages(table(name).row(row), "data", root=root, **options)


def test_the_commands_are_those_of_the_recipes(tmp_path: Path) -> None:
    texts = [stage.text for stage in stages("figure1", "es_bidet_faster_rcnn_r18", tmp_path)]
    assert texts == [
        "python -m tasks.classification fit --config configs/classification/es_bidet_resnet18.yaml "
        "--config configs/trainer/ddp8.yaml --data.root data/imagenet",
        "python -m tasks.detection fit --config configs/detection/es_bidet_faster_rcnn_r18.yaml "
        "--config configs/detection/data_voc.yaml --config configs/trainer/ddp8.yaml "
        "--model.backbone runs/es_bidet_resnet18/weights.safetensors --data.root data/VOCdevkit",
    ]
    (sr,) = stages("sr", "bbcu_x4", tmp_path)
    assert shlex.split(sr.text)[3:14] == [
        *("fit", "--config", "configs/super_resolution/bi_diffsr_x4.yaml"),
        *("--config", "configs/super_resolution/variant_bbcu.yaml"),
        *("--config", "configs/super_resolution/data_df2k.yaml", "--config", "configs/trainer/ddp8.yaml"),
        *("--trainer.devices", "4"),
    ]
    assert (sr.run, sr.devices, sr.finished) == ("runs/bbcu_diffsr_x4", 4, False)


def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "reactnet_r18_step2"
    first, second = stages("imagenet", "reactnet_resnet18", tmp_path)
    assert "--ckpt_path" not in first.words + second.words
    note(run, second)
    for place in ("last.ckpt", "checkpoints/last.ckpt", "checkpoints/recent.ckpt"):
        (run / place).parent.mkdir(parents=True, exist_ok=True)
        (run / place).touch()
        times = [path.stat().st_mtime for path in run.rglob("*.ckpt")]
        os.utime(run / place, (max(times) + 10, max(times) + 10))
        first, second = stages("imagenet", "reactnet_resnet18", tmp_path)
        assert second.words[-2:] == ("--ckpt_path", f"runs/reactnet_r18_step2/{place}")
        assert "--ckpt_path" not in first.words and not second.finished
    (run / "weights.safetensors").touch()
    assert [stage.finished for stage in stages("imagenet", "reactnet_resnet18", tmp_path)] == [False, True]


def note(run: Path, stage: planning.Stage) -> None:
    """What the command leaves in a run's folder."""
    run.mkdir(parents=True, exist_ok=True)
    (run / planning.NOTE).write_text(json.dumps({"command": stage.text, "identity": stage.identity}))


def test_another_run_in_the_folder_is_neither_finished_nor_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = stages("ablation", "tau4_g2", tmp_path)
    run = tmp_path / first.run
    run.mkdir(parents=True)
    for name in ("weights.safetensors", "last.ckpt"):
        (run / name).touch()
    options: list[dict[str, Any]] = [
        {},
        {"trainer": "configs/trainer/smoke.yaml"},
        {"trainer": "configs/trainer/cpu.yaml"},
    ]
    (met,) = stages("ablation", "tau4_g2", tmp_path)
    assert met.other_run == "a run that this command did not start (it has no reproduce.json)" and not met.finished
    assert "--ckpt_path" not in met.words
    note(run, first)
    # the same on another machine; a few steps of it are another run
    for (met,), another in zip(
        (stages("ablation", "tau4_g2", tmp_path, **o) for o in options), ("", "added", ""), strict=True
    ):
        assert (met.other_run, met.finished) == (f"a run that differs in {another}" if another else "", not another)
    (other,) = stages("ablation", "tau4_g1", tmp_path)
    note(run, other)
    assert stages("ablation", "tau4_g2", tmp_path)[0].other_run == "a run that differs in words"
    (run / planning.NOTE).write_text("{")
    assert "cannot be read" in stages("ablation", "tau4_g2", tmp_path)[0].other_run
    # told in one sentence where it would be trained
    met = stages("ablation", "tau4_g2", tmp_path)
    monkeypatch.setattr(training, "plan_stages", lambda *given, **options: met)
    monkeypatch.setattr(training, "_run_stage", lambda stage: pytest.fail("it ran"))
    with pytest.raises(InputError, match=r"^runs/ablation_tau4_g2 holds a run whose .*: move it away$"):
        training.train_rows(
            [table("ablation").row("tau4_g2")], "d", trainer="configs/trainer/cpu.yaml", seeds=None, dry_run=False
        )


def test_a_seed_has_folders_of_its_own_all_the_way(tmp_path: Path) -> None:
    first, second = stages("imagenet", "es_reactnet_a", tmp_path, seed=3)
    assert (first.run, second.run) == ("runs/es_reactnet_a_step1_seed3", "runs/es_reactnet_a_step2_seed3")
    words = list(second.words)
    assert words[words.index("--model.weights") + 1] == "runs/es_reactnet_a_step1_seed3/weights.safetensors"
    assert words[words.index("--seed_everything") + 1] == "3"
    trunk, detector = stages("voc", "bidet_ssd300", tmp_path, seed=3)
    words = list(detector.words)
    assert words[words.index("--model.backbone") + 1] == f"{trunk.run}/weights.safetensors"
    assert trunk.run == "runs/bidet_vgg16_seed3"


@pytest.mark.parametrize(
    ("name", "row", "batches"),
    [("imagenet", "bnext_tiny", [512]), ("imagenet", "es_reactnet_a", [256, 256]), ("sr", "bi_diffsr_x4", [16])],
)
def test_another_machine_keeps_the_global_batch(tmp_path: Path, name: str, row: str, batches: list[int]) -> None:
    made = stages(name, row, tmp_path, trainer="configs/trainer/gpu1.yaml")
    for stage, batch in zip(made, batches, strict=True):
        words = list(stage.words)
        assert words[words.index("--data.batch_size") + 1] == str(batch)
        assert "--trainer.devices" not in words and stage.devices == 1
        assert "configs/trainer/gpu1.yaml" in words and "configs/trainer/ddp8.yaml" not in words
    with pytest.raises(InputError, match=r"row bireal_resnet34 has no recipe to train"):
        stages("imagenet", "bireal_resnet34", tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "options", "checks"),
    [
        ("imagenet", "es_bnext_tiny", {}, {"model.network": "es_bnext_tiny", "trainer.devices": 8}),
        ("ablation", "tau4_g2", {"seed": 5}, {"model.network_options": {"tau": 4, "groups": 2}, "seed_everything": 5}),
        ("voc", "es_bidet_ssd300", {}, {"model.backbone": "runs/es_bidet_vgg16/weights.safetensors"}),
        ("sr", "bbcu_x4", {}, {"data.scale": 4, "data.patch": 256, "trainer.devices": "4"}),
        ("sr", "real_sr3_x4", {"trainer": "configs/trainer/gpu1.yaml"}, {"data.scale": 4, "data.batch_size": 16}),
    ],
)
def test_the_tasks_own_parser_takes_the_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    row: str,
    options: dict[str, Any],
    checks: dict[str, Any],
) -> None:
    """Whole, with its resume: parsed against the type hints by the task's entry, not built and not run."""
    monkeypatch.chdir(ROOT)
    run = stages(name, row, tmp_path, **options)[-1].run
    (tmp_path / run).mkdir(parents=True)
    (tmp_path / run / "last.ckpt").touch()
    note(tmp_path / run, stages(name, row, tmp_path, **options)[-1])
    stage = stages(name, row, tmp_path, **options)[-1]
    assert stage.words[-2:] == ("--ckpt_path", f"{run}/last.ckpt")
    parsed: list[Any] = []
    monkeypatch.setattr(TaskCLI, "before_instantiate_classes", lambda self: parsed.append(self.config.fit))
    monkeypatch.setattr(TaskCLI, "_parse_ckpt_path", lambda self: None)  # the file is empty
    monkeypatch.setattr(TaskCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(TaskCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr(sys, "argv", ["x", *stage.words[3:]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(stage.words[2], run_name="__main__", alter_sys=False)
    assert ended.value.code == 0
    (config,) = parsed
    for key, value in {**checks, "trainer.default_root_dir": run, "ckpt_path": f"{run}/last.ckpt"}.items():
        assert config[key] == value, key
    assert config["trainer.logger"][0].init_args.save_dir == run
    assert config["data.root"].startswith("data")


def test_dry_run_prints_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "_run_stage", lambda stage: pytest.fail("it ran"))
    out = tmp_path / "out"
    words = ["cifar10", "--mode", "train", "--out", str(out), "--data", "/d"]
    assert reproduce.main([*words, "--dry-run"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    configs = ("recu_r20_cifar10", "rep_recu_r20_cifar10", "es_recu_r20_cifar10")
    assert [shlex.split(line)[5] for line in printed] == [f"configs/classification/{c}.yaml" for c in configs]
    assert all(line.startswith("python -m tasks.classification fit --config ") for line in printed)
    assert not out.exists()


def test_what_tables_share_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["all", "--mode", "train", "--dry-run", "--out", str(tmp_path)]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(printed) == len(set(printed)) > 60
    # BNext-T is in figure1 and imagenet, a trunk in figure1 and voc
    for config in ("bnext_tiny.yaml", "es_bidet_resnet18.yaml"):
        assert sum(f"configs/classification/{config} " in line for line in printed) == 1


def test_train_runs_each_command_once_in_order_and_stops_at_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []
    codes = [0, 0, 1]

    def run(words: list[str], cwd: Path) -> int:
        ran.append(words)
        assert cwd == ROOT and shlex.join(["python", *words]) in capsys.readouterr().out  # printed before
        return codes[len(ran) - 1]

    notes: dict[str, str] = {}
    monkeypatch.setattr(training, "write_atomically", lambda path, data: notes.update({str(path): data.decode()}))
    monkeypatch.setattr(training, "run_child", run)
    monkeypatch.setattr(planning, "_is_finished", lambda root, run: run == "runs/ablation_tau2_g1_seed0")
    monkeypatch.setattr(planning, "_describe_other_run", lambda root, run, identity: "")
    monkeypatch.setattr(planning, "_find_checkpoint", lambda root, run: None)
    words = ["--mode", "train", "--out", str(tmp_path), "--trainer", "configs/trainer/cpu.yaml", "--seeds", "0"]
    assert reproduce.main(["ablation", *words]) == 2
    homes = [words[words.index("--trainer.default_root_dir") + 1] for words in ran]
    assert homes == [f"runs/ablation_{v}_seed0" for v in ("tau1_g1", "tau4_g1", "tau1_g2")]
    assert list(notes) == [str(ROOT / home / planning.NOTE) for home in homes]
    for text, words in zip(notes.values(), ran, strict=True):
        assert json.loads(text)["command"] == shlex.join(["python", *words])
    error = capsys.readouterr().err
    assert error.startswith("error: the run into runs/ablation_tau1_g2_seed0 ended with exit code 1")
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_gpus_that_are_not_there_are_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(training, "run_child", lambda *words, **options: pytest.fail("it ran"))
    assert reproduce.main(["imagenet", "--mode", "train", "--rows", "bnext_small", "--out", str(tmp_path)]) == 2
    assert "is written for 8 GPUs a machine and torch sees 1: give --trainer" in capsys.readouterr().err
