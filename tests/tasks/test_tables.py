"""configs/tables: published cells, rows that build and count to the known digits, bad files in one sentence."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from esbnn_core import InputError
from esbnn_core.checkpoint.catalogue import read_catalogue
from tasks.reproduce.modes.ops import RowCost, count_row
from tasks.reproduce.modes.results import make_cells
from tasks.reproduce.tables.configs import read_setting
from tasks.reproduce.tables.datasets import METRIC_NAMES, TABLE_DATASETS
from tasks.reproduce.tables.proxies import read_proxy_config
from tasks.reproduce.tables.published import count_decimals, read_published
from tasks.reproduce.tables.table import NAMES, SYSTEMS, TABLES, Row, Table, read_table

# papers.md#operations as printed: BOPs (G), FLOPs (1e8), OPs (1e8), parameters (M), of which 1 bit (M)
CLASSIFIERS = {
    ("bireal_resnet18", ""): ("1.6763", "1.3779", "1.6399", "11.690", "10.985"),
    ("reactnet_resnet18", ""): ("1.6763", "1.3779", "1.6399", "11.704", "10.985"),
    ("bireal_resnet34", ""): ("3.5260", "1.3779", "1.9289", "21.798", "21.086"),
    ("reactnet_resnet34", ""): ("3.5260", "1.3779", "1.9289", "21.827", "21.086"),
    ("reactnet_a", ""): ("4.8169", "0.1186", "0.8713", "29.344", "28.253"),
    ("rep_reactnet_a", "2"): ("4.8169", "0.1289", "0.8815", "30.432", "28.253"),
    ("bnext_tiny", ""): ("4.8169", "0.1334", "0.8861", "30.862", "28.253"),
    ("es_bnext_tiny", "2"): ("4.8169", "0.1334", "0.8861", "30.943", "28.253"),
    ("es_bnext_tiny", "4"): ("4.8169", "0.1334", "0.8861", "31.115", "28.253"),
    ("rep_bnext_tiny", "2"): ("4.8169", "0.1585", "0.9112", "33.468", "28.253"),
    ("binaryvit", ""): ("3.5567", "0.1015", "0.6572", "22.492", "21.197"),
    ("binaryvit_some_real", ""): ("3.4796", "0.8722", "1.4158", "22.489", "20.509"),
}
# the larger BNexts have fewer digits there: BOPs / 64 and so on in 1e8; base and ES parameters, 1 bit
LARGER = {
    "bnext_small": ("1.693", "0.211", "1.905", "68.6", "68.7", "63.6"),
    "bnext_middle": ("3.139", "0.243", "3.381", "134.5", "134.7", "126.2"),
    "bnext_large": ("8.149", "0.394", "8.543", "326.5", "326.9", "308.3"),
}
# papers.md#bi-diffsr-published: PSNR, SSIM, LPIPS on the four sets
BI_DIFFSR = {
    "x2": "35.68/0.9414/0.0277 29.73/0.8478/0.0682 28.97/0.8815/0.0522 33.99/0.9601/0.0172",
    "x4": "29.63/0.8374/0.1109 25.84/0.6779/0.2754 24.11/0.7177/0.1823 26.95/0.8548/0.0889",
}
SETS = ("Set5", "B100", "Urban100", "Manga109")
PUBLISHED = read_published(TABLES / "published.csv")


@cache
def table(name: str) -> Table:
    return read_table(name, PUBLISHED)


def rows() -> list[tuple[str, Row]]:
    return [(name, row) for name in NAMES for row in table(name).rows]


def test_the_published_values_are_those_of_their_sources() -> None:
    assert len(PUBLISHED) == 301
    for scale, text in BI_DIFFSR.items():
        for dataset, triple in zip(SETS, text.split(), strict=True):
            cells = [PUBLISHED["bidiffsr-table2", "BI-DiffSR", scale, dataset, m] for m in ("PSNR_dB", "SSIM", "LPIPS")]
            assert [cell.value for cell in cells] == triple.split("/")
            assert {(cell.ops, cell.params) for cell in cells} == {("366.7", "4.58")}
    # three readings of one number: the figure's bars and the gains that it prints, a table and its own README
    for system, *gain in (("ReActNet", "top1_gain"), ("BNext", "top1_gain"), ("BiDet", "mAP_gain")):
        bars = {key[1]: cell for key, cell in PUBLISHED.items() if key[0] == "esbnn-fig1"}
        printed = next(cell for key, cell in PUBLISHED.items() if key[:2] == ("esbnn-fig1-gain", system))
        assert printed.key[4] == gain[0]
        assert float(bars[f"ES-{system}"].value) - float(bars[system].value) == pytest.approx(float(printed.value))
    assert PUBLISHED["bidiffsr-readme", "BI-DiffSR", "x4", "Urban100", "PSNR_dB"].value == "24.11"
    empty = [key for key, cell in PUBLISHED.items() if not cell.value]
    assert len(empty) == 3 and all(key[0].endswith("-paper") for key in empty)
    assert all(cell.source for cell in PUBLISHED.values() if cell.value)


@pytest.mark.slow
def test_digits_stay_as_they_are_printed() -> None:
    """0.3210 keeps its last digit, which a number would lose."""
    lines = make_cells(table("sr"), {}, "data")
    (cell,) = [line for line in lines if (line.name, line.dataset, line.metric) == ("bi_diffsr_x4", "Set5", "LPIPS")]
    assert (cell.published, cell.difference, cell.source) == ("0.1109", None, "zhengchen1999/BI-DiffSR figs/T1.png")
    assert sum(count_decimals(cell.value) == 4 and cell.value.endswith("0") for cell in PUBLISHED.values()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_row_builds_counts_and_is_no_dearer_than_its_partner(name: str) -> None:
    before = torch.get_rng_state()
    costs: dict[str, RowCost] = {row.name: count_row(row) for row in table(name).rows}
    assert torch.equal(torch.get_rng_state(), before)  # no weight is drawn to be counted
    for row in table(name).rows:
        cost = costs[row.name]
        assert cost.ops == pytest.approx(cost.bops / 64 + cost.flops) and cost.params > cost.binary_params
        assert (cost.binary_params > 0) is not row.name.startswith("real_")
        if row.partner:
            es = costs[row.partner]
            assert (es.ops, es.binary_params, es.size) == (cost.ops, cost.binary_params, cost.size)
            assert es.params > cost.params
            cells = table(name).row(row.partner).cells
            assert all(set(metrics) <= set(row.cells[dataset]) for dataset, metrics in cells.items())
    if name == "ablation":
        assert len({(cost.ops, cost.binary_params) for cost in costs.values()}) == 1
        assert len({(row.options["tau"], row.options["groups"]) for row in table(name).rows}) == 6


@pytest.mark.slow
def test_classifiers_have_the_known_digits() -> None:
    met = set()
    for name, row in rows():
        key = (row.network, str(row.options.get("tau", "")))
        cost = count_row(row) if key in CLASSIFIERS or row.network.removeprefix("es_") in LARGER else None
        if cost is not None and key in CLASSIFIERS:
            met.add((name, key))
            counts = (cost.bops / 1e9, cost.flops / 1e8, cost.ops / 1e8)
            printed = [*(f"{n:.4f}" for n in counts), f"{cost.params / 1e6:.3f}", f"{cost.binary_params / 1e6:.3f}"]
            assert tuple(printed) == CLASSIFIERS[key]
        elif cost is not None:
            *counts_, base, es, binary = LARGER[row.network.removeprefix("es_")]
            assert [f"{n / 1e8:.3f}" for n in (cost.bops / 64, cost.flops, cost.ops)] == counts_
            params = es if row.network.startswith("es_") else base
            assert (f"{cost.params / 1e6:.1f}", f"{cost.binary_params / 1e6:.1f}") == (params, binary)
    assert {key for name, key in met if name == "ops"} == set(CLASSIFIERS)
    assert {"figure1", "imagenet", "ops"} == {name for name, _ in met}


@pytest.mark.slow
def test_detectors_and_the_unet_have_the_known_digits() -> None:
    ssd, small, unet = (count_row(table("ops").row(n)) for n in ("bidet_ssd300", "recu_resnet20", "bi_diffsr"))
    assert (f"{ssd.bops / 1e9:.3f}", f"{ssd.flops / 1e8:.3f}", f"{ssd.ops / 1e8:.2f}") == ("40.489", "26.302", "32.63")
    assert (f"{ssd.params / 1e6:.3f}", f"{ssd.binary_params / 1e6:.3f}") == ("32.725", "27.341")
    assert (f"{small.bops / 1e9:.4f}", f"{small.flops / 1e8:.4f}", f"{small.ops / 1e8:.4f}") == (
        "0.0401",
        "0.0044",
        "0.0107",
    )
    assert (f"{unet.bops / 1e9:.2f}", f"{unet.flops / 1e8:.2f}", f"{unet.ops / 1e8:.1f}") == (
        "98.65",
        "336.26",
        "351.7",
    )
    assert (f"{unet.ops_as_published / 1e8:.1f}", f"{unet.words / 1e6:.3f}") == ("362.4", "4.575")
    # the trunk of papers.md#operations with its heads on 38x63 cells, and 300 regions (as test_faster_rcnn_configs
    # has them)
    cells, region = 38 * 63, (3 * 512 + 256) * 512 * 9 * 16 / 64 + 256 * 512 * 16 + 512 * (21 + 8)
    faster = count_row(table("voc").row("bidet_faster_rcnn_r18"))
    trunk = faster.ops - 300 * region - 9 * 256 * 512 * cells / 64 - 512 * (18 + 72) * cells
    assert f"{trunk / 1e8:.2f}" == "18.06"


@pytest.mark.slow
def test_published_operations_are_met_or_said_to_differ() -> None:
    lines = {line.name: line for name in ("imagenet", "ops") for line in make_cells(table(name), {}, "data")}
    for name in ("bireal_resnet18", "reactnet_a", "bnext_tiny", "es_bnext_tiny", "bnext_small", "bnext_large"):
        assert lines[name].published_ops and lines[name].ops_agree, name
    assert lines["bnext_tiny_int8"].ops_agree and lines["bnext_tiny_int8"].published_ops == "0.77"
    assert lines["bi_diffsr"].ops_agree is False
    assert lines["bi_diffsr"].ops_difference == pytest.approx(362.4129 - 366.7, abs=1e-3)
    assert lines["binaryvit"].ops_agree is lines["binaryvit"].ops_difference is None


def test_a_row_and_its_recipe_have_one_network() -> None:
    seen = 0
    for name, row in rows():
        if row.task != "classification" or not row.recipe:
            continue
        options = read_setting(row.recipe, "model.network_options") or {}
        if "--model.network_options" in row.words:
            options = yaml.safe_load(row.words[row.words.index("--model.network_options") + 1])
        assert (read_setting(row.recipe, "model.network"), options) == (row.network, dict(row.options)), (
            name,
            row.name,
        )
        seen += 1
    assert seen > 30


def test_no_two_networks_share_the_folder_of_a_run() -> None:
    homes: dict[str, set[Any]] = {}
    for name, row in rows():
        if row.recipe and not table(name).counts_only:
            home = row.run or read_setting(row.recipe, "trainer.default_root_dir")
            homes.setdefault(home, set()).add((row.recipe, row.words))
    assert len(homes) > 40 and {home for home, kinds in homes.items() if len(kinds) > 1} == set()


def test_a_rows_checkpoint_is_in_the_catalogue_and_of_its_network() -> None:
    catalogue, seen = read_catalogue(), 0
    for name, row in rows():
        if not row.checkpoint:
            continue
        entry = catalogue.find(row.checkpoint)
        assert entry.task == row.task
        if row.task == "classification":
            assert (entry.network, entry.options) == (row.network, dict(row.options)), (name, row.name)
        else:
            assert entry.config == row.recipe[0]
        (dataset,) = [d for d in row.cells if TABLE_DATASETS[d].name == entry.dataset]
        (metric,) = [m for m in row.cells[dataset] if METRIC_NAMES.get(m, m) == entry.metric]
        if not entry.ours and row.published is not None:
            assert float(table(name).published[row.name, dataset, metric].value) == entry.value
        seen += 1
    assert seen > 15


def test_every_proxy_that_a_table_names_can_be_trained() -> None:
    named = {system for name in NAMES for system in table(name).proxy}
    assert named == set(SYSTEMS)
    assert all(read_proxy_config(system).system == system for system in named)


def changed(folder: Path, name: str, change: Any) -> Path:
    """The tables in a folder, one of them changed as text or as what it holds."""
    shutil.copytree(TABLES, folder, dirs_exist_ok=True)
    path = folder / name
    text = path.read_text()
    if callable(change):
        body = yaml.safe_load(text)
        change(body)
        text = yaml.safe_dump(body)
    else:
        text = text.replace(*change)
    path.write_text(text)
    return folder


def first(body: dict[str, Any], **keys: Any) -> None:
    body["rows"][0].update(keys)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: b.update(colour="red"), "key must be one of defaults, notes, proxy, rows, title, got 'colour'"),
        (lambda b: b.update(title=3), "title must be a text, notes and proxy"),
        (lambda b: b.update(rows=[]), "rows must be a list of mappings"),
        (lambda b: b.update(proxy=["yolo"]), "proxy system must be one of reactnet, "),
        (lambda b: first(b, colour="red"), "row 1: key must be one of before, cells"),
        (
            lambda b: first(b, task="speech"),
            "task must be one of classification, detection, super_resolution, got 'speech'",
        ),
        (lambda b: first(b, system=""), "(recu_resnet20) lacks system: add it"),
        (lambda b: first(b, checkpoint=["a"]), "checkpoint must be a text, got ['a']"),
        (lambda b: first(b, words="--a b"), "words must be a list of texts, got '--a b'"),
        (lambda b: first(b, before=["a.yaml"]), "before must be a list of lists of configs, got ['a.yaml']"),
        (lambda b: first(b, options=[1]), "options must be a mapping, got [1]"),
        (lambda b: first(b, size=[3, 0, 32]), "size must be [channels, height, width], got [3, 0, 32]"),
        (lambda b: first(b, ops_rule="fp4"), "ops_rule must be one of papers, int8, attention, got 'fp4'"),
        (lambda b: first(b, cells={"CIFAR-10": ["top7"]}), "LPIPS, got CIFAR-10/top7"),
        (
            lambda b: first(b, cells={"CIFAR-10": "top1"}),
            "cells must map each dataset to a list of metrics, got {'CIFAR-10': 'top1'}",
        ),
        (lambda b: first(b, network=""), "must name its network as its task does"),
        (lambda b: first(b, recipe=["configs/no.yaml"]), "names the config configs/no.yaml, which does not exist"),
        (
            lambda b: first(b, partner="nobody"),
            "row recu_resnet20: partner must be another row of the table, got 'nobody'",
        ),
        (lambda b: b["rows"].append(dict(b["rows"][0])), "has two rows of the name recu_resnet20"),
        (
            lambda b: b["rows"][0]["published"].update(variant="ResNet-20 vanila"),
            "the published cell recu-readme/ReCU/ResNet-20 vanila/CIFAR-10/top1, which is not in published.csv: "
            "nearest recu-readme/ReCU/ResNet-20 vanilla/CIFAR-10/top1",
        ),
        (
            lambda b: first(b, published={"table": "x"}),
            "published must be the texts table, method and variant, got {'table': 'x'}",
        ),
        (("rows:", "rows: ["), "is not YAML ("),
        (("title", "- title"), "is not YAML ("),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, change: Any, sentence: str) -> None:
    folder = changed(tmp_path, "cifar10.yaml", change)
    with pytest.raises(InputError) as error:
        read_table("cifar10", PUBLISHED, folder)
    text = str(error.value)
    assert sentence in text and "cifar10.yaml" in text and "\n" not in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("table,method", "tabel,method"),
            "variant, dataset, metric, value, ops_1e8, params_m, source, got tabel, method",
        ),
        (("72.4,0.88", "72.4?,0.88"), "line 2: value must be a number or empty, got '72.4?'"),
        (("75.2,0.89,,imfinethanks/ESBNN README", "75.2,0.89,,"), "line 3 has a value without a source"),
        (("BNext-T,baseline", "BNext-T,a,b"), "line 2 must have 9 fields"),
        (("ES-BNext-T,tau=2 g=1", "BNext-T,baseline"), "line 3 repeats the cell esbnn-readme/BNext-T/baseline/"),
    ],
)
def test_a_bad_list_of_published_values_is_one_sentence(tmp_path: Path, change: Any, sentence: str) -> None:
    path = changed(tmp_path, "published.csv", change) / "published.csv"
    with pytest.raises(InputError) as error:
        read_published(path)
    assert sentence in str(error.value) and str(path) in str(error.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    for read in (lambda: read_published(tmp_path / "published.csv"), lambda: read_table("voc", PUBLISHED, tmp_path)):
        with pytest.raises(InputError, match=r"cannot be read .* restore the file"):
            read()
