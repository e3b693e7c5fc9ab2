"""Each kernel against PyTorch in fp64: random inputs, poisoned outputs, odd sizes, and nothing written beyond."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import randomize_norms
from shvit.model.attention import SingleHeadAttention
from shvit.model.fuse import fold
from shvit.model.layers import ConvNorm, FeedForward, depthwise_residual

pytest.importorskip("triton")

from shvit.engines.cuda.launches import (
    Attend,
    Center,
    ClassifierLaunch,
    Convolve,
    Depthwise,
    FusedFeedForward,
    Project,
    Stem,
)
from shvit.engines.cuda.layout import Put, memory_width
from shvit.engines.cuda.plan import Map, Plan

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
BEYOND = 64
"""Rows after a map that no kernel may touch."""


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request):
    return request.param


def folded(module: nn.Module) -> nn.Module:
    """With norms folded, in fp64, weights that fp16 and bf16 hold exactly."""
    module = fold(randomize_norms(module).double().eval())
    for parameter in module.parameters():
        parameter.data = parameter.data.bfloat16().double()
    return module


class Bench:
    """Maps of random numbers and of poison, on the kernels' device."""

    def __init__(self, dtype, device):
        self.dtype, self.device = dtype, device
        self.put = Put(dtype, device)
        self.poisoned = []

    def plan(self, processors=1):
        return Plan(self.dtype, self.device, processors)

    def map(self, images, height, width, channels):
        """Random numbers, as fp64 (images, channels, height, width) and as the kernels' map of them."""
        x = torch.randn(images, channels, height, width).to(self.dtype)
        rows = torch.zeros(images * height * width, memory_width(channels), dtype=self.dtype)
        rows[:, :channels] = x.permute(0, 2, 3, 1).reshape(-1, channels)
        return x.double(), Map(rows.to(self.device), images, height, width)

    def out(self, images, height, width, channels, dtype=None):
        """Not a number in what is to be written, 7 in what lies behind."""
        rows, width_there = images * height * width, memory_width(channels) if dtype is None else channels
        whole = torch.full((rows + BEYOND, width_there), 7.0, dtype=dtype or self.dtype, device=self.device)
        whole[:rows] = float("nan")
        self.poisoned.append((whole, rows))
        return Map(whole[:rows], images, height, width)

    def check(self, out, expected, tolerance=1.0):
        """Within `tolerance` roundings of the type, by norm; what pads the channels is zero."""
        for whole, rows in self.poisoned:
            assert (whole[rows:] == 7).all(), "written beyond the map"
        channels = expected.shape[1]
        actual = out.rows.double().cpu()
        assert not actual[:, channels:].any()
        if expected.ndim == 4:
            expected = expected.permute(0, 2, 3, 1).reshape(-1, channels)
        error = (actual[:, :channels] - expected).norm() / expected.norm()
        assert error <= tolerance * torch.finfo(self.dtype).eps, f"differs by {error:.1e}"


@pytest.fixture
def bench(dtype, kernel_device):
    return Bench(dtype, kernel_device)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "widths"), [((33, 50), (2, 4)), ((37, 32), (28, 56))])
