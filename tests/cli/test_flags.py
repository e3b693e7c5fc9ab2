"""Flags without effect are refused, whatever their value; what the verbs say first; and where help breaks its lines."""

import io
import json
from itertools import groupby, pairwise

import pytest
from rich.console import Console

import shvit
from conftest import tiny_architecture, write_coco
from shvit.cli.main import app
from shvit.cli.study import study
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob
from shvit.engines.exported import weights_digest
from shvit.engines.torch import TorchEngine
from shvit.modelfile import ModelFile

VERBS = [[], *([name] for name in app if not name.startswith("-"))]
VERBS += [["study", name] for name in study if not name.startswith("-")]


@pytest.fixture
def model(tiny, tmp_path):
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def detector(tmp_path):
    network = tiny_architecture(detector="retinanet").build().eval()
    preprocess = Preprocess(64, crop=1.0, interpolation="bilinear", fit="whole")
    shvit.save(ModelFile(network, ("tree", "cat"), preprocess, "detect"), tmp_path / "boxes.safetensors")
    return tmp_path / "boxes.safetensors"


PROFILE = ["train", "{folder}", "--model", "{model}", "--profile"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([*PROFILE, "--out", "{tmp}/x"], "--out has no effect with --profile"),
        ([*PROFILE, "--save-every", "500"], "--save-every has no effect with --profile"),
        ([*PROFILE, "--save_every=500"], "--save-every has no effect with --profile"),
        ([*PROFILE, "--track", "tensorboard", "--resume"], "--resume and --track have no effect with --profile"),
        ([*PROFILE, "--teacher-cache", "{tmp}/x"], "--teacher-cache has no effect with --profile"),
        (["train", "{folder}", "--out", "{tmp}/x", "--val-share", "0.2"], "--val-share has no effect on"),
        (["shard", "{folder}", "--out", "{tmp}/x", "--val-share", "0.2"], "val_share has no effect"),
        (["predict", "{model}", "{folder}", "--threshold", "0.3"], "--threshold has no effect with"),
        (["predict", "{model}", "{folder}", "--draw", "{tmp}/x"], "--draw has no effect with"),
        (["predict", "{detector}", "{folder}", "--top-k", "5"], "--top-k has no effect with"),
        (["predict", "{detector}", "{folder}", "--draw", "{folder}"], "is not empty: give another --draw"),
        (["predict", "{detector}", "{folder}", "--draw", "{model}"], "is a file: --draw must be a folder"),
        (["export", "{model}", "--format", "torch", "--max-drop", "0.5"], "--max-drop has no effect in fp32, only in"),
        (["bench", "x.onnx", "y.pt2", "--engine", "torch"], "--engine has no effect on models with a fixed engine"),
        (["bench", "x.onnx", "--image-size", "32"], "--image-size has no effect on exported files"),
        (["study", "macro", "--out", "{tmp}/x", "--seeds", "1"], "--seeds has no effect without --train DATA"),
        (["study", "macro", "--out", "{tmp}/x", "--workers", "2"], "--workers has no effect without data"),
        (["study", "resolution", "--out", "{tmp}/x", "--epochs", "10"], "--epochs has no effect without --train DATA"),
        (["study", "redundancy", "{model}", "{folder}", "--out", "{tmp}/x", "--images", "9", "--similarity-images=128"],
         "--similarity-images has no effect above --images 9"),
        (["info", "{folder}", "--image-size", "64"], "--image-size has no effect on datasets"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_flags_without_effect_are_refused(run, folder, model, detector, tmp_path, arguments, reason):
    places = {"folder": folder, "tmp": tmp_path, "model": model, "detector": detector}
    code, out, err = run(*(argument.format(**places) for argument in arguments))
    assert (code, out) == (2, "")
    assert reason in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_threads_are_the_cpus(monkeypatch, tiny):
    with pytest.raises(shvit.InputError, match="threads has no effect on cuda: leave it out"):
        shvit.engines.check_threads(2, "cuda")
    shvit.engines.check_threads(None, "cuda")
    shvit.engines.check_threads(2, "cpu")


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch-size", "1"],
        ["--batch-size", "1", "--mixup", "0", "--cutmix", "0"],
        ["--batch-size", "2", "--accumulate", "2", "--mixup", "0", "--cutmix", "0"],
        ["--batch-size", "64"],
        ["--recipe", "finetune", "--model", "shvit_s1"],
        ["--recipe", "highres", "--model", "shvit_s2"],
        ["--recipe", "highres-paper", "--model", "timm/test_resnet"],
        ["--optimizer", "newton"],
        ["--optimizer", "sgd", "--beta2", "0.9"],
        ["--teacher", "{tmp}/none.safetensors"],
        ["--teacher-cache", "{tmp}/cache"],
        ["--task", "detect"],
        ["--image-size", "40", "--model", "timm/test_vit"],
        ["--save-every", "0"],
        ["--workers", "-1"],
        ["--device", "cuda:9"],
    ],
    ids=" ".join,
)
def test_a_refused_run_leaves_no_folder(run, folder, model, tmp_path, flags):
    command = ["train", folder, "--out", tmp_path / "x", "--workers", 0, "--compile", "off", "--epochs", 1]
    named = flags if "--model" in flags else ["--model", str(model), *flags]
    code, _, err = run(*command, *(flag.format(tmp=tmp_path) for flag in named))
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
    if "--recipe" in flags:
        name = flags[-1] if flags[-1].startswith("shvit") else "shvit_s1"
        assert f"published weights such as {name}.in1k" in err


