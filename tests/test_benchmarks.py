"""The performance page quotes the json files beside it, and nothing else stands in its tables; what copies share."""

import importlib
import json
import math
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from benchmarks import report
from benchmarks.command import run_command
from benchmarks.evidence import curves as evidence_curves
from benchmarks.evidence import gains as evidence_gains
from benchmarks.evidence import tables as evidence
from benchmarks.evidence.copies import likeness, measure_copies, measure_numbers
from esbnn_core import create_model
from esbnn_core.errors import InputError
from esbnn_core.layers import Expansion
from esbnn_core.units.conv import BinaryUnit
from tasks.reproduce.modes.proxy import read_proxy_results
from tasks.reproduce.modes.proxy_run import fit_command
from tasks.reproduce.tables.proxies import read_proxy_config
from tests.helpers.tables import proxy as proxy_row

ROOT = Path(__file__).parents[1]


def test_the_tables_of_the_page_are_those_of_the_files() -> None:
    covered = report.COVERAGE.read_text()
    assert report.rewrite(covered) == covered and "<!-- table: coverage -->" in covered
    text = report.DOCUMENT.read_text()
    assert report.rewrite(text) == text
    assert text.count("<!-- table: ") == text.count("<!-- end -->") >= 4


def test_a_table_is_rewritten_between_its_marks_alone(tmp_path: Path) -> None:
    record = {"rows": [{"network": "one", "file bytes": 8}], "import seconds": [0.25, 0.5]}
    (tmp_path / "sizes.json").write_text(json.dumps(record))
    text = (
        "before\n<!-- table: sizes -->\nold\n<!-- end -->\nbetween\n<!-- table: layers -->\nkept\n<!-- end -->\nafter\n"
    )
    made = report.rewrite(text, tmp_path)
    assert "old" not in made and "| one | 8 |" in made and "0.25 to 0.5 s" in made
    # no layers.json here: that table stays
    assert made.endswith("<!-- end -->\nbetween\n<!-- table: layers -->\nkept\n<!-- end -->\nafter\n")
    with pytest.raises(KeyError, match="unknown"):
        report.rewrite("<!-- table: unknown -->\n<!-- end -->", tmp_path)


def test_the_evidence_is_that_of_the_files() -> None:
    rows = read_proxy_results(evidence.KEPT)
    texts = [document.read_text() for document in evidence.DOCUMENTS]
    assert [evidence.rewrite(text, rows) for text in texts] == texts
    tables = [f"<!-- table: {system} -->" for system in {row.system for row in rows}]
    assert [sum(table in text for text in texts) for table in tables] == [1] * len(tables)
    # every run of every file, and no other, each as often as it was made
    kept = (evidence.KEPT / "runs.csv").read_text()
    assert kept == evidence.list_runs(rows)
    assert kept.count("\n") == 1 + sum(len(row.seeds) for row in rows)
    for row in rows:
        # run again elsewhere: a command names no folder of the machine that it ran on
        assert " /" not in row.command, row.command
        # and is still what the repository would train
        found = read_proxy_config(row.system)
        (variant,) = (variant for variant in found.variants if variant.name == row.variant)
        run = Path("runs", "proxy", row.system, f"{row.variant.replace(' ', '_')}-seed{row.seeds[0]}")
        assert row.command == shlex.join(["python", *fit_command(found, variant, row.seeds[0], run, "DATA")])
        assert (row.network, row.options, row.epochs) == (
            variant.network,
            dict(variant.options),
            found.epochs_of(variant),
        )
        assert (row.dataset, row.metric) == (found.dataset, found.metric)


