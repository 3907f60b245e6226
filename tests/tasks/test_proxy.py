"""Proxies: what is trained, what is kept, and intervals against another library's."""

import functools
import json
import math
import runpy
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from esbnn_core import Count, count, create_model
from esbnn_core.errors import InputError
from esbnn_core.files import one_at_a_time
from esbnn_core.lit.recipes import read_config
from tasks.reproduce.modes import proxy, proxy_run
from tasks.reproduce.modes.proxy_results import ProxyResult, compare_with_base, compute_half_width
from tasks.reproduce.tables import proxies
from tasks.reproduce.tables.table import SYSTEMS
from tests.helpers import processes
from tests.helpers.tables import proxy as proxy_row

ROOT = Path(__file__).parents[2]
PRESENT = sorted(path.stem for path in proxies.FOLDER.glob("*.yaml") if not path.stem.startswith("train_"))


def cover() -> dict[str, tuple[proxies.Proxy, proxies.Variant]]:
    """Variants that have every list of configs, and with each task every option, of all systems between them."""
    every = [(found, v) for found in map(proxies.read_proxy_config, PRESENT) for v in found.variants]
    met: set[Any] = set()
    chosen = {}
    for found, variant in sorted(every, key=lambda pair: -len(pair[1].all_words)):
        options = {word.partition("=")[0] for word in variant.all_words if word.startswith("--")}
        parts = {(found.task, part) for part in (found.recipe_of(variant), *options, variant.epochs is None)}
        if not parts <= met:
            chosen[f"{found.system} {variant.name}"] = (found, variant)
            met |= parts
    return chosen


COVER = cover()


@functools.cache
def cost_of(network: str, options: str, size: tuple[int, int, int]) -> Count:
    """Of a classifier of ten classes, counted once for all systems; options: as json."""
    with torch.device("meta"):
        model = create_model(network, num_classes=10, **json.loads(options))
    return count(model, size)


@pytest.mark.parametrize("number", [2, 3, 5, 10, 11, 20, 31])
def test_interval_is_students(number: int) -> None:
    values = np.random.default_rng(number).normal(80, 2, number)
    low, high = stats.t.interval(0.95, number - 1, values.mean(), stats.sem(values))
    assert compute_half_width(values.tolist()) == pytest.approx((high - low) / 2, rel=1e-3)
    assert math.isnan(compute_half_width(values[:1].tolist()))


@pytest.mark.parametrize("number", [2, 4])
def test_difference_to_the_base_is_that_of_the_pairs(number: int) -> None:
    """Equal to scipy's paired t interval over the seeds that both have; a base of another length is another base."""
    draw = np.random.default_rng(number).normal(80, 2, (3, number + 1))
    base = proxy_row("spread", "base 2 epochs", draw[0].tolist(), epochs=2.0)
    longer = proxy_row("spread", "base 24 epochs", draw[1].tolist(), epochs=24.0)
    es = proxy_row("spread", "es 2 epochs", draw[2, :number].tolist(), epochs=2.0)
    low, high = stats.ttest_rel(draw[2, :number], draw[0, :number]).confidence_interval()
    assert compare_with_base(es, [longer, es, base]) == pytest.approx(((low + high) / 2, (high - low) / 2), rel=1e-3)
    assert compare_with_base(es, [longer, es]) is None and compare_with_base(base, [base, es]) is None
    other = replace(base, seeds=[seed + 9 for seed in base.seeds])
    assert compare_with_base(es, [other, es]) is None
    # of two bases of one length that of the same words
    low_rate, high_rate = (
        proxy_row("rates", f"base lr {lr}", [70.0 + place]) for place, lr in enumerate((0.002, 0.02))
    )
    for rate, expected in (("0.002", 3.0), ("0.02", 2.0)):
        found = compare_with_base(proxy_row("rates", f"es lr {rate}", [73.0]), [low_rate, high_rate])
        assert found is not None and found[0] == expected
    assert compare_with_base(proxy_row("rates", "es lr 0.5", [73.0]), [low_rate, high_rate]) is None
    # the base of the same words comes first
    taught, plain = (
        proxy_row("taught_resnet8", f"base{words}", [mean]) for words, mean in ((" taught", 72.0), ("", 70.0))
    )
    for words, expected in ((" taught", 1.0), ("", 3.0)):
        found = compare_with_base(proxy_row("taught_resnet8", f"es{words}", [73.0]), [taught, plain])
        assert found is not None and found[0] == expected
    ablation = [proxy_row("ablation", name, [70.0 + place]) for place, name in enumerate(("tau=1 g=1", "tau=2 g=2"))]
    found = compare_with_base(ablation[1], ablation)
    assert found is not None and found[0] == 1.0 and math.isnan(found[1])


