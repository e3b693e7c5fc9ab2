"""`shvit shard` as its users type it, and the verbs that take shards."""

import json

import pytest
from PIL import Image

import shvit
from shvit.cli import main as cli
from shvit.data.shards import writer as sharding


def test_shards_are_written_then_only_checked(run, folder, tmp_path):
    (folder / "val" / "dark" / "broken.png").write_bytes(b"oops")
    out = tmp_path / "shards"
    code, text, err = run("shard", folder, "--out", out, "--per-shard", 15)
    assert (code, err) == (0, "")
    [line] = text.splitlines()
    assert line.startswith("52 images in 4 shards · 0.2 MB · 1 image left out, see bad_images.csv · train on them: ")
    assert line.endswith(f"shvit train {out} --out RUN")

    code, text, err = run("shard", folder, "--out", out, "--per-shard", 15, "--json")
    assert code == 0
    assert json.loads(text) == {
        "out": str(out),
        "images": {"train": 40, "val": 12},
        "shards": {"train": 3, "val": 1},
        "bytes": sum(path.stat().st_size for path in out.glob("*.tar")),
        "bad_images": 1,
        "resumed": True,
    }
    assert err.startswith("already complete, all checksums match: 52 images in 4 shards (4 of them already existed)")

    code, text, err = run("shard", folder, "--out", out, "--size", 64)
    assert (code, text) == (2, "")
    assert "holds shards with size 512 instead of 64, per_shard 15 instead of 1000" in err
    assert len(err.splitlines()) == 1


def test_ctrl_c_is_one_line(run, folder, tmp_path, monkeypatch):
    encode, seen = sharding.as_jpeg, []

    def stopping(*arguments):
        seen.append(arguments)
        if len(seen) == 30:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(sharding, "as_jpeg", stopping)
    command = ["shard", folder, "--out", tmp_path / "out", "--per-shard", 10, "--workers", 0]
    code, text, err = run(*command)
    assert (code, err) == (cli.INTERRUPTED, "")
    assert text == f"stopped; run the same command again to write the remaining shards of {tmp_path / 'out'}\n"
    code, text, _ = run(*command)
    assert code == 0
    assert text.startswith("52 images in 6 shards (2 of them already existed)")
    assert len(seen) == 30 + 32


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("processes_end")
def test_too_many_bad_images_are_a_failure(run, folder, tmp_path, workers):
    for index in range(20):
        (folder / "train" / "dark" / f"{index:03}.png").write_bytes(b"oops")
    code, text, err = run("shard", folder, "--out", tmp_path / "out", "--workers", workers)
    assert (code, text) == (1, "")
    assert err.startswith("failed: 20 of 52 images cannot be used, more than the allowed share of 0.2")
    assert len(err.splitlines()) == 1


def test_other_verbs_take_shards(run, folder, tiny, tmp_path):
    for path in [*folder.rglob("*.png")]:
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        path.unlink()
    model, shards = tmp_path / "tiny.safetensors", tmp_path / "shards"
    shvit.save(tiny, model)
    assert run("shard", folder, "--out", shards, "--per-shard", 4)[0] == 0
    results = []
    for data in (folder, shards):
        code, text, err = run("eval", model, data, "--split", "val", "--json", "--workers", 0, "--engine", "torch")
        assert (code, "note" in err) == (0, False)
        results.append({key: json.loads(text)[key] for key in ("top1", "loss", "per_class", "images")})
    assert results[0] == results[1]
    assert results[0]["images"] == 12

    flags = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--compile", "off", "--json"]
    code, text, err = run("train", shards, "--model", model, "--out", tmp_path / "run", *flags)
    assert (code, json.loads(text)["epochs"]) == (0, 1)

    (shards / "val-000001.tar").unlink()
    code, text, err = run("eval", model, shards, "--split", "val", "--json", "--workers", 0, "--engine", "torch")
    assert code == 0
    assert "note: val-000001.tar is missing: 4 images left out" in err
    assert (json.loads(text)["images"], json.loads(text)["bad_images"]) == (8, 4)
