"""The cuda engine, whole: on a GPU where there is one, else its launches one by one in Triton's interpreter."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import TINY, plain_outputs, random_images, randomize_norms, tiny_architecture, trained_looking
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines import EngineError
from shvit.engines.cuda.engine import CudaEngine, Graph, bucket
from shvit.engines.cuda.plan import TooLarge
from shvit.engines.portable import Portable, portable
from shvit.engines.torch import gpu_failures
from shvit.errors import Failure, Notice
from shvit.model.architecture import Architecture
from shvit.model.config import VARIANTS, Config
from shvit.model.fuse import fuse
from shvit.model.shvit import SHViT
from shvit.modelfile import ModelFile

pytest.importorskip("triton")

from shvit.engines.cuda.network import KernelNetwork, UnsupportedNetwork
from shvit.engines.cuda.plan import Choices, Plan


def model_file(model, classes=10) -> ModelFile:
    return ModelFile(model, tuple(map(str, range(classes))), Preprocess(64))


def difference(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", VARIANTS)
def test_computes_what_the_network_does(name, kernel_device):
    """Every width of the variant, each once: more blocks are the same launches again."""
    config = VARIANTS[name]
    if kernel_device == "cpu":
        config = Config(tuple(replace(stage, depth=1) for stage in config.stages))
    given = model_file(randomize_norms(Architecture(name, 10, config=config).build()).eval())
    images = random_images(1, 40, 66)
    engine = CudaEngine(given, "fp16", kernel_device)
    assert difference(engine(images), plain_outputs(given, images)) < 2e-3


@pytest.mark.parametrize("processors", [1, 16])
def test_every_way_of_a_part_computes_the_same(processors, kernel_device):
    given = model_file(trained_looking(tiny_architecture().build()), 2)
    images = random_images(1, 66, 64).to(kernel_device)
    plan, _ = KernelNetwork(portable(given), torch.float16, kernel_device).plan(images, processors)
    seen = set()
    for part in plan.parts:
        results = []
        for way in part.ways[: 1 if part.key in seen else None]:
            out = way[-1].arguments["out"]
            out.fill_(float("nan"))
            for launch in way:
                launch()
            results.append(out.clone())
        for result in results[1:]:
            assert difference(result, results[0]) < 2e-3, part.key
        seen.add(part.key)
    assert any(len(part.ways) > 3 for part in plan.parts)


def test_large_images_attend_in_tiles(kernel_device):
    given = model_file(trained_looking(tiny_architecture().build()), 2)
    images = random_images(1, 370, 350)  # 12 x 11 tokens where the first head attends
    assert difference(CudaEngine(given, "fp16", kernel_device)(images), plain_outputs(given, images)) < 5e-3


def test_batches_of_any_number_and_layout(tiny, kernel_device):
    engine = CudaEngine(tiny, "fp16", kernel_device)
    engine.most = 4
    images = random_images(7, 32)
    outputs = engine(images)
    kept = outputs.clone()
    assert outputs.dtype == torch.float32
    assert outputs.shape == (7, 2)
    assert outputs.device == images.device
    assert {size.batch for size in engine._graphs} == {4}
    again = engine(images[5:].to(memory_format=torch.channels_last))
    assert {size.batch for size in engine._graphs} == {4, 2}
    torch.testing.assert_close(outputs[5:], again, rtol=1e-3, atol=1e-3)
    assert outputs.equal(kept), "outputs must not change with the next call"


@pytest.mark.parametrize(
    ("images", "most", "expected"),
    [
        *[(1, 1024, 1), (3, 1024, 4), (5, 1024, 8), (9, 1024, 8), (12, 1024, 16), (32, 1024, 32), (33, 1024, 32)],
        *[(700, 1024, 512), (800, 1024, 1024), (5000, 1024, 1024), (5000, 1000, 512), (6, 2, 2), (2, 1, 1)],
    ],
)
def test_bucket(images, most, expected):
    assert bucket(images, most) == expected


def test_out_of_memory_halves_the_batch(tiny, kernel_device, monkeypatch):
    def with_little_memory(self, kernels, choices, size, device):
        if size.batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        make(self, kernels, choices, size, device)

    make = Graph.__init__
    images = random_images(3, 32)
    monkeypatch.setattr(Graph, "__init__", with_little_memory)
    engine = CudaEngine(tiny, "fp16", kernel_device)
    with pytest.warns(Notice, match="memory") as told:
        outputs = engine(images)
    assert [str(notice.message).split("for ")[1] for notice in told] == [
        "4 images at once: using 2 from now on",
        "2 images at once: using 1 from now on",
    ]
    assert difference(outputs, plain_outputs(tiny, images)) < 5e-3
    engine(images[:1])  # without a further notice, which would be an error here


def test_out_of_memory_for_one_image(tiny, kernel_device, monkeypatch):
    def without_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Graph, "__init__", without_memory)
    with pytest.raises(Failure, match="too little memory for one image"):
        CudaEngine(tiny, "fp16", kernel_device)(random_images(1, 32))


def test_a_lost_gpu_is_a_failure_in_words():
    lost = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"
    words = r"^cuda:1 failed .*unspecified launch failure\); files written so far are kept$"
    with pytest.raises(Failure, match=words), gpu_failures(torch.device("cuda:1")):
        raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match="shapes"), gpu_failures(torch.device("cuda")):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: Architecture("timm/resnet10t", 10).build(), "SHViT, not TimmModel"),
        (lambda: SHViT(TINY, 10, in_channels=1), "3 channels, not of 1"),
        (lambda: SHViT(TINY, 10, mixer=lambda width, _: nn.Conv2d(width, width, 1)), "token mixer, not Conv2d"),
    ],
)
def test_other_networks_are_not_for_the_kernels(network, reason):
    with pytest.raises(UnsupportedNetwork, match=reason):
        KernelNetwork(Portable(fuse(network().eval()), Preprocess(64)), torch.float16, "cpu")


def test_other_networks_run_on_the_torch_engine(kernel_device):
    given = model_file(Architecture("timm/resnet10t", 10).build().eval())
    with pytest.warns(Notice, match="the torch engine runs it"):
        engine = CudaEngine(given, "bf16", kernel_device)
    images = random_images(2, 64)
    assert difference(engine(images), plain_outputs(given, images)) < 5e-2
    assert engine.launches(images) == []


def test_a_network_that_does_not_fit_runs_on_the_torch_engine(tiny, kernel_device, monkeypatch):
    def too_large(*_):
        raise TooLarge("the tiles of stage 3 feed-forward do not fit 101376 bytes of shared memory")

    monkeypatch.setattr(Graph, "__init__", too_large)
    engine = CudaEngine(tiny, "bf16", kernel_device)
    images = random_images(2, 32)
    with pytest.warns(Notice, match="stage 3 feed-forward do not fit"):
        outputs = engine(images)
    assert difference(outputs, plain_outputs(tiny, images)) < 5e-2


class Compiled:
    """What Triton's `warmup` gives, as far as `tune` looks."""

    def __init__(self, shared):
        self.metadata = self
        self.shared = shared