def test_rows_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(InputError, match="got 2 values for 1 seeds"):
        ProxyResult("reactnet", "base", "n", {}, "d", "top1", [0], [1.0, 2.0], 1.0, 1, 1, 1.0, "")
    # beyond the table a little too wide, never too narrow
    values = np.random.default_rng(0).normal(80, 2, 60)
    low, high = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    assert 1 <= compute_half_width(values.tolist()) / ((high - low) / 2) < 1.05


@pytest.mark.parametrize("system", PRESENT)
def test_variants_cost_what_the_base_costs(system: str) -> None:
    """Counted by esbnn_core.count, not by the code under test; only Rep's wider read-out costs more."""
    found = proxies.read_proxy_config(system)
    assert len(found.variants) >= 2
    # one seed is for a choice alone, and the file says so
    text = (ROOT / "configs" / "proxy" / f"{system}.yaml").read_text()
    assert len(set(found.seeds)) >= 2 or "Nothing is claimed from seed 0." in text
    if found.task == "classification":
        ops = {v.name: cost_of(v.network, json.dumps(dict(v.options)), found.size) for v in found.variants}
        assert len({(c.bops, c.flops) for name, c in ops.items() if not name.startswith("rep")}) == 1
        assert len({c.bops for c in ops.values()}) == 1


@pytest.mark.parametrize("system", PRESENT)
def test_epochs_are_those_of_the_command_and_its_last_is_validated(system: str) -> None:
    """Read from the files that the command names, the later over the earlier; super-resolution counts steps."""
    found = proxies.read_proxy_config(system)
    if found.task == "super_resolution":
        return
    for variant in found.variants:
        words = proxy_run.fit_command(found, variant, 0, Path("run"), "data")
        trainer: dict[str, Any] = {}
        for name in (word for before, word in pairwise(words) if before == "--config"):
            trainer |= read_config(name).get("trainer", {})
        if "--trainer.max_epochs" in words:
            trainer["max_epochs"] = int(words[words.index("--trainer.max_epochs") + 1])
        assert trainer["max_epochs"] == (found.epochs if variant.epochs is None else variant.epochs), variant.name
        assert trainer["max_epochs"] % trainer.get("check_val_every_n_epoch", 1) == 0, variant.name


def test_every_system_has_one() -> None:
    assert set(SYSTEMS) == set(PRESENT)