def test_one_image_at_once_is_refused_where_a_norm_sees_one_value(run, tmp_path):
    write_coco(tmp_path / "coco")
    command = ["train", tmp_path / "coco", "--task", "detect", "--batch-size", 1, "--epochs", 1, "--workers", 0]
    sized = [*command, "--model", "shvit_s1", "--val-share", 0.2, "--image-size", 64, "--out", tmp_path / "x"]
    assert "--val-share has no effect on" in run(*sized)[2]
    sized = [*command, "--model", "shvit_s1", "--image-size", 64, "--out", tmp_path / "x"]
    code, _, err = run(*sized)
    assert (code, "needs at least two images, but batch_size 1 gives one: batch_size must be" in err) == (2, True)
    assert not (tmp_path / "x").exists()


def wrapped(verb, width):
    """The texts of a verb's help, each as its lines and the room that these have."""
    printed = io.StringIO()
    app.help_print(verb, console=Console(file=printed, width=width))
    lines = printed.getvalue().splitlines()
    for framed, group in groupby(lines, lambda line: line.startswith("│")):
        if framed:
            rows = [line[2:-2] for line in group]
            column = min((len(row) - len(row.lstrip()) for row in rows if row.startswith(" " * 8)), default=0)
            entries = [[]]
            for row in rows if column else []:
                if row[:column].strip():
                    entries.append([])
                entries[-1].append(row[column:].rstrip())
            yield from ((entry, width - 4 - column) for entry in entries)
        else:
            for text, paragraph in groupby(group, lambda line: bool(line.strip()) and line[0] not in "╭╰"):
                if text:
                    yield [line.rstrip() for line in paragraph], width


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "shvit")
def test_help_breaks_a_line_only_where_the_width_forces_it(verb, width):
    broken = 0
    for lines, room in wrapped(verb, width):
        for line, following in pairwise(lines):
            assert len(line) + 1 + len(following.split()[0]) > room, f"{line!r} could hold more"
            broken += 1
    assert broken or width == 120 or verb == ["models"]


def help_of(verb):
    printed = io.StringIO()
    app.help_print(verb, console=Console(file=printed, width=120))
    return printed.getvalue()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "shvit")
def test_help_explains_every_flag_and_shows_no_default_of_switches(verb):
    assert "[default: False]" not in help_of(verb)
    command = app.parse_commands(verb)[1][-1]
    if command.default_command:
        arguments = command.assemble_argument_collection(parse_docstring=True)
        assert [argument.name for argument in arguments if argument.show and not argument.parameter.help] == []


