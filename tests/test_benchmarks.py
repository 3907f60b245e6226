"""The performance page quotes the json files beside it, and nothing else stands in its tables."""

import json
from pathlib import Path

import pytest

from benchmarks import report


def test_the_tables_of_the_page_are_those_of_the_files() -> None:
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