@pytest.mark.parametrize("name", COVER)
def test_the_commands_are_those_of_their_task(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed by the task's own command line, which refuses an unknown option; the configs of a variant come first."""
    found, variant = COVER[name]
    words = proxy_run.fit_command(found, variant, 7, Path("runs/x"), "DATA")
    assert words[:3] == ["-m", f"tasks.{found.task}", "fit"]
    monkeypatch.setattr("sys.argv", ["fit", *words[2:], "--print_config"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"tasks.{found.task}.__main__", run_name="__main__")
    config = yaml.safe_load(capsys.readouterr().out)
    assert ended.value.code == 0 and config["seed_everything"] == 7
    assert config["trainer"]["default_root_dir"] == config["trainer"]["logger"][0]["init_args"]["save_dir"] == "runs/x"
    if found.task == "classification":
        model = config["model"]
        assert (model["network"], model["network_options"] or {}) == (variant.network, variant.options)
    if found.root:
        assert config["data"]["root"] == ("DATA" if found.root == "." else f"DATA/{found.root}")
    # the length that the rows tell
    if found.metric != "psnr":
        assert config["trainer"]["max_epochs"] == (variant.epochs or found.epochs)


@pytest.fixture
def small(tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a reactnet proxy of 128 images, one epoch, one seed, two variants."""
    body: dict[str, Any] = yaml.safe_load((proxies.FOLDER / "reactnet.yaml").read_text())
    body["seeds"], body["epochs"] = [3], 1
    words = ["--data.train_size", "128", "--data.test_size", "64", "--trainer.max_epochs", "1"]
    words += ["--trainer.check_val_every_n_epoch", "1", "--data.root", data_root]
    body["variants"] = {name: {**body["variants"][name], "words": words} for name in ("base", "es")}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "reactnet.yaml").write_text(yaml.safe_dump(body))
    monkeypatch.setattr(proxies, "FOLDER", tmp_path / "configs")
    monkeypatch.setattr(proxy_run, "run_child", processes.run_child)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_proxy_is_trained_once_and_its_numbers_are_those_of_the_runs(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = Path("out")
    rows = proxy.run_proxy("reactnet", out, data="none")
    assert [(row.variant, row.seeds) for row in rows] == [("base", [3]), ("es", [3])]
    assert rows[0].ops == rows[1].ops == count(create_model("reactnet_resnet8", in_channels=1), (1, 28, 28)).ops
    for row in rows:
        for seed, value in zip(row.seeds, row.values, strict=True):
            run = out / "reactnet" / f"{row.variant}-seed{seed}"
            # Lightning wrote it; the share of 64 images
            assert value == proxy_run.read_last_value(run / "metrics.csv", "val_top1") and (value * 64 / 100) % 1 < 1e-3
            assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == seed
            assert (run / "packed.safetensors").exists()
    assert proxy.read_proxy_results(out) == rows
    assert capfd.readouterr().out.count("$ python -m tasks.classification fit") == 2
    assert proxy.run_proxy("reactnet", out, data="none") == rows
    assert "$ python" not in capfd.readouterr().out
    # by whatever name the folder goes; one more seed joins those that are there
    more = proxy.run_proxy("reactnet", out.resolve(), data="elsewhere", seeds=[1], only=["base"])
    assert [(row.variant, row.seeds) for row in more] == [("base", [1, 3]), ("es", [3])]
    assert capfd.readouterr().out.count("$ python") == 1 and proxy.read_proxy_results(out) == more
    assert more[0].values[1:] == rows[0].values and more[1] == rows[1]
    # a run of another recipe is not taken for this one, nor a checkpoint that nothing is known of
    path = small / "configs" / "reactnet.yaml"
    body = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**body, "epochs": 99}))
    with pytest.raises(InputError, match="holds a run that differs in epochs"):
        proxy.run_proxy("reactnet", out, data="none")
    path.write_text(yaml.safe_dump(body))
    kept = out / "reactnet" / "es-seed3" / "run.json"
    kept.write_text(kept.read_text()[:-9])
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        proxy.run_proxy("reactnet", out, data="none")
    kept.unlink()
    with pytest.raises(InputError, match=r"has a checkpoint but no run\.json"):
        proxy.run_proxy("reactnet", out, data="none")


def identity(found: proxies.Proxy, variant: proxies.Variant, seed: int) -> dict[str, Any]:
    return proxy_run.ProxyRun(found, variant, seed, Path("out")).identity


def test_what_a_config_says_is_part_of_a_run(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = proxies.read_proxy_config("reactnet")
    variant = found.variants[0]
    before = identity(found, variant, 3)
    assert before == identity(proxies.read_proxy_config("reactnet"), variant, 3)
    assert before != identity(found, variant, 4) and before != identity(found, found.variants[1], 3)
    for name in before["configs"]:
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        (small / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(proxy_run, "ROOT", small)
    assert identity(found, variant, 3) == before
    with (small / name).open("a") as file:
        file.write("  gradient_clip_val: 1.0\n")
    assert identity(found, variant, 3) != before


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(
    small: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind its first checkpoint, and before its result was written: both end as the uninterrupted run."""
    path = small / "configs" / "reactnet.yaml"
    body = yaml.safe_load(path.read_text())
    words = body["variants"]["base"]["words"]
    words[words.index("--trainer.max_epochs") + 1], body["epochs"] = "2", 2
    path.write_text(yaml.safe_dump(body))
    (whole,) = proxy.run_proxy("reactnet", Path("whole"), data="none", only=["base"])

    def killed(words: list[str], **options: Any) -> int:
        log = Path(options["log"].name)
        process = processes.Child([sys.executable, *words], log, log, env=options["env"])
        while process.poll() is None and not Path("cut", "reactnet", "base-seed3", proxy_run.LAST).exists():
            time.sleep(0.001)
        process.kill()
        return process.wait() or -9

    with monkeypatch.context() as patch, pytest.raises(InputError, match="ended with exit code -9"):
        patch.setattr(proxy_run, "run_child", killed)
        proxy.run_proxy("reactnet", Path("cut"), data="none", only=["base"])
    (again,) = proxy.run_proxy("reactnet", Path("cut"), data="none", only=["base"])
    assert "--ckpt_path cut/reactnet/base-seed3/checkpoints/last.ckpt" in capfd.readouterr().out
    assert again.values == whole.values
    home = Path("cut", "reactnet", "base-seed3")
    curves = [
        proxy_run.read_last_value(run / "metrics.csv", "train_loss_epoch")
        for run in (home, Path("whole", *home.parts[1:]))
    ]
    assert curves[0] == curves[1]
    ended = json.loads((home / "run.json").read_text())
    (home / "run.json").write_text(json.dumps({key: ended[key] for key in ("command", "identity")}))
    (last,) = proxy.run_proxy("reactnet", Path("cut"), data="none", only=["base"])
    assert last.values == whole.values


def test_a_run_that_another_process_trains_is_left_alone(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("out", "reactnet", "base-seed3")
    folder.mkdir(parents=True)
    monkeypatch.setattr(proxy_run, "run_logged", lambda *_, **__: pytest.fail("it was trained"))
    with one_at_a_time(folder, patience=0) as held:
        assert held
        with pytest.raises(InputError, match="base-seed3 is being trained by another process: wait"):
            proxy.run_proxy("reactnet", Path("out"), data="none", only=["base"])
        assert list(folder.iterdir()) == []
    with one_at_a_time(folder, patience=0) as held:
        assert held  # again free


@pytest.mark.slow
def test_a_run_that_fails_ends_the_proxy_with_its_log(small: Path) -> None:
    path = small / "configs" / "reactnet.yaml"
    body = yaml.safe_load(path.read_text())
    body["variants"]["base"]["options"]["in_channels"] = 3
    path.write_text(yaml.safe_dump(body))
    with pytest.raises(InputError, match=r"ended with exit code 2, its log .*log\.txt says: error: .*channels"):
        proxy.run_proxy("reactnet", Path("out"), data="none", seeds=[0], only=["base"])
    assert "channels" in (Path("out") / "reactnet" / "base-seed0" / "log.txt").read_text()
    (kept,) = Path("out").rglob("run.json")
    assert "value" not in json.loads(kept.read_text()) and not list(Path("out").glob("*.json"))
    # mended, it is trained: nothing of the failed run is worth keeping
    body["variants"]["base"]["options"]["in_channels"] = 1
    path.write_text(yaml.safe_dump(body))
    assert proxy.run_proxy("reactnet", Path("out"), data="none", seeds=[0], only=["base"])[0].seeds == [0]


@pytest.mark.parametrize(("jobs", "started"), [(1, 1), (2, 2)])
def test_behind_a_failed_run_no_other_is_started(
    small: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, started: int
) -> None:
    seen: list[int] = []
    both = threading.Barrier(jobs)

    def train(run: proxy_run.ProxyRun, *rest: object) -> None:
        seen.append(run.seed)
        both.wait()
        raise InputError("it failed")

    monkeypatch.setattr(proxy, "train_run", train)
    with pytest.raises(InputError, match="it failed"):
        proxy.run_proxy("reactnet", Path("out"), data="none", seeds=[0, 1, 2], jobs=jobs)
    assert len(seen) == started


def test_bad_configs_are_one_sentence(small: Path) -> None:
    good = yaml.safe_load((small / "configs" / "reactnet.yaml").read_text())
    path = small / "configs" / "reactnet.yaml"
    for change, words in (
        ({"epoch": 3}, "epoch"),
        ({"metric": "top2"}, "metric must be one of top1, .*, got 'top2'"),
        ({"configs": ["configs/none.yaml"]}, "configs/none.yaml, which does not exist"),
        ({"variants": {"base": {"net": "x"}}}, "net"),
    ):
        path.write_text(yaml.safe_dump({**good, **change}))
        with pytest.raises(InputError, match=words):
            proxies.read_proxy_config("reactnet")
    with pytest.raises(InputError, match=r"proxy system must be one of reactnet, bnext, .*, got 'resnet'"):
        proxies.read_proxy_config("resnet")
    with pytest.raises(InputError, match="no variant 'ess'"):
        path.write_text(yaml.safe_dump(good))
        proxy.run_proxy("reactnet", Path("out"), data="none", only=["ess"])
    with pytest.raises(InputError, match="no value of val_top1"):
        (small / "metrics.csv").write_text("epoch,val_top1\n0,\n")
        proxy_run.read_last_value(small / "metrics.csv", "val_top1")