def test_help_lists_the_tasks_of_bench():
    assert "[choices: classify, detect, segment] [default: classify]" in " ".join(
        help_of(["bench"]).replace("│", " ").split()
    )


def test_eval_names_engine_and_precision_and_judges_in_fp32(run, folder, tiny, model, tmp_path, monkeypatch):
    monkeypatch.setattr("shvit.engines.torch.has_bf16", lambda device: True)
    flags = ["--engine", "torch", "--workers", 0]
    headline = run("eval", model, folder, *flags)[1].splitlines()[0]
    assert "on 12 validation images (torch, fp32, " in headline
    assert "(torch, bf16, " in run("eval", model, folder, *flags, "--precision", "auto")[1].splitlines()[0]
    assert "(torch, bf16, " in run("eval", model, folder, *flags, "--precision", "bf16")[1].splitlines()[0]
    assert json.loads(run("eval", model, folder, *flags, "--json")[1])["precision"] == "fp32"
    TorchEngine.export(ExportJob(tiny, tmp_path / "m.pt2", "bf16"))
    assert "(torch, bf16, " in run("eval", tmp_path / "m.pt2", folder, "--workers", 0)[1].splitlines()[0]


@pytest.mark.parametrize(
    "kind",
    ["safetensors", "onnx", "openvino", "torch", "coreml"]
    + [pytest.param(kind, marks=pytest.mark.slow) for kind in ("executorch", "litert")],
)
def test_info_of_a_file_is_ten_lines(run, tiny, tmp_path, kind):
    path = tmp_path / "m.safetensors"
    recipe = {"name": "scratch", "epochs": 3}
    model_file = ModelFile(
        tiny.model, tiny.classes, tiny.preprocess, metrics={"top1": 0.75, "images": 12}, provenance={"recipe": recipe}
    )
    shvit.save(model_file, path)
    expected = json.loads(run("info", path, "--json")[1])
    if kind != "safetensors":
        engine = shvit.engines.ENGINES[kind]
        if reason := engine.absent():
            pytest.skip(reason)
        path = tmp_path / f"m{engine.suffix}"
        precision = engine.writes[None][0]
        engine.export(ExportJob(model_file, path, precision))
        expected["file"] |= {"engine": kind, "precision": precision, "end_to_end": False, "sample": None}
        expected["file"]["provenance"]["weights"] = weights_digest(model_file)
        expected["file"]["provenance"]["architecture"] = model_file.architecture.to_dict()
    code, out, err = run("info", path)
    assert code == 0, err
    assert len(out.splitlines()) <= 10
    assert "2 classes: dark; light" in out
    assert "top-1 75.00% on 12 images · recipe scratch, 3 epochs" in out
    found = json.loads(run("info", path, "--json")[1])
    assert found == json.loads(json.dumps(expected))


def test_bench_shows_a_files_own_accuracy(run, tiny, tmp_path, quick_machine):
    shvit.save(
        ModelFile(tiny.model, tiny.classes, tiny.preprocess, metrics={"top1": 0.755}), tmp_path / "mine.safetensors"
    )
    flags = ["--engine", "torch", "--precision", "fp32", "--batch-size", 1, "--rounds", 1, "--threads", 1]
    command = ["bench", tmp_path / "mine.safetensors", *flags]
    code, out, err = run(*command, "--plot", tmp_path / "plot.png", "--json")
    assert code == 0, err
    [row] = json.loads(out)["rows"]
    assert (row["own_top1"], row["published_top1"]) == (75.5, None)
    assert "75.5%‡" in err
    assert (tmp_path / "plot.png").exists()


def test_profile_says_at_once_what_it_does(run, folder, model, monkeypatch):
    def slow(*_, **__):
        raise shvit.InputError("the first slow step")

    monkeypatch.setattr("shvit.train.run._planned", slow)
    _, out, err = run("train", folder, "--model", model, "--profile")
    assert out.startswith("profiling: 10 steps of data loading, of training, and of both together")
    assert "the first slow step" in err
