"""`python -m tasks.evaluate NAME`: expected against measured for files of all tasks, and all that can be wrong."""

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from esbnn_core import create_model
from esbnn_core.checkpoint.catalogue import read_catalogue
from esbnn_core.checkpoint.official import to_official
from esbnn_core.errors import InputError
from tasks.evaluate.command import evaluate_name, main
from tests.helpers.catalogue import GIVEN, LINKED, write
from tests.helpers.evaluation import ROOT, data_root, failed, home, own, right, run, sizes, stirred

__all__ = ["data_root", "home", "right", "sizes"]  # fixtures


def test_one_of_ours_by_name(
    home: Path, right: float, data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(home / "manifest.json", own(home, value=round(right, 2), tolerance=0.01))
    words = ["es_tiny", "--catalogue", manifest, "--data", data_root, "--json", tmp_path / "r.json"]
    code, out, err = run(*words, capsys=capsys)
    assert code == 0, err
    assert f"measured {right:.4f}" in out and "within the tolerance" in out and "NOTICE" not in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["measured"] == pytest.approx(right) and 0 < right < 100
    assert (result["expected"], result["tolerance"], result["within"]) == (round(right, 2), 0.01, True)
    assert (result["name"], result["task"], result["network"]) == ("es_tiny", "classification", "es_reactnet_resnet8")
    assert (result["images"], result["backend"], result["metric"]) == (300, "packed", "top1")
    assert result["images_per_second"] == pytest.approx(300 / result["seconds"])
    assert result["ops"] == result["bops"] / 64 + result["flops"] and result["params"] > 0
    by_call = evaluate_name("es_tiny", data=data_root, catalogue=manifest, workers=0)
    times = ("seconds", "images_per_second")
    same = {key: value for key, value in by_call.items() if key not in times}
    assert json.loads(json.dumps(same)) == {key: value for key, value in result.items() if key not in times}
    assert {"file", "sha256", "bytes", "options", "dataset", "split", "flops"} <= set(by_call)


@pytest.mark.slow
def test_outside_the_tolerance_is_exit_code_1(
    home: Path, right: float, data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (right + 0.3, right - 0.3):
        manifest = write(home / "manifest.json", own(home, value=value, tolerance=0.2))
        words = ["es_tiny", "--catalogue", manifest, "--data", data_root]
        code, out, _ = run(*words, "--json", tmp_path / "r.json", capsys=capsys)
        assert code == 1 and "OUTSIDE the tolerance" in out and f"expected {value:g} +- 0.2" in out
        assert json.loads((tmp_path / "r.json").read_text())["within"] is False
    # a part of the images, or other images, are not held against it
    for more in (["--limit", "30"], ["--mean", "0.5"]):
        code, out, _ = run(*words, *more, capsys=capsys)
        assert code == 0 and "not compared: " in out
        assert ("30 images, the published value is of 300" in out) is (more[0] == "--limit")
    assert evaluate_name("es_tiny", data=data_root, catalogue=manifest, workers=0, limit=30)["images"] == 30
    assert run(*words, "--limit", "1000", capsys=capsys)[0] == 1  # all there are


@pytest.mark.parametrize(
    ("changes", "words", "sentence"),
    [
        ({"sha256": "0" * 64}, [], r"es_tiny\.safetensors must have sha256 0{64}, got \w{64}"),
        ({"bytes": 7}, [], r"es_tiny\.safetensors must have 7 bytes, got [\d,]+"),
        ({"file": "gone.safetensors"}, [], r"es_tiny has no file .*gone\.safetensors"),
        (
            {"network": "reactnet_resnet8"},
            [],
            "must hold a reactnet_resnet8 with .* as es_tiny, got a es_reactnet_resnet8 with",
        ),
        ({"options": {"tau": 4}}, [], r"with \{'tau': 4\} as es_tiny, got a .*: correct the entry"),
        ({"metric": "top9"}, [], "metric of es_tiny must be one of top1, top5, got 'top9'"),
        ({"sha256": 5}, [], r"manifest\.json, entry 1 \(es_tiny\): sha256 must be str, got 5"),
        ({}, ["--data"], ""),  # a folder without the images
        ({}, ["--backend", "latent"], "is packed and holds no latent weights"),
        ({}, ["--dataset", "cifar10"], "--dataset was given with the catalogue's es_tiny, which says it itself"),
        ({}, ["--num-classes", "10"], "--num-classes was given with the catalogue's es_tiny"),
        ({}, ["--print-entry", "new"], "--print-entry was given with es_tiny: give the PATH of"),
        (
            {"file": None, "url": "https://host/p", "access": "page"},
            [],
            "open https://host/p in a browser and run python",
        ),
        ({"container": "pytorch", "note": "No map."}, [], r"es_tiny cannot be read by this project: No map\."),
    ],
)
def test_errors_are_one_sentence_and_write_nothing(
    home: Path,
    data_root: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: list[str],
    sentence: str,
) -> None:
    if words[:1] == ["--data"]:
        words, sentence = (
            ["--data", str(tmp_path)],
            f"fashion_mnist cannot be read from {tmp_path} .*, set --data to",
        )
    manifest = write(home / "manifest.json", own(home, **changes))
    base = ["--catalogue", manifest, "--json", tmp_path / "out.json"]
    data = [] if "--data" in words else ["--data", data_root]
    assert re.search(sentence, failed("es_tiny", *base, *data, *words, capsys=capsys))
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nearest: bi_diffsr_x4, bi_diffsr_x2" in failed("bi_diffsr_x8", capsys=capsys)
    assert "'gone' is neither a file nor a name of the catalogue" in failed("gone", capsys=capsys)
    assert "checkpoint gone.pth does not exist" in failed("gone.pth", "--entry", "es_bnext_tiny", capsys=capsys)
    assert "nearest: bnext_tiny" in failed("gone.pth", "--entry", "bnext_tin", capsys=capsys)
    for name in ("recu_vgg_small_cifar10", "recu_resnet34"):  # no network, or no official names, of ours
        assert f"checkpoint {name} cannot be read by this project" in failed(name, capsys=capsys)
    for target, told in (("gone.pth", "does not exist"), (str(ROOT), "is a folder"), ("a/b", "does not exist")):
        assert f"checkpoint {target} {told}: give the path of a file" in failed(target, capsys=capsys)
    assert "address must begin with http:// or https://, got ftp://host/x.pth" in failed(
        "ftp://host/x.pth", capsys=capsys
    )
    told = failed("es_bnext_tiny", "--model", "es_bnext_tiny", capsys=capsys)
    assert "--model was given with the catalogue's es_bnext_tiny, which says it itself" in told
    with pytest.raises(InputError, match="backend must be one of auto, latent, packed, got 'gpu'"):
        evaluate_name("es_bnext_tiny", data="data", backend="gpu")
    for words in ([], ["es_bnext_tiny", "--list"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


@pytest.mark.parametrize("entry", [e for e in read_catalogue() if e.access == "page" and e.keys], ids=lambda e: e.name)
def test_every_official_file_is_asked_for_by_hand(
    entry: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path))  # this machine's may have the files
    assert f"open {entry.url} in a browser and run python" in failed(entry.name, capsys=capsys)


def official(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = stirred(create_model("es_recu_resnet20", in_channels=1, tau=4))
    torch.save({"state_dict": to_official(model)}, path)
    return path


@pytest.fixture
def linked() -> dict[str, Any]:
    """An entry of an official file that nobody has had yet."""
    kind = {
        "network": "es_recu_resnet20",
        "options": {"tau": 4},
        "container": "pytorch",
        "keys": "recu",
        "access": "page",
    }
    return {**GIVEN, **LINKED, **kind, "name": "recu", "value": None}


@pytest.mark.slow
def test_an_official_file_without_a_hash_is_read_and_gives_its_entry(
    linked: dict[str, Any], data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, manifest = official(tmp_path / "recu.pth"), write(tmp_path / "m.json", linked)
    words = [path, "--entry", "recu", "--catalogue", manifest, "--data", data_root, "--limit", "64"]
    code, out, err = run(*words, capsys=capsys)
    assert code == 0, err
    assert "NOTICE: the catalogue has no sha256 of recu" in out and "expected no value is known of fashion_mnist" in out
    whole = json.loads(out[out.index("{") :])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert whole == {**linked, "sha256": digest, "bytes": path.stat().st_size}
    write(manifest, whole)
    code, out, _ = run(*words, "--backend", "packed", capsys=capsys)
    assert code == 0 and "NOTICE" not in out and "packed  " in out
    official(path, seed=1)
    assert "it is not the file of recu, fetch it again" in failed(*words, capsys=capsys)


def test_a_trunk_is_read_and_counted_alone(
    linked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = {
        "network": "bidet_resnet18",
        "options": {},
        "keys": "bidet_resnet18",
        "dataset": "",
        "split": "",
        "metric": "",
    }
    manifest = write(tmp_path / "m.json", {**linked, **kind})
    path = tmp_path / "trunk.pth"
    torch.save(to_official(create_model("bidet_resnet18")), path)
    words = [path, "--entry", "recu", "--catalogue", manifest, "--json", tmp_path / "r.json"]
    code, out, err = run(*words, capsys=capsys)
    assert code == 0, err
    assert "nothing is measured of this file" in out and "OPs " in out and "images " not in out
    assert json.loads((tmp_path / "r.json").read_text())["measured"] is None
    tensors = torch.load(path, weights_only=True)
    torch.save({**tensors, "more": tensors.popitem()[1]}, path)
    assert "does not fit the network" in failed(*words, capsys=capsys)


@pytest.mark.slow
def test_an_address_is_fetched_and_evaluated(
    linked: dict[str, Any],
    data_root: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "www").mkdir()
    digest = hashlib.sha256(official(tmp_path / "www" / "recu.pth").read_bytes()).hexdigest()
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/recu.pth"
        direct = {**linked, "url": url, "access": "direct", "sha256": digest}
        manifest = write(tmp_path / "m.json", direct, {**direct, "name": "wrong", "sha256": "0" * 64})
        words = ["--catalogue", manifest, "--data", data_root, "--limit", "8"]
        found = [run(*given, *words, capsys=capsys) for given in (["recu"], [url, "--entry", "recu"])]
        plain = ["--dataset", "fashion_mnist", "--data", data_root, "--limit", "8"]
        found.append(run(url, "--model", "es_recu_resnet20", "--tau", "4", *plain, capsys=capsys))
        for given in (["wrong"], [url, "--entry", "wrong"]):
            assert f"must have sha256 {'0' * 64}, got {digest}" in failed(*given, *words, capsys=capsys)
        server.shutdown()
    found.append(run("recu", *words, capsys=capsys))  # from the cache
    assert [code for code, _, _ in found] == [0, 0, 0, 0], found
    accuracy = [re.findall(r"^as stored .*$", out, re.MULTILINE) for _, out, _ in found]
    assert accuracy[0] and accuracy == [accuracy[0]] * 4
    cached = sorted(path.name for path in (tmp_path / "cache" / "checkpoints").iterdir())
    assert len(cached) == 2 and f"{digest}-recu.pth" in cached


def test_the_entry_of_a_new_file_of_ours(
    home: Path, right: float, data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(home / "manifest.json")
    words = [home / "es_tiny.safetensors", "--catalogue", manifest, "--data", data_root]
    words += ["--dataset", "fashion_mnist", "--print-entry", "es_new", "--made-by", "python -m x"]
    words += ["--config", "configs/trainer/cpu.yaml"]
    code, out, err = run(*words, capsys=capsys)
    assert code == 0, err
    entry = json.loads(out[out.index("{") :])
    assert (entry["file"], entry["command"], entry["tolerance"]) == ("es_tiny.safetensors", "python -m x", 0.1)
    assert entry["config"] == "configs/trainer/cpu.yaml"
    assert entry["value"] == pytest.approx(right, abs=1e-4) and entry["options"]["tau"] == 2
    write(manifest, entry)
    code, out, _ = run("es_new", "--catalogue", manifest, "--data", data_root, capsys=capsys)
    assert code == 0 and "within the tolerance" in out
    assert "without --limit" in failed(*words, "--limit", "3", capsys=capsys)
    assert "as the recipe prepares them" in failed(*words, "--mean", "0.9", capsys=capsys)
    shutil.copy(home / "es_tiny.safetensors", tmp_path)
    elsewhere = [tmp_path / "es_tiny.safetensors", *words[1:]]
    assert f"must be below {home}" in failed(*elsewhere, capsys=capsys)
    assert "--json must be a file, got the folder" in failed(*words, "--json", tmp_path, capsys=capsys)
    assert "--print-entry es_new is a name that" in failed(*words, capsys=capsys)
    assert "--config gone.yaml does not exist" in failed(
        *words[:-1], "gone.yaml", "--print-entry", "another", capsys=capsys
    )
    assert "name must be small letters, digits, _ and -, got 'Es new'" in failed(
        *words, "--print-entry", "Es new", capsys=capsys
    )


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_a_damaged_file_is_not_kept(
    name: str,
    home: Path,
    data_root: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    www = tmp_path / "www"
    www.mkdir()
    whole = (home / "es_tiny.safetensors").read_bytes()
    if name.endswith(".pth"):
        whole = official(tmp_path / "official.pth").read_bytes()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(www))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        words: list[Any] = [f"http://127.0.0.1:{server.server_address[1]}/{name}", "--dataset", "fashion_mnist"]
        words += ["--data", data_root, "--limit", "8"]
        words += ["--model", "es_recu_resnet20", "--tau", "4"] if name.endswith(".pth") else []
        for damaged in (whole[: len(whole) // 2], b"nothing of the kind", whole[:-9] + bytes(9)):
            (www / name).write_bytes(damaged)
            if damaged[-9:] == bytes(9) and name.endswith(".pth"):
                continue  # the end of a zip file holds its names alone
            assert "; it was removed from the cache" in failed(*words, capsys=capsys)
            assert [*(tmp_path / "cache" / "checkpoints").iterdir()] == []
        (www / name).write_bytes(whole)
        assert run(*words, capsys=capsys)[0] == 0
        server.shutdown()
    # what lies elsewhere stays
    (tmp_path / name).write_bytes(whole[:100])
    told = failed(tmp_path / name, *words[1:], capsys=capsys)
    assert "removed" not in told and (tmp_path / name).exists()


@pytest.mark.slow
def test_the_list_needs_no_task() -> None:
    lines = [
        "import sys; from tasks.evaluate import main; assert main(['--list']) == 0",
        "heavy = {'lightning', 'torchvision', 'mmdet', 'mmengine', 'diffusers', 'timm'}",
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [entry.name for entry in read_catalogue()]
