"""The console script: digits on stdout, one sentence on stderr and exit code 2 for whatever a person gets wrong."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from esbnn_core import cli, count, create_model, list_models, load_checkpoint, model_spec, save_checkpoint
from esbnn_core.cli import main
from esbnn_core.counting import Count
from esbnn_core.kernels import cpu
from esbnn_core.version import __version__
from tests.helpers import paths, processes

ROOT = Path(__file__).parents[2]


def sentence(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def values(text: str) -> dict[str, list[str]]:
    """The summary under the table by its first word."""
    return {line.split()[0]: line.split()[1:] for line in text.split("\n\n")[1].splitlines()}


@pytest.mark.slow
def test_count_in_a_process_prints_the_published_digits() -> None:
    command = [sys.executable, "-m", "esbnn_core.cli", "count", "es_reactnet_resnet18", "--tau", "4", "--groups", "2"]
    done = processes.run(command, ROOT)
    assert done.returncode == 0 and done.stderr == ""
    summary = values(done.stdout)
    assert summary["BOPs"][:2] == ["1.6763", "G"] and summary["FLOPs"] == ["1.3779e8"]
    assert summary["OPs"][0] == "1.6399e8" and "0.2619e8)" in summary["BOPs"]
    assert summary["es_reactnet_resnet18"] == ["at", "3x224x224"]


@pytest.mark.slow
def test_an_error_in_a_process_is_one_line_and_exit_code_2() -> None:
    for argv in (["count", "reactnt_resnet18"], ["pack", "no_such.safetensors", "out.safetensors"]):
        done = processes.run([sys.executable, "-m", "esbnn_core.cli", *argv], ROOT)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and argv[1] in done.stderr and "Traceback" not in done.stderr
    assert not (ROOT / "out.safetensors").exists()


@pytest.mark.parametrize("tau", [1, 2, 4])
def test_count_options(capsys: pytest.CaptureFixture[str], tau: int) -> None:
    base = ["count", "es_reactnet_resnet8", "--tau", str(tau)]
    assert main([*base, "--groups", "2"]) == 0
    summary = values(capsys.readouterr().out)
    model = create_model("es_reactnet_resnet8", tau=tau, groups=2)
    assert summary["parameters"][0] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert summary["parameters"][-1] == "73,728"
    assert summary["bytes"][0] == f"{sum(t.nbytes for t in model.state_dict().values()):,}"
    assert main([*base, "--num-classes", "7", "--in-channels", "1", "--size", "28"]) == 0
    out = capsys.readouterr().out
    assert values(out)["es_reactnet_resnet8"] == ["at", "1x28x28"]
    stem, *_, readout = out.split("\n\n")[0].splitlines()[1:]
    assert stem.split() == ["stem.conv", "Conv2d", "16x28x28", f"{144 * 784 / 1e6:.3f}", "144"]
    assert readout.split()[-1] == "448"


def test_models_lists_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.split() == list_models()
    assert main(["models", "recu"]) == 0
    shown = capsys.readouterr().out.split()
    assert shown == [name for name in list_models() if "recu" in name] and "es_recu_resnet20" in shown


def test_a_trunk_counts_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "es_bidet_vgg16", "--tau", "4"]) == 0
    first = values(capsys.readouterr().out)
    assert first["es_bidet_vgg16"] == ["at", "3x300x300"]
    assert main(["count", "bidet_vgg16"]) == 0
    second = values(capsys.readouterr().out)
    assert first["OPs"] == second["OPs"] and first["BOPs"] == second["BOPs"]


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code in ((["--version"], 0), ([], 2), (["count", "reactnet_resnet8", "--tau", "two"], 2)):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == code
    assert capsys.readouterr().out.strip() == f"esbnn {__version__}"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["es_reactnt_resnet18"], ["'es_reactnt_resnet18'", "es_reactnet_resnet18"]),
        (["recu_resnet2"], ["recu_resnet20"]),
        (["reactnet_resnet8", "--tau", "2"], ["reactnet_resnet8", "'tau'", "num_classes"]),
        (["rep_reactnet_resnet8", "--groups", "2"], ["rep_reactnet_resnet8", "'groups'", "tau"]),
        (["es_reactnet_resnet8", "--tau", "3"], ["stages.layer1.0", "16", "tau=3", "groups=1"]),
        (["es_reactnet_resnet18", "--tau", "4", "--groups", "32"], ["stages.layer1.0", "64", "tau=4", "groups=32"]),
        (["es_reactnet_resnet8", "--tau", "0"], ["tau must be", "got 0"]),
        (["es_reactnet_resnet8", "--groups", "-1"], ["groups must be", "got -1"]),
        (["reactnet_resnet8", "--size", "-3"], ["-3"]),
        (["reactnet_resnet8", "--size", "0"], ["0"]),
        (["reactnet_resnet8", "--num-classes", "-1"], ["-1"]),
        (["reactnet_resnet8", "--in-channels", "-2"], ["-2"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_count_refuses_in_one_sentence(capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]) -> None:
    text = sentence(capsys, "count", *argv)
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", ["es_reactnet_resnet8", "recu_resnet20"])
def test_pack_prints_the_sizes_of_both_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "latent.safetensors", tmp_path / "new" / "packed.safetensors"
    model = create_model(name).eval()
    save_checkpoint(model, source)
    assert main(["pack", str(source), str(target)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [str(source), f"{source.stat().st_size:,}", "bytes", "latent"]
    assert second.split()[:4] == [str(target), f"{target.stat().st_size:,}", "bytes", "packed,"]
    assert f"{source.stat().st_size / target.stat().st_size:.1f} times" in second
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_checkpoint(target)(x), model(x))


def test_pack_of_a_broken_file_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, target = tmp_path / "latent.safetensors", tmp_path / "new" / "packed.safetensors"
    save_checkpoint(create_model("es_reactnet_resnet8"), source)
    whole = source.read_bytes()
    for content in (b"", whole[:-1], whole[: len(whole) // 2], whole[:-9] + b"\1" + whole[-8:]):
        source.write_bytes(content)
        assert str(source) in sentence(capsys, "pack", str(source), str(target))
        assert not target.exists() and not target.parent.exists()


def test_pack_where_nothing_can_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, wall = tmp_path / "latent.safetensors", tmp_path / "wall"
    save_checkpoint(create_model("es_reactnet_resnet8"), source)
    wall.write_text("a file, no folder")
    assert str(wall) in sentence(capsys, "pack", str(source), str(wall / "packed.safetensors"))


def test_the_doctor_names_what_serves_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"CPU    {cpu.choose()[1].serving}: {cpu.choose()[1].reason}" in out.splitlines()
    paths.force("naive", monkeypatch)
    assert main(["doctor"]) == 0
    assert "CPU    naive: forced" in capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_count_all_is_the_published_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compared = ["reactnet_a", "rep_reactnet_a", "es_bnext_tiny", "bnext_large", "recu_resnet20", "binaryvit"]

    def count_some(model: nn.Module, size: Sequence[int]) -> Count:
        """Those whose rows are compared; test_counting.py counts each of the others."""
        return count(model, size) if model_spec(model).name in compared else few

    few = count(create_model("reactnet_resnet8"), (3, 32, 32))
    monkeypatch.setattr(cli, "count", count_some)
    assert main(["count", "--all"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert sorted(rows) == list_models(kind="classifier")
    # papers.md#operations: BOPs, BOPs/64, FLOPs, OPs; then the BNext README's 0.077 and 0.819 with INT8 real layers
    # (papers.md#bnext-operations)
    assert rows["reactnet_a"][1:5] == ["4.8169", "0.7526", "0.1186", "0.8713"]
    assert rows["rep_reactnet_a"][1:5] == ["4.8169", "0.7526", "0.1289", "0.8815"]
    assert rows["es_bnext_tiny"][1:6] == ["4.8169", "0.7526", "0.1334", "0.8861", "0.7693"]
    assert rows["bnext_large"][5] == "8.1979" and rows["recu_resnet20"][4] == "0.0107"
    assert rows["binaryvit"][1:5] == ["3.5567", "0.5557", "0.1015", "0.6572"] and rows["binaryvit"][8] == "0.6987"
    assert rows["reactnet_a"][8] == "-"
    for argv in (["count"], ["count", "reactnet_a", "--all"]):
        assert main(argv) == 2
        assert "one network's name or --all" in capsys.readouterr().err
