"""A study's files hold what was found, whole, and the page shows it."""

import csv
import json
from dataclasses import replace

import pytest
from PIL import Image

from shvit.bench.run import about
from shvit.report.blocks import Column, Plot, Section, Table
from shvit.requests.study import SpeedOptions
from shvit.study.accuracy import Training
from shvit.study.breakdown import NORM, PRODUCT, Breakdown, PartTime
from shvit.study.compare import ComparisonResult, EntryResult, Speed
from shvit.study.experiments import COMPARISONS, make_comparison
from shvit.study.figures import bars, lines, points, stacks
from shvit.study.head_study import HeadStudy
from shvit.study.pages.comparison import comparison_page
from shvit.study.pages.redundancy import redundancy_page
from shvit.study.pages.resolution import resolution_page
from shvit.study.redundancy import LayerHeads, Redundancy
from shvit.study.report import StudyReport, save_report
from shvit.study.resolution import Latency, ResolutionResult, SizeAccuracy

SPENT = (PartTime("stem.0", PRODUCT, 0.001), PartTime("stages.1.0.mixer.branch.norm", NORM, 0.003))


def compared(top1=((0.70, 0.72), (0.71, 0.73), (0.6,), (), ())) -> ComparisonResult:
    plan = make_comparison("ablation")
    rows = []
    for number, (entry, tops) in enumerate(zip(plan.entries, top1, strict=True)):
        speeds = [Speed("onnx", "fp32", 16, 100.0 + number, (100.0 + number) / 103, 0.01)]
        parts = [Breakdown(entry.model, "onnx", 16, 256, SPENT, ("stages.1.0.mixer.branch",))]
        rows.append(EntryResult(entry, 256, 10_000_000, 600_000_000, 4_000_000, speeds, parts, list(tops)))
    return ComparisonResult(plan, 256, SpeedOptions(), Training("<data>", 3, 2), rows, ["torch: broken"])


def pictures(report: StudyReport) -> set[str]:
    return {picture.name for section in report.sections for picture in section.pictures}


def test_names_with_dollars_are_no_formulas(tmp_path):
    """Two of them would be, and a wrong one."""
    names = (r"a$\bad{$", "$1 or $2")
    figures = [
        bars(names, {names[0]: [1.0, 2.0]}, "top-1", None),
        stacks(names, {names[0]: [1.0, 2.0]}, "ms"),
        points({names[0]: [(1.0, 2.0, names[0])]}, "x", "y"),
        lines({names[0]: [(1.0, 2.0)]}, "x", "y"),
    ]
    pictures = tuple(Plot(f"p{number}", figure, "caption") for number, figure in enumerate(figures))
    assert len(
        save_report(StudyReport("T", "lead", (), (Section("S", (), (), pictures),), about("cpu")), tmp_path)
    ) == 2 + len(figures)


