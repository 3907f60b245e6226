"""What tasks.reproduce writes: lines, markdown, csv, json, pictures and the one-file page.

Proxies and measurements here are made by hand: they test what becomes of a result, not how one comes about.
"""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from esbnn_core import InputError
from tasks.reproduce.modes import results
from tasks.reproduce.modes.ops import RowCost
from tasks.reproduce.modes.results import Measurement, read_table_result, render_json
from tasks.reproduce.report import page, pictures
from tasks.reproduce.report import text as text_
from tasks.reproduce.tables.table import Row
from tests.helpers.tables import COST, PROXIES, Parts, outcome, table


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cost for every row."""
    monkeypatch.setattr(results, "count_row", lambda row: COST)


@pytest.mark.parametrize(
    ("printed", "count", "agrees"),
    [
        ("0.88", 0.8861, True),  # cut off
        ("0.89", 0.8861, True),  # rounded
        ("0.87", 0.8861, False),
        ("0.90", 0.8861, False),
        ("1.63", 1.6399, True),
        ("1.63", 1.6401, False),
        ("366.7", 362.4, False),
        ("", 1.0, None),
    ],
)
def test_a_count_agrees_if_the_digits_are_the_printed_ones(printed: str, count: float, agrees: bool | None) -> None:
    line = replace(outcome("figure1").cells[0], published_ops=printed, ops_as_published=count * 1e8)
    assert line.ops_agree is agrees
    assert line.ops_difference == (None if agrees is None else pytest.approx(count - float(printed)))


def test_difference_is_ours_less_published() -> None:
    found = {("bnext_tiny", "ImageNet-1k", "top1"): Measurement(71.9, "a file")}
    by_name = {cell.name: cell for cell in outcome("figure1", found).cells}
    assert by_name["bnext_tiny"].difference == pytest.approx(-0.5)
    assert by_name["es_bnext_tiny"].difference is None and by_name["es_bnext_tiny"].published == "75.2"


def test_a_table_survives_its_json(tmp_path: Path) -> None:
    whole = outcome("sr", {("bi_diffsr_x2", "Manga109", "SSIM"): Measurement(0.9601, "a file")})
    path = tmp_path / "sr.json"
    path.write_text(render_json(whole))
    assert read_table_result(path) == whole
    path.write_text(render_json(whole).replace('"lines"', '"rows"'))
    with pytest.raises(InputError, match=r"sr\.json was not written by this version .* remove it"):
        read_table_result(path)


def test_markdown_and_csv_have_every_cell() -> None:
    whole = outcome("sr", {("bi_diffsr_x4", "Set5", "LPIPS"): Measurement(0.1209, "a file")})
    text = text_.render_markdown(whole)
    (row,) = [line for line in text.splitlines() if line.startswith("| BI-DiffSR x4") and "| Set5" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:6] == ["PSNR_dB / SSIM / LPIPS", "29.63 / 0.8374 / 0.1109 [1]", "- / - / 0.1209", "- / - / +0.0100"]
    assert "[1] zhengchen1999/BI-DiffSR figs/T1.png" in text
    records = list(csv.DictReader(io.StringIO(text_.render_csv(whole))))
    assert len(records) == len(whole.cells) == sum(len(m) for row in table("sr").rows for m in row.cells.values())
    (record,) = [r for r in records if (r["name"], r["dataset"], r["metric"]) == ("bi_diffsr_x4", "Set5", "LPIPS")]
    assert (record["published"], record["ours"], record["published_ops_1e8"]) == ("0.1109", "0.1209", "366.7")
    assert float(record["difference"]) == pytest.approx(0.01) and float(record["ops_1e8"]) == 0.88


def decoded(picture: pictures.Picture) -> Any:
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.slow
def test_measured_bars_stand_beside_the_published_ones() -> None:
    plain = pictures.draw_figure1(outcome("figure1"))
    found = {("bnext_tiny", "ImageNet-1k", "top1"): Measurement(72.1, "a file")}
    measured = pictures.draw_figure1(outcome("figure1", found))
    assert "(0 of 10)" in plain.caption and "(1 of 10)" in measured.caption
    one, two = decoded(plain), decoded(measured)
    assert one.shape == two.shape
    changed = np.flatnonzero((one != two).any((0, 2)))
    # only the panel of BNext, the second of five
    assert changed.size and one.shape[1] * 0.17 < changed.min() and changed.max() < one.shape[1] * 0.42
    assert pictures.draw_figure1(outcome("figure1")).data == plain.data


def test_proxies_and_ablation_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    heights: list[Any] = []
    real = Axes.errorbar

    def errorbar(self: Any, x: Any, y: Any, **options: Any) -> Any:
        heights.append((y, options["yerr"]))
        return real(self, x, y, **options)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    assert decoded(pictures.draw_proxies(PROXIES)).std() > 1
    assert [y for y, _ in heights] == [row.mean for row in PROXIES if row.system != "ablation"]
    assert [width for _, width in heights] == [
        pytest.approx(PROXIES[0].half_width),
        pytest.approx(PROXIES[1].half_width),
        None,
    ]
    heights.clear()
    drawn = pictures.draw_ablation(PROXIES)
    assert decoded(drawn).std() > 1 and "5.000 M OPs in every point" in drawn.caption
    # a curve for g=1, for g=2 and for the spread: means over tau 1, 2, 4
    assert [y for y, _ in heights] == [[71.5, 72.0, 73.0], [72.0, 72.5, 73.5], [73.77]]
    with pytest.raises(InputError, match="no ablation to draw"):
        pictures.draw_ablation(PROXIES[:2])
    with pytest.raises(InputError, match="no proxy to draw"):
        pictures.draw_proxies(PROXIES[3:])


def test_pictures_of_runs_are_gathered(tmp_path: Path) -> None:
    sheet, boxes = tmp_path / "sr", tmp_path / "voc"
    for folder, names in ((sheet, ("_sheet", "page")), (boxes, ("a", "b", "c", "d"))):
        folder.mkdir()
        for number, name in enumerate(names):
            Image.new("RGB", (3000, 300), (60 * number, 0, 200)).save(folder / f"{name}.png")
    (boxes / "predictions.json").write_text("{}")
    one, two = pictures.gather_pictures([("SR", sheet), ("none", tmp_path / "none"), ("Boxes", boxes)])
    assert decoded(one).shape == (110, 1100, 3) and (decoded(one) == (0, 0, 200)).all()
    page_ = decoded(two)
    assert page_.shape == (74, 1098, 3) and tuple(page_[10, 400]) == (60, 0, 200)
    assert tuple(page_[50, 10]) == (180, 0, 200) and tuple(page_[50, 1000]) == (255, 255, 255)
    (boxes / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png cannot be read .* run predict anew"):
        pictures.gather_pictures([("Boxes", boxes)])


@pytest.mark.slow
def test_the_page_needs_nothing_else() -> None:
    drawn = [pictures.draw_figure1(outcome("figure1")), pictures.draw_proxies(PROXIES), pictures.draw_ablation(PROXIES)]
    figure1 = outcome("figure1")
    odd = replace(figure1, notes=["<script>alert(1)</script> & more"])
    parts = Parts()
    text = page.render_html([odd, outcome("sr")], PROXIES, drawn)
    parts.feed(text)
    assert parts.open == [] and parts.fetched == []
    assert "url(" not in text and "@import" not in text and not {"script", "link", "iframe"} & parts.tags
    assert parts.images == [picture.data for picture in drawn]
    assert 'name="viewport"' in text and "<script>alert(1)</script> & more" in parts.text["figure1"]
    # proxies have a section of their own and stand in no other
    assert list(parts.text) == ["", "figure1", "sr", "proxies"]
    for row in PROXIES:
        assert f"{row.mean:.2f}" in parts.text["proxies"]
    assert "80.11" in parts.text["proxies"] and "80.11" not in parts.text["figure1"] + parts.text["sr"]
    assert "75.2" in parts.text["figure1"] and "75.2" not in parts.text["proxies"]
    assert "compare with no published value" in parts.text["proxies"]


def test_a_row_that_cannot_be_counted_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(row: Row) -> RowCost:
        raise InputError("row needs the package mmdet, which is not installed: pip install 'esbnn[detection]'")

    monkeypatch.setattr(results, "count_row", refuse)
    text = text_.render_markdown(outcome("voc"))
    assert text.count("not counted: ") == len(table("voc").rows) and "pip install 'esbnn[detection]'" in text
    assert "66.0 [1]" in text
