"""The `.pte` format: run by ExecuTorch it computes what the network does, and what is wrong with a file is one line."""

import subprocess
import sys

import pytest
import torch

import shvit
from conftest import plain_outputs, random_images, tiny_architecture, trained_looking
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines import base
from shvit.engines.base import ExportJob, Shapes
from shvit.engines.decompose import XNNPACK
from shvit.engines.executorch import ExecuTorchEngine, delegate
from shvit.engines.exported import EngineError
from shvit.model.architecture import Architecture
from shvit.model.config import Config, Stage
from shvit.modelfile import ModelFile
from shvit.suppress import quiet

pytest.importorskip("executorch.exir", exc_type=ImportError)


def exported(model_file, path, precision="fp32", calibration=(), **shapes):
    ExecuTorchEngine.export(ExportJob(model_file, path, precision, Shapes(**shapes), calibration))
    return engines.read(path)


@pytest.fixture(scope="module")
def model_file():
    torch.manual_seed(0)
    model = trained_looking(tiny_architecture(3).build())
    return ModelFile(
        model,
        ("Bär 🐻", "犬", "c"),
        Preprocess(48, 0.9, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        metrics={"top1": 0.5},
        provenance={"recipe": {"epochs": 3}},
    )


@pytest.fixture(scope="module")
def small():
    """Of one stage, for what needs another file: ExecuTorch takes its time to write one."""
    torch.manual_seed(0)
    architecture = Architecture("small", 2, config=Config((Stage(16, 1, attended=8),), image_size=32))
    return ModelFile(trained_looking(architecture.build()), ("a", "b"), Preprocess(48))


@pytest.fixture(scope="module")
def facts(model_file, tmp_path_factory):
    return exported(model_file, tmp_path_factory.mktemp("whole") / "m.pte")


def test_facts_come_back(model_file, facts):
    assert (facts.engine, facts.precision, facts.task) == ("executorch", "fp32", "classify")
    assert facts.classes == model_file.classes
    assert facts.preprocess == model_file.preprocess
    assert facts.metrics == {"top1": 0.5}
    assert facts.provenance["recipe"] == {"epochs": 3}
    assert Architecture.from_dict(facts.provenance["architecture"]) == model_file.architecture


@pytest.mark.parametrize("count", [1, 5])
def test_outputs_are_those_of_pytorch(model_file, facts, count):
    images = random_images(count, 48)
    engine = engines.load(facts, device="cpu")
    assert (engine.name, engine.precision) == ("executorch", "fp32")
    torch.testing.assert_close(engine(images), plain_outputs(model_file, images), rtol=1e-4, atol=1e-5)


def test_images_in_channels_last(model_file, facts):
    images = random_images(2, 48)
    outputs = engines.load(facts, device="cpu")(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(outputs, plain_outputs(model_file, images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_outputs_of_s1(tmp_path):
    model = trained_looking(shvit.create_model("shvit_s1", num_classes=5))
    model_file = ModelFile(model, tuple("abcde"), Preprocess(64))
    images = random_images(4, 64)
    expected = plain_outputs(model_file, images)
    engine = engines.load(exported(model_file, tmp_path / "m.pte"), device="cpu")
    assert (engine(images) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_int8(small, tmp_path):
    calibration = [random_images(4, 48), random_images(3, 48)]
    engine = engines.load(exported(small, tmp_path / "m.pte", "int8", calibration, batch=2), device="cpu")
    assert engine.precision == "int8"
    images = torch.cat(calibration)  # seven, of which the file takes two at once
    expected = plain_outputs(small, images)
    error = (engine(images) - expected).abs().max() / expected.abs().max()
    assert 1e-4 < error < 0.2  # quantized, and well: a random network's logits hardly differ


def test_xnnpack_runs_all_but_the_cast(facts):
    from executorch.exir._serialize._program import deserialize_pte_binary

    with quiet():
        [plan] = [
            plan
            for plan in deserialize_pte_binary(facts.path.read_bytes()).program.execution_plan
            if plan.name == "forward"
        ]
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"]
    assert [operator.name for operator in plan.operators] == ["dim_order_ops::_to_dim_order_copy"]


class Maps(torch.nn.Module):
    """Operations on maps for which XNNPACK needs others."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 12, 1)
        self.norm = torch.nn.GroupNorm(1, 4)
        self.groups = torch.nn.GroupNorm(2, 4)

    def forward(self, x):
        a, b, c = self.conv(x.float()).split([4, 4, 4], dim=1)
        a = self.norm(a).softmax(-1) + self.groups(b) * c.mean((1, 2, 3), keepdim=True)
        return a.mean((2, 3)) + c.mean((1, 2, 3))[:, None] + b.mean(1).mean(1).mean(1)[:, None]


def test_decompositions(tmp_path):
    from executorch.runtime import Runtime

    network, images = Maps().eval(), random_images(1, 8, 6)
    with quiet():
        program = torch.export.export(network, (images,)).run_decompositions(XNNPACK)
        file = delegate(program, {}).to_executorch().buffer
    [outputs] = Runtime.get().load_program(file).load_method("forward").execute([images])
    torch.testing.assert_close(outputs, network(images), rtol=1e-4, atol=1e-4)


def test_threads(model_file, facts):
    """Engines that take turns with other numbers of threads, each with a program of its own."""
    images = random_images(1, 48)
    expected = plain_outputs(model_file, images)
    one, two, default, again = (engines.load(facts, device="cpu", threads=n) for n in (1, 2, None, 1))
    assert (one.threads, two.threads, again.threads) == (1, 2, 1)
    for engine in (one, two, again, default, one, again, two):
        torch.testing.assert_close(engine(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_nothing_is_printed(facts):
    """By this process and its C++: neither while the library is imported nor while a program is loaded and run."""
    code = (
        "import sys, torch; from shvit import engines; "
        "engines.load(engines.read(sys.argv[1]), device='cpu', threads=1)(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code, facts.path], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def unusable(path, data):
    path.write_bytes(data)
    with pytest.raises(shvit.InputError) as caught:
        engines.load(engines.read(path), device="cpu")
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_truncated(facts, tmp_path, keep):
    whole = facts.path.read_bytes()
    kept = whole[: int(len(whole) * keep)] if isinstance(keep, float) else whole[:keep]
    assert "damaged" in unusable(tmp_path / "m.pte", kept)


def test_foreign(tmp_path):
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    with quiet():
        file = delegate(program, {}).to_executorch().buffer
    assert "was not written by shvit export" in unusable(tmp_path / "m.pte", file)


def test_what_is_refused(model_file, tmp_path, monkeypatch):
    path = tmp_path / "m.pte"
    with pytest.raises(EngineError, match="int8 needs calibration images"):
        exported(model_file, path, "int8")
    with pytest.raises(EngineError, match=r"\.pte files have no precision 'fp16': allowed are fp32, int8"):
        exported(model_file, path, "fp16")
    with pytest.raises(EngineError, match="images of one size only"):
        exported(model_file, path, dynamic_size=True)
    with pytest.raises(EngineError, match="precision 'bf16' is not available on cpu: executorch has fp32"):
        engines.load(model_file, "executorch", "bf16", device="cpu")
    assert ExecuTorchEngine.unavailable("cuda") == "runs only on the CPU"
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"executorch not installed: pip install 'shvit\[executorch\]'"):
        exported(model_file, path)
    with pytest.raises(EngineError, match=r"pip install 'shvit\[executorch\]'"):
        engines.load(model_file, "executorch", device="cpu")
    assert not path.exists()