def test_every_file_is_written_and_the_page_holds_them(tmp_path):
    table = Table("t", "A <table>", (Column("name"), Column("value", "{:.1f}")), [["a", 1.25], ["b", None]])
    picture = Plot("p", bars(["a", "b"], {"x": [1.0, None], "paper": [2.0, 1.0]}, "axis", 1.0), "caption")
    data = {"value": 1.25, "unit": "s", **about("cpu"), "threads": 1}
    report = StudyReport("T & T", "lead", ("<found>",), (Section("S", ("text",), (table,), (picture,)),), data)
    files = save_report(report, tmp_path / "out")
    assert {path.name for path in files} == {"report.html", "study.json", "t.csv", "p.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in files}
    page = files[0].read_text()
    assert "A &lt;table&gt;" in page
    assert "&lt;found&gt;" in page
    assert page.count("<svg") == 1
    assert "http" not in page.replace("arXiv", "")  # self-contained
    with Image.open(tmp_path / "out" / "p.png") as image:
        image.verify()
    rows = list(csv.reader((tmp_path / "out" / "t.csv").read_text().splitlines()))
    assert rows == [["name", "value"], ["a", "1.25"], ["b", ""]]
    assert json.loads((tmp_path / "out" / "study.json").read_text())["value"] == 1.25


def test_a_comparison_says_its_ratios_beside_the_papers():
    report = comparison_page(compared(), about("cpu"))
    [speed] = [found for found in report.findings if found.startswith("onnx")]
    assert "multi-head 0.97 (paper 0.79)" in speed
    assert {table.name for table in report.tables} == {"costs", "speed", "stages_onnx", "accuracy"}
    [time] = [table for table in report.tables if table.name == "stages_onnx"]
    labels = [column.name for column in time.columns]
    row = dict(zip(labels, time.rows[0], strict=True))
    assert row["memory-bound"] == pytest.approx(0.75)
    assert row["memory-bound in token mixers"] == 1.0
    assert row["stage 2, ms"] == pytest.approx(3 / 16)
    assert any("torch: broken" in section.text for section in report.sections)
    assert {"value", "unit", "commit", "versions", "hardware", "threads", "command", "date"} <= set(report.data)
    json.dumps(report.data)
    assert {"speed", "stages_onnx", "accuracy"} <= pictures(report)


def test_differences_within_the_noise_are_called_so():
    said = comparison_page(compared(), about("cpu")).findings[-1]
    assert "multi-head 71.00 %; no attention 72.00 %; single head, 1/8 60.00 %" in said
    assert (
        "seeds of one network is 1.41 points, so differences of less than 2.8 points between means over 2 seeds" in said
    )
    once = comparison_page(compared(((0.7,), (0.71,), (0.6,), (), ())), about("cpu")).findings[-1]
    assert "trained with one seed. The spread between seeds is unknown" in once


def test_nothing_measured_is_said_so():
    empty = compared(((), (), (), (), ()))
    rows = [replace(row, speeds=[], breakdowns=[]) for row in empty.rows]
    report = comparison_page(replace(empty, rows=rows), about("cpu"))
    assert report.findings == ("Nothing could be measured. The reasons are listed below.",)
    assert report.data["value"] is None


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_papers_own_sizes_have_its_numbers(name):
    plan, other = make_comparison(name), make_comparison(name, "s4")
    assert any(entry.paper for entry in plan.entries)
    assert plan.reference in [entry.label for entry in plan.entries]
    if name != "macro":  # whose ratios are of no size
        assert not any(entry.paper for entry in other.entries)


def studied(early: float, late: float) -> HeadStudy:
    layers = tuple(
        LayerHeads(f"block {place}", (value, value), (0.9, 0.8), (0.7, 0.85))
        for place, value in enumerate((early, early, 0.5, 0.5, late, late))
    )
    return HeadStudy("net", Redundancy(0.9, 100, layers), 0.5, {"block 0": 1}, {"block 0": 1})


@pytest.mark.parametrize(("early", "late"), [(0.2, 0.8), (0.8, 0.2)])
def test_whether_late_layers_are_more_alike_is_reported_as_found(early, late):
    said = redundancy_page(studied(early, late), about("cpu")).findings[0]
    expected = (
        "NOT more similar in late layers, unlike in the paper" if early > late else "more similar in late layers, as in"
    )
    assert said.startswith(f"Heads are {expected}")
    assert f"{100 * late:.1f} % in the last 2 layers, {100 * early:.1f} % in the first 2" in said


def test_a_network_of_single_heads_has_nothing_redundant():
    layers = (LayerHeads("one", (), (), (0.9,)),)
    report = redundancy_page(HeadStudy("net", Redundancy(0.9, 10, layers), 0.5), about("cpu"))
    assert report.findings == ("Each attention layer has one head, so no head can be redundant.",)


def test_resolution_says_which_is_fastest_and_where_each_is_best():
    points = [
        Latency(model, size, "onnx", "fp32", 16, size / (100 if model == "a" else 50), 0.01)
        for model in ("a", "b")
        for size in (224, 256)
    ]
    accuracies = [SizeAccuracy("a", 224, 0.5, 10), SizeAccuracy("a", 256, 0.6, 10)]
    report = resolution_page(
        ResolutionResult(("a", "b"), (224, 256), SpeedOptions(), None, points, accuracies), about("cpu")
    )
    assert report.findings == (
        "onnx fp32, batch 16, at 256 pixels, ms/image: a 2.6, b 5.1.",
        "a is most accurate at 256 pixels: 60.00 %.",
    )
    [latency] = [table for table in report.tables if table.name == "latency_onnx_fp32_16"]
    assert latency.shown == [["a", "2.24", "2.56"], ["b", "4.48", "5.12"]]
    assert pictures(report) == {"latency_onnx_fp32_16", "accuracy", "tradeoff"}