def test_stem(bench, size, widths, layout):
    first, second = (folded(ConvNorm(*channels, 3, stride=2)) for channels in ((3, widths[0]), (widths[0], widths[1])))
    first.weight.data /= 128  # pixels are large numbers
    first.weight.data = first.weight.data.bfloat16().double()
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        expected = second(first(images.double() - MEAN.double()).relu()).relu()
    pixels = bench.out(2, *(2 * ((side + 1) // 2) + 2 for side in size), 4, bench.dtype)
    Center(bench.put, MEAN)(images.to(bench.device, memory_format=layout), pixels, {"BLOCK": 64})()
    inner = pixels.rows.view(2, pixels.height, pixels.width, 4)[:, 1 : size[0] + 1, 1 : size[1] + 1, :3]
    assert inner.permute(0, 3, 1, 2).double().cpu().equal(images.double() - MEAN.round().double())
    out = bench.out(2, *expected.shape[2:], widths[1])
    Stem(bench.put, MEAN, first.float(), second.float())(pixels, size, out, {"BLOCK": 64})()
    bench.check(out, expected)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("channels", "size"), [((4, 8), (17, 12)), ((56, 112), (8, 9))])
def test_convolve(bench, channels, size, relu):
    conv = folded(ConvNorm(*channels, 3, stride=2))
    x, map_of_x = bench.map(2, *size, channels[0])
    with torch.no_grad():
        expected = conv(x)
    out = bench.out(2, *expected.shape[2:], channels[1])
    Convolve(bench.put, "", conv, relu)(map_of_x, out, {"BM": 32, "BN": 64, "BK": 32})()
    bench.check(out, expected.relu() if relu else expected)


@pytest.mark.parametrize("channels", [(24, 40), (154, 68)])
def test_project(bench, channels):
    conv = folded(ConvNorm(*channels))
    x, map_of_x = bench.map(3, 3, 5, channels[0])
    tiles = {"BM": 16, "BN": 32, "BK": 64}
    with torch.no_grad():
        plain = conv(x)
    out = bench.out(3, 3, 5, channels[1])
    Project(bench.put, "", conv, relu=True)(map_of_x, out, tiles)()
    bench.check(out, plain.relu())

    other, residual = bench.map(3, 3, 5, channels[1])
    out = bench.out(3, 3, 5, channels[1])
    Project(bench.put, "", conv)(map_of_x, out, tiles, residual=residual)()
    bench.check(out, plain + other)

    gate = torch.rand(3, memory_width(channels[0])).to(bench.dtype)
    with torch.no_grad():
        gated = conv((x * gate[:, : channels[0], None, None].double()).to(bench.dtype).double())
    out = bench.out(3, 3, 5, channels[1])
    Project(bench.put, "", conv)(map_of_x, out, tiles, gate=Map(gate.to(bench.device), 3, 1, 1))()
    bench.check(out, gated)


@pytest.mark.parametrize("attended", [9, 48])
def test_project_after_attention(bench, attended):
    conv = folded(ConvNorm(72, 72))
    x, map_of_x = bench.map(2, 3, 3, 72)
    made, mixed = bench.map(2, 3, 3, attended)
    made, mixed.rows[:] = made.relu(), mixed.rows.relu()
    with torch.no_grad():
        expected = x + conv(torch.cat([made, x[:, attended:].relu()], 1))
    out = bench.out(2, 3, 3, 72)
    launch = Project(bench.put, "", conv, attended=attended)
    launch(map_of_x, out, {"BM": 16, "BN": 64, "BK": 32}, mixed=mixed, residual=map_of_x)()
    bench.check(out, expected)


@pytest.mark.parametrize("processors", [1, 40], ids=["alone", "shared"])
@pytest.mark.parametrize("width", [16, 24, 154])
@pytest.mark.parametrize("before", ["nothing", "depthwise", "attention"])
def test_feed_forward(bench, before, width, processors):
    branch, local, blend = (
        folded(FeedForward(width)),
        folded(depthwise_residual(width, 1.0)),
        folded(ConvNorm(width, width)),
    )
    attended = 9
    x, map_of_x = bench.map(3, 5, 3, width)
    made, mixed = bench.map(3, 5, 3, attended)
    made, mixed.rows[:] = made.relu(), mixed.rows.relu()
    with torch.no_grad():
        y = {
            "nothing": lambda: x,
            "depthwise": lambda: local(x),
            "attention": lambda: x + blend(torch.cat([made, x[:, attended:].relu()], 1)),
        }[before]()
        expected = y + branch(y)
    plan = bench.plan(processors)
    layer = FusedFeedForward(bench.put, "", branch, blend, attended)
    out = bench.out(3, 5, 3, width)
    given = {"depthwise": {"local": Depthwise(bench.put, "", local)}, "attention": {"mixed": mixed}}.get(before, {})
    launch = layer(plan, map_of_x, out, {"BM": 16, "BH": 32, "BK": 32}, **given)
    assert (launch.arguments["SPLITS"] > 1) == (processors > 1 and width > 16)
    launch()
    bench.check(out, expected)
    out.rows[:] = float("nan")
    launch()  # again, as in the replay of a graph: what programs count themselves by is back at zero
    bench.check(out, expected)


@pytest.mark.parametrize(("images", "size", "attended", "tiles"), [
    (5, (2, 3), 9, {"TOGETHER": 4, "TILE": 32}),  # several images to a tile, the last group not full
    (2, (5, 9), 20, {"TOGETHER": 1, "TILE": 64}),
    (2, (1, 1), 8, {"TOGETHER": 1, "TILE": 16}),
    (2, (7, 8), 9, {"TOGETHER": 1, "TILE": 16}),  # several tiles to an image
])  # fmt: skip
def test_attend(bench, images, size, attended, tiles):
    width = 40
    local, attention = folded(depthwise_residual(width, 1.0)), folded(SingleHeadAttention(width, attended))
    attention.project = nn.Identity()
    x, map_of_x = bench.map(images, *size, width)
    with torch.no_grad():
        y = local(x)
        expected = attention(y)[:, :attended]
    out, mixed = bench.out(images, *size, width), bench.out(images, *size, attended)
    attend = Attend(bench.put, "", Depthwise(bench.put, "", local), attention)
    attend(map_of_x, out, mixed, {**tiles, "BC": 32})()
    bench.check(out, y)
    bench.check(mixed, expected, tolerance=2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 7), (9, 4), (1, 1)])