def test_results_are_taken_over_whole_or_not_at_all(tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    with pytest.raises(InputError, match=r"out must hold the SYSTEM\.json of a proxy, got none"):
        evidence.copy_results(out, kept)
    out.mkdir()
    shutil.copy(evidence.KEPT / "bnext.json", out)
    evidence.copy_results(out, kept)
    assert read_proxy_results(kept) == [row for row in read_proxy_results(evidence.KEPT) if row.system == "bnext"]
    (out / "reactnet.json").write_text("[{")
    (out / "bnext.json").write_text("[]")
    with pytest.raises(InputError, match=r"reactnet\.json must be a list of proxy results"):
        evidence.copy_results(out, kept)
    assert len(read_proxy_results(kept)) > 0


def test_evidence_without_results_stays() -> None:
    rows = [proxy_row("bnext", "base", [80.0, 81.0]), proxy_row("bnext", "es", [81.5, 81.0])]
    text = "a\n<!-- table: bnext -->\nold\n<!-- end -->\n<!-- table: bidet -->\nkept\n<!-- end -->\n"
    made = evidence.rewrite(text, rows)
    assert "old" not in made and made.endswith("<!-- end -->\n<!-- table: bidet -->\nkept\n<!-- end -->\n")
    base, es = (line.split(" | ") for line in made.splitlines()[4:6])
    assert base[1] == "80.50" and base[3] == "-"
    # differences 1.5 and 0.0: 0.75, and Student's 12.706 over sqrt(2) times 0.75 * sqrt(2)
    assert es[1] == "81.25" and es[3] == "+0.75 ± 9.53"
    # a loss says that it falls
    loss = evidence.rewrite(text, [proxy_row("bidet", "base", [3.0], metric="loss", dataset="d")])
    assert "| mean (loss (lower is better), d) |" in loss and "mean (top1, fashion_mnist)" in made


def test_what_es_is_worth_follows_from_its_seeds() -> None:
    """Each line against SciPy's paired t, a loss the other way round; what is compared is there, at equal seeds."""
    base = [50.0, 52.0, 51.0, 49.5, 50.5]
    for step, system, metric, said, shown in (
        (0.2, "bnext_best", "top1", "gains", "**+0.54 ± {:.2f} points**"),
        (-0.9, "bnext_best", "top1", "costs", "**-0.56 ± {:.2f} points**"),
        (-0.25, "binaryvit_best", "top1", "undecided", "+0.09 ± {:.2f} points"),
        (-0.9, "bnext_best", "loss", "gains", "**-0.56 ± {:.2f} of the loss, less is better**"),
        (0.2, "bnext_best", "loss", "costs", "**+0.54 ± {:.2f} of the loss, less is better**"),
        (-0.25, "bidiffsr_best", "psnr", "undecided", "+0.09 ± {:.2f} dB"),
    ):
        es = [value + step + extra for value, extra in zip(base, (0.1, 0.6, 0.3, 0.5, 0.2), strict=True)]
        rows = [proxy_row(system, name, values, metric=metric) for name, values in (("base", base), ("es", es))]
        (line,) = evidence_gains.render_gains(rows).splitlines()[2:]
        low, high = stats.ttest_rel(es, base).confidence_interval()
        ahead = sum((one < other) == (metric == "loss") for one, other in zip(es, base, strict=True))
        words = line.strip("| ").split(" | ")
        assert words[2:] == [shown.format((high - low) / 2), f"{ahead} of 5", said]
        assert (said == "undecided") == (low < 0 < high)
    # without its base or with four seeds there is no line, and every comparison has its rule
    assert len(evidence_gains.render_gains(rows[1:]).splitlines()) == 2
    four = [proxy_row("bnext_best", name, base[:4]) for name in ("base", "es")]
    assert len(evidence_gains.render_gains(four).splitlines()) == 2
    for decision in evidence_gains.DECISIONS:
        found = read_proxy_config(decision.system)
        assert {decision.es, decision.base} <= {variant.name for variant in found.variants}
        assert len(found.seeds) == evidence_gains.SEEDS and 0 not in found.seeds


def test_the_picture_of_what_es_is_worth_has_better_to_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_gains, "encode_png", lambda figure: figure)
    base, steps = [50.0, 52.0, 51.0, 49.5, 50.5], (0.3, 0.8, 0.5, 0.7, 0.4)
    rows = []
    for system, metric in (("bnext_best", "top1"), ("deep_long", "top1"), ("bidet_best", "loss")):
        rows += [proxy_row(system, "base", base, metric=metric)]
        rows += [proxy_row(system, "es", [a + b for a, b in zip(base, steps, strict=True)], metric=metric)]
    top1, loss = evidence_gains.draw_gains(rows).axes
    for panel, names in ((top1, ["ResNet-20", "BNext, small"]), (loss, ["BiDet SSD300"])):
        assert [label.get_text().split(":")[0] for label in panel.get_yticklabels()] == names
        drawn = [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "D"]
        assert drawn == pytest.approx([0.54] * len(names))
    assert top1.get_xlim()[0] < 0 < top1.get_xlim()[1] and loss.get_xlim()[0] > 0 > loss.get_xlim()[1]
    assert [text.get_text() for panel in (top1, loss) for text in panel.texts] == ["gains", "gains", "costs"]