class Step:
    """A launch that costs what it says."""

    def __init__(self, layer, seconds, shared=0, key=None):
        self.layer, self.seconds, self.shared = layer, seconds, shared
        self.key = (key, seconds)
        self.runs = 0

    def compile(self):
        return Compiled(self.shared)

    def __call__(self):
        self.runs += 1


def test_the_fastest_way_that_fits_is_kept():
    plan = Plan(torch.float16, "cpu", 1)
    slow, fast, large = Step("a", 3), Step("a", 1), Step("a", 0.5, shared=2000)
    plan.add([[slow], [fast], [large]])
    plan.add([[Step("b", 3)], [Step("b", 1)], [Step("b", 0.5, shared=2000)]])  # alike
    plan.add([[Step("c", 3, key="c")], [Step("c", 4, key="c")]])
    choices = Choices()
    with ThreadPoolExecutor(2) as pool:
        choices.tune(plan, lambda way: sum(step.seconds for step in way), 1000, pool)
        assert [step.seconds for step in choices.launches(plan)] == [1, 1, 3]
        assert fast.runs == 1
        plan.add([[Step("d", 1, shared=2000, key="d")]])
        with pytest.raises(TooLarge, match="the tiles of d do not fit in 1000 bytes"):
            choices.tune(plan, lambda way: 0.0, 1000, pool)


def test_a_choice_holds_for_launches_that_differ_in_memory_alone():
    """A smaller batch has other tiles, and other ways to choose from."""
    network = KernelNetwork(portable(model_file(Architecture("shvit_s1", 10).build().eval())), torch.float16, "cpu")
    keys = []
    for count in (1, 1, 32):
        images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8).expand(count, -1, -1, -1)
        plan, _ = network.plan(images, 132)
        keys.append([part.key for part in plan.parts])
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])
    assert len(set(keys[0])) < len(keys[0])


def test_no_map_has_more_elements_than_kernels_count(tiny):
    network = KernelNetwork(portable(tiny), torch.float16, "cpu")
    most = network.most_images(512, 512)
    plan, _ = network.plan(torch.zeros(1, 3, 512, 512, dtype=torch.uint8), 1)
    assert plan.largest == 514 * 514 * 4
    assert most * plan.largest < 2**31 <= (most + 1) * plan.largest


def test_maps_share_memory_when_they_are_done_with():
    plan = Plan(torch.float16, "cpu", 1)
    x, y = plan.take(2, 4, 4, 8), plan.take(2, 4, 4, 8)
    assert x.rows.data_ptr() != y.rows.data_ptr()
    plan.give(x)
    z = plan.take(2, 2, 2, 8)
    assert z.rows.data_ptr() == x.rows.data_ptr()
    assert z.rows.shape == (8, 8)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((0, 3, 64, 64), torch.uint8),
        ((1, 3, 31, 64), torch.uint8),
        ((1, 1, 64, 64), torch.uint8),
        ((1, 3, 64, 64), torch.float32),
    ],
)
def test_refuses_other_images(tiny, shape, dtype):
    with pytest.raises(EngineError, match="images must be"):
        CudaEngine(tiny, "fp16", "cpu")(torch.zeros(shape, dtype=dtype))


def test_is_for_gpus_and_has_no_format(tiny, tmp_path):
    with pytest.raises(EngineError, match="cuda: runs only on NVIDIA GPUs"):
        engines.load(tiny, "cuda", device="cpu")
    with pytest.raises(EngineError, match="unknown format 'cuda': allowed are native, onnx"):
        engines.format_of("cuda")
    assert not engines.is_exported("runs/folder")


@pytest.mark.gpu
def test_auto_takes_it(tiny):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    engine = engines.load(tiny)
    assert (engine.name, engine.precision) == ("cuda", "fp16")
    images = random_images(5, 32).cuda()
    outputs = engine(images)
    assert outputs.is_cuda
    assert difference(outputs.cpu(), plain_outputs(tiny, images.cpu())) < 5e-3