def test_depthwise(bench, size, stride):
    conv = folded(ConvNorm(44, 44, 3, stride=stride, groups=44))
    x, map_of_x = bench.map(2, *size, 44)
    with torch.no_grad():
        expected = conv(x)
    out, mean = bench.out(2, *expected.shape[2:], 44), bench.out(2, 1, 1, 44)
    Depthwise(bench.put, "", conv, relu=True)(map_of_x, out, {"BM": 16, "BC": 32}, mean)()
    bench.check(out, expected.relu())
    bench.check(mean, expected.relu().mean((2, 3)))
    out = bench.out(2, *expected.shape[2:], 44)
    Depthwise(bench.put, "", conv)(map_of_x, out, {"BM": 64, "BC": 64})()
    bench.check(out, expected)


def test_project_means_to_gates(bench):
    linear = folded(nn.Linear(40, 11))
    x, map_of_x = bench.map(19, 1, 1, 40)
    with torch.no_grad():
        expected = linear(x.flatten(1)).sigmoid()
    gate = bench.out(19, 1, 1, 11)
    Project(bench.put, "", linear, sigmoid=True)(map_of_x, gate, {"BM": 16, "BN": 16, "BK": 32})()
    bench.check(Map(gate.rows[:, :11], 19, 1, 1), expected)


def test_classify(bench):
    linear = folded(nn.Linear(72, 11))
    x, map_of_x = bench.map(19, 2, 3, 72)
    with torch.no_grad():
        expected = linear(x.mean((2, 3)).to(bench.dtype).double())
    logits = bench.out(19, 1, 1, 11, torch.float32)
    ClassifierLaunch(bench.put, linear)(map_of_x, logits, {"BM": 16, "BN": 16, "BK": 64})()
    bench.check(logits, expected)


SPILLED = {"3.8": {"downsample 2 before feed-forward, depthwise before": 8}}
"""Bytes of registers that a thread keeps in memory, by release of Triton and layer; all others keep none."""


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path):
    """The interpreter takes what the compiler refuses, such as factors of different types."""
    script = Path(__file__).parents[3] / "benchmarks" / "compile_kernels.py"
    arguments = ["shvit_s1", "--batch-size", "1024", "--arch", "90", "--first", "--out", tmp_path / "kernels.json"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, env=environment)
    rows = json.loads((tmp_path / "kernels.json").read_text())
    assert {row["layer"] for row in rows} > {"stem 1+2", "stage 2 attention", "classifier"}
    spilled = SPILLED.get(version("triton").rpartition(".")[0], {})
    assert all(row["fits"] and row["stack"] <= spilled.get(row["layer"], 0) for row in rows)
    without = ("stem, pixels", "downsample 1 depthwise", "downsample 2 depthwise", "downsample 2 depthwise after")
    assert all(row["matrix_instructions"] or row["layer"] in without for row in rows)
