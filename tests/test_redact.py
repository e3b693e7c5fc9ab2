"""Tokens and passwords are neither written nor shown."""

import json
import sys

import pytest

import shvit
from shvit import provenance
from shvit.data.dataset import EMPTY, Dataset
from shvit.errors import Failure, InputError
from shvit.redact import redacted

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a.tar?token=s3cr3t",
        "https://host/a-{0..3}.tar?x=1&X-Amz-Signature=s3cr3t&y=2",
        "https://host/a.tar#access=s3cr3t",
        "https://user:s3cr3t@host/a.tar",
        "https://s3cr3t@host/a.tar",
        "s3://key:s3@cr3t@host/s3cr3t.tar".replace("s3cr3t.tar", "a.tar"),
        "pipe:curl -s -H 'Authorization: Bearer s3cr3t' https://host/a.tar",
        "pipe:curl -u user:s3cr3t https://host/a.tar",
        "pipe:curl --user=user:s3cr3t https://host/a.tar",
        "pipe:AWS_SECRET_ACCESS_KEY=s3cr3t aws s3 cp s3://b/a.tar -",
        "pipe:wget --header 'X-Api-Key: s3cr3t' https://host/a.tar",
        "shvit train --token s3cr3t",
        "hf_s3cr3ts3cr3ts3cr3ts3cr3t",
    ],
)
def test_secrets_are_hidden(text):
    hidden = redacted({"command": [f"shvit eval m {text} --json"], "more": (text,)})
    assert SECRET not in str(hidden)
    assert "s3@cr3t" not in str(hidden)
    assert "***" in str(hidden)
    assert redacted(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "shvit train ../data/images --out runs/x --epochs 3",
        "https://host:8000/a-{000000..000127}.tar",
        "timm/deit_tiny_patch16_224:img_size=32",
        "me@example.org wrote what=so; a ? b : c & d",
        "expected 3 tokens, got 4",
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text


def test_long_texts_take_no_time():
    for text in ("a" * 10**6, "://" + "@" * 10**6, "?a" * 10**5, "token" * 10**5):
        redacted(text)


URL = "https://user:s3cr3t@localhost/data-0.tar?token=s3cr3t"


def test_a_model_file_and_its_command(tiny, tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(sys, "argv", ["shvit", "train", URL])
    about = provenance.facts()
    assert "localhost/data-0.tar" in about["command"]
    assert SECRET not in json.dumps(about)
    shvit.save(replace(tiny, provenance={"command": f"shvit train {URL}", "data": [URL]}), tmp_path / "m.safetensors")
    assert SECRET.encode() not in (tmp_path / "m.safetensors").read_bytes()
    assert SECRET not in str(shvit.load(tmp_path / "m.safetensors").provenance)


def test_errors_and_names_of_data():
    for error in (InputError(f"{URL} cannot be read"), Failure(f"{URL} is gone")):
        assert SECRET not in str(error)
    assert Dataset(URL, ("a",), EMPTY, EMPTY, warnings=(f"{URL} is damaged",)).warnings == (
        redacted(f"{URL} is damaged"),
    )
    assert SECRET not in Dataset(URL, ("a",), EMPTY, EMPTY).name


def test_the_command_line(run):
    code, out, err = run("info", "https://user:s3cr3t@localhost:9/shards.json?token=s3cr3t")
    assert code == 2
    assert SECRET not in out + err