def test_the_curves_go_by_rate_length_and_spread() -> None:
    rows = {(row.system, row.variant): row for row in read_proxy_results(evidence.KEPT)}
    rates = {key: evidence_curves.read_learning_rate(row) for key, row in rows.items()}
    # of the command, of the recipe, and of the second of two recipes
    assert rates["rates", "es lr 0.0125"] == 0.0125
    assert rates["reactnet", "es"] == rates["ablation", "tau=4 g=2"] == 0.005
    assert rates["bnext", "base"] == 0.002
    found = evidence_curves.group_by_setting([*rows.values()])
    for system, variant, key in (
        ("reactnet", "base", ("reactnet_resnet8", 0.0, 0.005, 8)),
        ("reactnet", "es spread 0.5", ("es_reactnet_resnet8", 0.5, 0.005, 8)),
        ("ablation", "tau=1 g=1", ("reactnet_resnet8", 0.0, 0.005, 4)),
        ("ablation", "tau=2 g=1", ("es_reactnet_resnet8", 0.0, 0.005, 4)),
        ("spread", "spread 0.5 2 epochs", ("es_reactnet_resnet8", 0.5, 0.005, 2)),
        ("rates", "base lr 0.0125", ("reactnet_resnet8", 0.0, 0.0125, 4)),
    ):
        row = rows[system, variant]
        assert found[key] == dict(zip(row.seeds, row.values, strict=True)), key


def test_the_gain_is_taken_seed_by_seed() -> None:
    base, es = ("reactnet_resnet8", 0.0, 0.005, 8.0), ("es_reactnet_resnet8", 0.5, 0.005, 8.0)
    found = {base: {0: 80.0, 2: 83.0}, es: {2: 84.0, 1: 70.0, 0: 80.5}}
    assert sorted(evidence_curves.compute_gains(found, es)) == [0.5, 1.0]
    # Student's 12.706 over sqrt(2) times the deviation 0.25 * sqrt(2)
    assert evidence_curves.compute_interval([0.5, 1.0]) == pytest.approx((0.75, 12.706 * 0.25))
    assert evidence_curves.compute_interval([0.5]) == (0.5, 0.0)


@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (1, 2), (4, 1)])
def test_copies_agree_as_often_as_their_thresholds_say(tau: int, groups: int) -> None:
    """One copy is +1 everywhere, the others are the input's sign: pairs with it agree on the positive share."""
    torch.manual_seed(0)
    copies = tau * groups
    unit = BinaryUnit(8, 8, expansion=Expansion(tau, groups))
    images = torch.randn(3, 8, 5, 6).repeat(1, copies, 1, 1)
    with torch.no_grad():
        unit.conv.sign.shift.view(-1)[:8] = 1e6
    pairs, with_it = copies * (copies - 1) / 2, copies - 1
    expected = (with_it * (images > 0).float().mean().item() + pairs - with_it) / pairs
    above = (images[:, :8] > 0).double().mean((0, 2, 3))
    entropy = -(above * above.log2() + (1 - above) * (1 - above).log2()).mean().item()
    (found,) = measure_copies(torch.nn.Sequential(unit), images).values()
    assert found.equal == pytest.approx(expected)
    # what is constant says nothing about the others, and these say all of each other
    assert found.common == pytest.approx(entropy * (pairs - with_it) / pairs)


