"""Weights of other projects: compared with timm's port. A small server on localhost acts as the hub."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save, save_file

import shvit
from conftest import SHARED, randomize_norms
from shvit import pretrained
from shvit.model.config import VARIANTS


def timm_pair(name, dtype):
    """timm's network with random statistics, and ours with the same weights."""
    theirs = randomize_norms(timm.create_model(name)).to(dtype).eval()
    ours = shvit.create_model(name).to(dtype).eval()
    ours.load_state_dict(pretrained.from_timm(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("size", ["native", (97, 161), (384, 384)], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_timms(name, size, dtype, bound):
    theirs, ours = timm_pair(name, dtype)
    if size == "native":
        size = (ours.image_size, ours.image_size)
    images = torch.randn(1, 3, *size, dtype=dtype)
    with torch.no_grad():
        expected, actual = theirs(images), ours(images)
    assert (actual - expected).abs().max() <= bound * expected.abs().max()


def test_training_gradients_equal_timms():
    theirs, ours = timm_pair("shvit_s1", torch.float64)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for model in (theirs, ours):
        model.train()
        model(images).square().sum().backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    named = pretrained.to_timm({key: p.grad for key, p in ours.named_parameters()})
    assert named.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(named[key], gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trips_lose_nothing(name):
    theirs = timm.create_model(name).state_dict()
    ours = pretrained.from_timm(theirs)
    assert ours.keys() == shvit.create_model(name).state_dict().keys()
    back = pretrained.to_timm(ours)
    assert list(back) == list(theirs)
    assert all(back[key] is theirs[key] for key in theirs)


def authors_name(key: str) -> str:
    """The authors' name of a weight. Parts of a downsample are the first three entries of blocks2 and blocks3."""
    if match := re.match(r"stages\.0\.blocks\.(\d+)\.(.*)", key):
        return f"blocks1.{match[1]}.{match[2]}"
    if match := re.match(r"stages\.(\d)\.blocks\.(\d+)\.(.*)", key):
        return f"blocks{int(match[1]) + 1}.{int(match[2]) + 3}.{match[3]}"
    if match := re.match(r"stages\.(\d)\.downsample\.(\d)\.(.*)", key):
        place = ["0.0", "0.1", "1", "2.0", "2.1"][int(match[2])]
        return f"blocks{int(match[1]) + 1}.{place}.{match[3]}"
    return key


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_authors_weights(wrapped):
    ours = shvit.create_model("shvit_s4", distilled=True)
    weights = ours.state_dict()
    authors = {authors_name(key): value for key, value in pretrained.to_timm(weights).items()}
    assert "blocks2.0.0.m.c.weight" in authors
    assert "blocks3.1.se.fc1.weight" in authors
    assert "head_dist.l.weight" in authors
    loaded = pretrained.from_official({"model": authors, "epoch": 299} if wrapped else authors)
    assert loaded.keys() == weights.keys()
    assert all(loaded[key] is value for key, value in weights.items())


def test_foreign_weights_are_named():
    with pytest.raises(shvit.InputError, match=r"layer1\.0\.conv1\.weight"):
        pretrained.from_timm({"layer1.0.conv1.weight": torch.zeros(1)})


def test_transfer_keeps_all_but_the_head():
    trained = randomize_norms(shvit.create_model("shvit_s1", num_classes=7))
    architecture = shvit.create_model("shvit_s1", num_classes=3).architecture
    new = pretrained.transfer(trained, architecture)
    assert new.head.linear.weight.shape[0] == 3
    for key, value in trained.state_dict().items():
        if not key.startswith("head.linear"):
            assert torch.equal(new.state_dict()[key], value)


def test_a_distillation_head_that_is_not_wanted_is_left_behind():
    trained = shvit.create_model("shvit_s1", num_classes=3, distilled=True)
    new = pretrained.transfer(trained, shvit.create_model("shvit_s1", num_classes=3).architecture)
    assert torch.equal(new.head.linear.weight, trained.head.linear.weight)
    assert new.distillation_head is None


def test_transfer_between_networks_is_refused():
    with pytest.raises(shvit.InputError, match="do not fit"):
        pretrained.transfer(shvit.create_model("shvit_s1"), shvit.create_model("shvit_s2").architecture)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shvit_s1", "network without weights.*shvit_s1.in1k"),
        ("nothing_here", "is neither a file nor one of the names"),
    ],
)
def test_load_of_what_has_no_weights(name, reason):
    with pytest.raises(shvit.InputError, match=reason):
        shvit.load(name)


def test_imagenet_has_a_thousand_named_classes():
    classes = pretrained.imagenet_classes()
    assert len(classes) == 1000
    assert classes[0].startswith("tench")
    assert classes[999].startswith("toilet")


# -- the hub -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    """Random weights in the format in which timm publishes them."""
    torch.manual_seed(3)
    return randomize_norms(timm.create_model("shvit_s1")).eval()


@pytest.fixture
def hub(published):
    """A server that answers like the hub for timm/shvit_s1.in1k. `requests` lists the requests."""
    content = save({key: value.contiguous() for key, value in published.state_dict().items()})

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            server.requests.append((self.command, self.path))
            body_of = {"/timm/shvit_s1.in1k/resolve/main/model.safetensors": content}
            body_of["/timm/shvit_s3.in1k/resolve/main/model.safetensors"] = b"garbage" * 100
            answer = body_of.get(self.path)
            known = answer is not None
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(answer) if known else 0))
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(answer or b"").hexdigest()}"')
            self.end_headers()
            if known and body:
                self.wfile.write(answer)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def run_shvit(arguments, home, endpoint):
    """Runs the command in another process, since the hub's client reads its settings when it is imported."""
    hidden = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment = {
        **hidden,
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "shvit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_published_weights_from_hub_then_cache_then_by_hand(hub, published, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    home = tmp_path / "home"

    first = run_shvit(["info", "shvit_s1.in1k", "--json"], home, endpoint)
    assert first.returncode == 0, first.stderr
    header = json.loads(first.stdout)["file"]
    assert len(header["classes"]) == 1000
    assert header["preprocess"]["crop"] == 0.875
    assert header["preprocess"]["interpolation"] == "bicubic"
    assert ("GET", "/timm/shvit_s1.in1k/resolve/main/model.safetensors") in hub.requests

    # the logits are those of timm's network
    script = (
        "import shvit, torch, sys; m = shvit.create_model('shvit_s1', pretrained=True).eval();"
        "torch.manual_seed(5); torch.save(m(torch.randn(1, 3, 64, 64)).detach(), sys.argv[1])"
    )
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "logits.pt")], env=environment, check=True, timeout=300
    )
    torch.manual_seed(5)
    expected = published(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-4, atol=1e-4)

    # without hub and cache, one line says what to download and where to put it, which works
    empty = tmp_path / "empty"
    offline = run_shvit(["info", "shvit_s1.in1k"], empty, "http://127.0.0.1:9")
    assert offline.returncode == 2
    assert len(offline.stderr.strip().splitlines()) == 1
    assert "http://127.0.0.1:9/timm/shvit_s1.in1k/resolve/main/model.safetensors" in offline.stderr
    place = re.search(r"copy it to (\S+)", offline.stderr)[1]
    Path(place).parent.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in published.state_dict().items()}, place)
    by_hand = run_shvit(["info", "shvit_s1.in1k", "--json"], empty, "http://127.0.0.1:9")
    assert by_hand.returncode == 0, by_hand.stderr


