"""Tables, files and figures of made-up results."""

import io
import json
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from shvit.bench.case import Case
from shvit.bench.figures import draw_result
from shvit.bench.machine import Machine, Product
from shvit.bench.peers import DEFAULT_MODELS
from shvit.bench.plan import Omitted
from shvit.bench.report import check_paths, hardware_name, show, write_result
from shvit.bench.run import Result, Row
from shvit.bench.timing import Timing
from shvit.errors import InputError
from shvit.model.cost import Cost
from shvit.requests.bench import BenchRequest

ABOUT = {
    "versions": {},
    "commit": None,
    "hardware": {"processor": "Intel(R) Xeon(R) Gold 5218R CPU @ 2.10GHz", "cores": 20, "system": "Linux"},
    "command": "shvit bench",
    "date": "2026-11-22T12:00:00+00:00",
}


def made_up(models=DEFAULT_MODELS, sizes=(224, 256), precisions=("fp32",), protocol=None) -> Result:
    """A result whose rows get slower one by one, and with size."""
    rows = []
    for (number, model), size, precision in product(enumerate(models), sizes, precisions):
        seconds = 0.01 * (1 + 0.02 * number) * (size / 224) ** 2
        case = Case(model, "torch", precision, 16, size, "cpu", 1)
        rows.append(Row(case, Timing((seconds,), 2 * seconds), 5 * 10**7, Cost(model, 10**6, 10**8, 1), 0.5))
    request = BenchRequest(models, threads=1, protocol=protocol, rounds=1)
    ceiling = Machine({"fp32": Product(1e11, 256, "torch.mm")}, 5e10, 1e10)
    return Result(request, ceiling, tuple(rows), (Omitted("coreml", "not on Linux"),), (), ABOUT)


def shown(result) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=80), result)
    return stream.getvalue()


def test_the_table_says_once_what_all_rows_share():
    text = shown(made_up())
    assert "in every row: engine torch, precision fp32, batch 16" in text
    header, first = [line for line in text.splitlines() if line.startswith(("model ", "shvit_s1 "))][:2]
    assert header.split()[:3] == ["model", "pixels", "images/s"]
    assert " ".join(first.split()) == "shvit_s1 224 1,600 10.00 20.00 0.0% 50% 50 MB 1.0 M 100 M 72.8% in1k"
    assert "79.8%†" in text
    assert "left out: coreml: not on Linux" in text
    assert "threads: 1;" in text
    assert "quantized with random images" not in text


def test_random_calibration_is_marked():
    text = shown(made_up(("shvit_s1", "best.safetensors"), (224,), ("fp32", "int8")))
    marked = [line.split()[:2] for line in text.splitlines() if "int8*" in line]
    assert marked == [["shvit_s1", "int8*"]]
    assert "* quantized with random images: only the speed is meaningful" in text


def test_a_protocol_shows_the_papers_ratios():
    text = shown(made_up(("shvit_s1", "timm/fastvit_t8", "timm/resnet18"), (224,), protocol="paper-cpu"))
    rows = [line.split() for line in text.splitlines() if line.startswith(("shvit_s1 ", "timm/"))]
    assert [row[-4:] for row in rows] == [
        ["1.00", "/", "1.00", "143"],
        ["0.98", "/", "0.16", "23"],
        ["0.96", "/", "-", "-"],
    ]


def test_the_file_is_named_by_machine_and_date(tmp_path):
    path = write_result(made_up(), tmp_path / "results")
    assert path.name == "bench_intel-xeon-gold-5218r-20core_2026-11-22.json"
    assert json.loads(path.read_text())["rows"][0]["model"] == "shvit_s1"
    assert write_result(made_up(), tmp_path / "new" / "a.json") == tmp_path / "new" / "a.json"
    machine = {"processor": "AMD EPYC", "instructions": ["AVX2", "AVX-512", "VNNI"], "cores": 2}
    assert hardware_name(machine) == "amd-epyc-vnni-2core"
    assert hardware_name({**machine, "gpu": "NVIDIA A100-SXM4-80GB"}) == "nvidia-a100-sxm4-80gb"


def test_paths_are_checked_before_any_work(tmp_path):
    check_paths(tmp_path, Path("a.png"))
    with pytest.raises(InputError, match=r"--out must be a folder or end in \.json, got a\.csv"):
        check_paths(Path("a.csv"), None)
    with pytest.raises(InputError, match=r"--plot must end in \.png, got a\.pdf"):
        check_paths(None, Path("a.pdf"))


@pytest.mark.parametrize("sizes", [None, (256, 512, 1024)], ids=["scatter", "resolution"])
def test_figures_name_every_model_and_no_name_covers_another(tmp_path, monkeypatch, sizes):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (figures.append(self), save(self, path)))
    result = made_up(sizes=sizes, precisions=("fp32", "int8", "bf16")) if sizes else at_published_sizes()
    assert draw_result(result, tmp_path / "new" / "figure.png")
    with Image.open(tmp_path / "new" / "figure.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == ((1728, 1152) if sizes else (864, 576))
    for axes in figures[0].axes:
        assert {text.get_text().rstrip("†") for text in axes.texts} == {
            name.removeprefix("timm/") for name in DEFAULT_MODELS
        }
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def at_published_sizes():
    """The scatter's: every model once, at the size that its accuracy was published of."""
    result = made_up()
    return replace(result, rows=tuple(row for row in result.rows if row.top1))


def test_nothing_published_is_nothing_to_draw(tmp_path):
    assert not draw_result(made_up(("timm/resnet18",), (224,)), tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_models_with_dollars_in_their_paths_are_drawn(tmp_path):
    """They are no formulas, and the second would be a wrong one."""
    assert draw_result(made_up((r"runs/$a$/best.safetensors", r"runs/$\bad{$.safetensors")), tmp_path / "plot.png")