def test_opposite_copies_have_as_much_in_common_as_equal_ones() -> None:
    bits = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.5, 0.2, 0.9])
    same, opposite = likeness(bits, bits), likeness(bits, ~bits)
    assert (same.equal, opposite.equal) == (1.0, 0.0) and same.common == pytest.approx(opposite.common)
    # of four pixels two are (1, 1), one is (0, 1) and one (0, 0)
    one, other = torch.tensor([[1], [1], [0], [0]]).bool(), torch.tensor([[1], [1], [1], [0]]).bool()
    assert likeness(one, other) == pytest.approx((0.75, 0.5 * math.log2(4 / 3) + 0.25 * math.log2(2 / 3) + 0.25))
    assert likeness(one, torch.tensor([[1], [0], [1], [0]]).bool()) == pytest.approx((0.5, 0.0))


def test_what_copies_differ_by_is_read_from_their_parameters() -> None:
    unit = BinaryUnit(4, 4, expansion=Expansion(2, 2))
    with torch.no_grad():
        unit.conv.sign.shift.view(4, -1).copy_(
            torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 1.0], [0.0, 3.0]]).repeat(1, 2)
        )
        unit.norm.weight.view(-1)[:3] = -1.0
    assert measure_numbers(torch.nn.Sequential(unit)) == {"0": (0.5, 3 / unit.norm.num_features)}


def test_an_untrained_network_has_one_copy_many_times() -> None:
    images = torch.randn(2, 1, 28, 28)
    same = measure_copies(create_model("es_reactnet_resnet8", in_channels=1, tau=2), images)
    apart = measure_copies(create_model("es_reactnet_resnet8", in_channels=1, tau=2, copy_spread=0.5), images)
    assert len(same) == len(apart) == 6 and {pair.equal for pair in same.values()} == {1.0}
    assert max(pair.equal for pair in apart.values()) < 0.9
    with pytest.raises(InputError, match="must have a convolution unit of tau or groups above 1"):
        measure_copies(create_model("reactnet_resnet8", in_channels=1), images)


@pytest.mark.parametrize(
    ("module", "words", "says"),
    [
        ("speed.layers", "--threads -1", "argument --threads: must be a whole number of at least 1, got '-1'"),
        ("speed.networks", "--rounds many", "argument --rounds: must be a whole number of at least 1, got 'many'"),
        ("speed.networks", "--names reactnet_resnet81", "reactnet_resnet8"),
        ("speed.agreement", "--data nowhere", "nowhere must hold at least 256 images, got 0"),
        ("evidence.copies", "nowhere.safetensors", "nowhere.safetensors does not exist"),
        ("evidence.pictures", "together out.png val_top1 gone.csv", "gone.csv"),
        ("evidence.pictures", "together out.png gone CURVE", "has no values of gone"),
        ("evidence.pictures", "together gone/out.png val_top1 CURVE", "gone"),
        ("evidence.pictures", "curves CURVE out.png gone", "has no values of gone"),
        ("evidence.pictures", "sheet out.png README.md", "README.md"),
    ],
)
def test_broken_input_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    words: str,
    says: str,
) -> None:
    command = importlib.import_module(f"benchmarks.{module}")
    curve = ROOT / "checkpoints" / "reactnet_resnet8_fashion" / "metrics.csv"
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("no image")
    monkeypatch.setattr(sys, "argv", [module, *words.replace("CURVE", str(curve)).split()])
    with pytest.raises(SystemExit) as caught:
        run_command(command.main)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert caught.value.code == 2 and len(lines) == 1 and says in lines[0], lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]