@pytest.mark.slow
def test_the_published_name_goes_wherever_a_model_is_expected(hub, tmp_path):
    if not (SHARED / "photos").is_dir():
        pytest.skip("the real photographs are not beside this checkout")
    picture = next(iter(sorted((SHARED / "photos").iterdir())))
    done = run_shvit(
        ["predict", "shvit_s1.in1k", str(picture), "--json"], tmp_path, f"http://127.0.0.1:{hub.server_port}"
    )
    assert done.returncode == 0, done.stderr
    [prediction] = json.loads(done.stdout)["predictions"]
    assert prediction["error"] is None
    assert set(prediction["labels"]) <= set(pretrained.imagenet_classes())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["shvit_s2.in1k", "shvit_s3.in1k", "timm/shvit_s2.in1k"], ids=["absent", "garbage", "timm"]
)
def test_a_hub_without_the_file_or_with_garbage_is_one_line(hub, tmp_path, name):
    done = run_shvit(["eval", name, "digits"], tmp_path, f"http://127.0.0.1:{hub.server_port}")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert name in done.stderr


@pytest.mark.slow
def test_training_fine_tunes_the_published_weights_or_names_two_ways_on(hub, folder, tmp_path):
    command = ["train", str(folder), "--out", str(tmp_path / "run"), "--image-size", "32", "--epochs", "1"]
    offline = run_shvit(command, tmp_path / "empty", "http://127.0.0.1:9")
    assert offline.returncode == 2
    [line] = offline.stderr.strip().splitlines()
    assert re.search(r"copy it to \S+; or train from random weights with --model shvit_s1$", line)
    assert not (tmp_path / "run").exists()
    quick = ["--batch-size", "8", "--workers", "0", "--compile", "off"]
    done = run_shvit([*command, *quick], tmp_path / "home", f"http://127.0.0.1:{hub.server_port}")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (record["model"], record["recipe"]["name"]) == ("shvit_s1.in1k", "finetune")
    # a model that the user named is not replaced
    named = [*command, "--model", "shvit_s2.in1k"]
    assert "random weights" not in run_shvit(named, tmp_path / "empty", f"http://127.0.0.1:{hub.server_port}").stderr
