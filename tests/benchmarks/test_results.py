"""Every committed figure follows from its raw record, and every table from the figures."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from benchmarks import curves, tables
from benchmarks.bars import BARS
from benchmarks.formulas import percentile_of
from benchmarks.record import FIELDS, RESULTS, record

LINES = [
    (path.stem, json.loads(text))
    for path in sorted(RESULTS.glob("*.jsonl"))
    for text in path.read_text(encoding="utf-8").splitlines()
]


def test_each_committed_figure_is_recomputed_from_its_raw_record():
    for area, line in LINES:
        bar = BARS[line["bar"]]
        raw = json.loads((RESULTS / line["raw"]).read_text(encoding="utf-8"))
        assert tuple(line) == FIELDS
        assert (bar.area, bar.unit) == (area, line["unit"])
        assert line["value"] == pytest.approx(bar.formula(raw), rel=1e-9), line["bar"]


def test_a_bars_newest_line_is_its_last():
    for name in BARS:
        dates = [datetime.fromisoformat(line["date"]) for _, line in LINES if line["bar"] == name]
        assert dates == sorted(dates), name


def test_each_raw_record_belongs_to_a_line():
    recorded = {line["raw"] for _, line in LINES}
    assert {path.relative_to(RESULTS).as_posix() for path in RESULTS.glob("raw/*")} == recorded


def test_the_tables_and_curves_in_the_documents_are_up_to_date():
    assert tables.outdated() == {}


def test_a_curve_is_drawn_where_there_is_one():
    shown = (tables.ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert all(f"images/{name}" in shown for name in curves.PICTURES)
    run = {"objective": "a", "curves": {"loss": [4.0, 1.0, 2.0]}}
    made = curves.picture({"runs": [run] * 3}, (("a",), ("loss", "kl")))
    assert made.count("<path") == 4  # an axis and three seeds; no panel for what is not logged
    assert (">4<" in made, ">1<" in made, "step 3" in made, "kl" in made) == (True,) * 3 + (False,)


def test_a_recorded_figure_enters_the_table(tmp_path):
    assert "| `cli.help_seconds` | not measured |" in tables.table("cli", tmp_path)
    [line] = record(["cli.help_seconds"], {"seconds": [0.3, 0.1, 0.2]}, "winsome --help", tmp_path)
    assert line["value"] == 0.2
    assert json.loads((tmp_path / line["raw"]).read_text()) == {"seconds": [0.3, 0.1, 0.2]}
    assert "| `cli.help_seconds` | 0.2 |" in tables.table("cli", tmp_path)


def test_an_unknown_bar_is_refused_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"unknown bar 'cli\.halp'.*cli\.help_seconds"):
        record(["cli.halp"], {}, "", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_percentile_is_the_nearest_rank():
    hundred = {"ms": list(range(1, 101))}
    assert percentile_of("ms", 95)(hundred) == 95
    assert percentile_of("ms", 95)({"ms": [7]}) == 7
