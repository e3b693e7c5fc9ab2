"""Data sets as the Hugging Face hub keeps them: from a folder, and from a small server on localhost that is the hub."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import picture
from shvit.data.decode import BadImage
from shvit.data.loader import Loader
from shvit.data.sources import open_source
from shvit.data.transforms import EvalReader, Preprocess
from shvit.errors import DataError, InputError

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
IMAGE, LABEL = datasets.Image(), datasets.ClassLabel(names=["dark", "light"])


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def png(index):
    buffer = io.BytesIO()
    picture((60, 190)[index % 2], index).save(buffer, "PNG")
    return buffer.getvalue()


def save(folder, split, rows, **features):
    """A parquet file as the hub has them."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    datasets.enable_progress_bars()


def save_pictures(folder, split, indices):
    rows = [{"picture": {"bytes": png(i), "path": None}, "kind": i % 2, "note": f"{i}"} for i in indices]
    save(folder, split, rows, picture=IMAGE, kind=LABEL, note=datasets.Value("string"))


@pytest.fixture
def saved(tmp_path):
    save_pictures(tmp_path / "saved", "train", range(20))
    save_pictures(tmp_path / "saved", "validation", range(20, 26))
    return tmp_path / "saved"


def test_a_folder_of_parquet_files(saved, capfd, monkeypatch):
    save_pictures(saved, "test", range(30, 33))
    monkeypatch.chdir(saved.parent)
    source = open_source("hf://./saved")
    source.check_trainable()
    assert capfd.readouterr() == ("", "")
    assert source.classes == ("dark", "light")
    assert (len(source.train), len(source.val), source.drawn) == (20, 6, False)
    assert [source.train.source(i) for i in range(20)] == [png(i) for i in range(20)]
    assert [source.val.source(i) for i in range(6)] == [png(i) for i in range(20, 26)]
    assert list(source.val.labels) == [0, 1] * 3
    assert [source.test.source(i) for i in range(3)] == [png(i) for i in range(30, 33)]
    assert source.val.names[2] == "validation/2"
    assert open_source(f"hf://{saved}").fingerprint == source.fingerprint


def test_what_came_before_stays_as_it_was(saved):
    before = datasets.utils.are_progress_bars_disabled(), datasets.utils.logging.get_verbosity()
    open_source(f"hf://{saved}")
    assert (datasets.utils.are_progress_bars_disabled(), datasets.utils.logging.get_verbosity()) == before


def test_one_pile_is_divided(saved):
    (saved / "data" / "validation-00000-of-00001.parquet").unlink()
    source = open_source(f"hf://{saved}", val_share=0.3)
    assert source.drawn
    assert len(source.train) > len(source.val) >= 2
    both = source.whole()
    assert {both.source(i) for i in range(20)} == {png(i) for i in range(20)}
    assert open_source(f"hf://{saved}", val_share=0.5).fingerprint == source.fingerprint


def test_validation_alone(tmp_path):
    save_pictures(tmp_path, "test", range(4))
    source = open_source(f"hf://{tmp_path}", drawn_by="content")
    assert (len(source.train), len(source.val), source.test) == (0, 4, None)
    source = open_source(f"hf://{tmp_path}")
    assert (len(source.train), len(source.val), len(source.test)) == (0, 0, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_it_too(saved, workers):
    split = open_source(f"hf://{saved}").train
    loader = Loader(split, EvalReader(Preprocess(32)), 6, workers)
    batches = list(loader.epoch(0))
    assert [index for batch in batches for index in batch.indices] == list(range(20))
    assert [label for batch in batches for label in batch.targets.tolist()] == [0, 1] * 10
    assert pickle.loads(pickle.dumps(split)).source(3) == png(3)


def test_the_fingerprint_tells_data_apart(saved, tmp_path):
    save_pictures(tmp_path / "other", "train", range(20))
    save_pictures(tmp_path / "other", "validation", range(40, 46))
    assert open_source(f"hf://{saved}").fingerprint != open_source(f"hf://{tmp_path / 'other'}").fingerprint


def test_rows_without_label_or_image(tmp_path):
    rows = [
        {"image": {"bytes": png(0), "path": None}, "label": None},
        {"image": None, "label": 1},
        {"image": {"bytes": None, "path": str(tmp_path / "gone.png")}, "label": 1},
        {"image": {"bytes": png(3), "path": None}, "label": 0},
    ]
    (tmp_path / "gone.png").write_bytes(b"")
    save(tmp_path / "saved", "validation", rows, image=datasets.Image(decode=False), label=LABEL)
    (tmp_path / "gone.png").unlink()
    split = open_source(f"hf://{tmp_path / 'saved'}").val
    assert split.bad == {0: "the row has no label"}
    for index, reason in enumerate(["has no label", "has no image", "not a file of the dataset"]):
        with pytest.raises(BadImage, match=reason):
            split.source(index)
    assert split.source(3) == png(3)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (
            {"a": IMAGE, "b": IMAGE, "label": LABEL},
            r"exactly one column of type Image, but has 2\. Columns: a \(Image\), b \(Image\), lab",
        ),
        (
            {"image": IMAGE, "label": datasets.Value("int64")},
            r"type ClassLabel, but has 0\. Columns: image \(Image\), label \(Val",
        ),
    ],
)
def test_columns_that_leave_open_what_is_meant(tmp_path, features, words):
    row = {name: {"bytes": png(0), "path": None} if feature == IMAGE else 0 for name, feature in features.items()}
    save(tmp_path, "train", [row], **features)
    with pytest.raises(DataError, match=words):
        open_source(f"hf://{tmp_path}")


@pytest.mark.parametrize("name", ["hf://", "hf://a//b", "hf://a/b/c/d"])
def test_impossible_names(name):
    with pytest.raises(DataError, match="expected hf://name"):
        open_source(name)


def test_no_such_folder_and_nothing_in_it(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        open_source("hf://./nowhere")
    with pytest.raises(DataError, match="cannot be opened") as caught:
        open_source(f"hf://{tmp_path}")
    assert "\n" not in str(caught.value)


def test_other_splits(tmp_path):
    save_pictures(tmp_path, "extra", range(4))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: extra\n    path: data/extra*\n---\n"
    )
    with pytest.raises(DataError, match="has the splits extra: expected train, validation or test"):
        open_source(f"hf://{tmp_path}")


def test_datasets_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'shvit\[hf\]'"):
        open_source("hf://mnist")


COMMIT = "1" * 40


@pytest.fixture
def hub(saved):
    """As much of the hub as it takes to fetch `me/pictures`; `me/secret` needs a login; there is nothing else."""
    files = {str(path.relative_to(saved)): path.read_bytes() for path in saved.rglob("*.parquet")}
    home = "/datasets/me/pictures/resolve/"
    about = "/api/datasets/me/pictures"

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body):
            path = self.path.partition("?")[0]
            code, content, headers = 404, b"", {"X-Error-Code": "RepoNotFound"}
            if path.startswith("/datasets/me/secret/"):
                code, headers = 403, {"X-Error-Code": "GatedRepo"}
            elif path.startswith(home):
                content = files.get(path.removeprefix(home).partition("/")[2], b"")
                code, headers = (200, {}) if content else (404, {"X-Error-Code": "EntryNotFound"})
            elif path.startswith(f"{about}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{about}/tree/{COMMIT}").strip("/")
                listed = files if folder else ["data"]
                rows = [{"type": "file" if folder else "directory", "path": p, "oid": "0", "size": 1} for p in listed]
                code, content = 200, json.dumps(rows).encode()
            elif path.startswith(about):
                facts = {"id": "me/pictures", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                code, content = 200, json.dumps(facts).encode()
            self.send_response(code)
            etag = hashlib.sha256(content).hexdigest()
            length = str(len(content))
            fixed = {"Content-Length": length, "X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
            for name, value in {**fixed, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


READ = """
import sys
from shvit.data.sources import open_source
from shvit.errors import DataError
for name in sys.argv[1:]:
    try:
        source = open_source(name)
        print(name, len(source.train), len(source.val), source.fingerprint, len(source.train.source(0)))
    except DataError as error:
        print(error)
"""


def test_a_data_set_by_name(hub, saved, tmp_path):
    """In a process of its own, since the hub's client reads its settings when it is imported."""
    names = ["pictures", "me/pictures", "me/pictures/other", "me/secret"]
    hidden = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment = {**hidden, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "error", "-c", READ, *(f"hf://{name}" for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    local = open_source(f"hf://{saved}")
    unknown, read, config, secret = done.stdout.splitlines()
    assert done.stderr == ""
    assert unknown.startswith("hf://pictures cannot be opened: Dataset 'pictures' doesn't exist on the Hub")
    assert read == f"hf://me/pictures 20 6 {local.fingerprint} {len(png(0))}"
    assert config == "hf://me/pictures/other cannot be opened: BuilderConfig 'other' not found. Available: ['default']"
    assert secret.startswith("hf://me/secret cannot be opened: Dataset 'me/secret' is a gated dataset")


def test_rows_never_name_other_files(tmp_path):
    """A row read from elsewhere may name any file of this computer, or a device."""
    (tmp_path / "private.png").write_bytes(png(0))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "own.png").write_bytes(png(1))
    names = [
        tmp_path / "private.png",
        tmp_path / "saved" / ".." / "private.png",
        "/dev/zero",
        tmp_path / "saved" / "own.png",
    ]
    rows = [{"image": {"bytes": None, "path": str(name)}, "label": 1} for name in names]
    features = datasets.Features({"image": IMAGE, "label": LABEL})
    (tmp_path / "saved" / "data").mkdir()
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    parquet.write_table(table, tmp_path / "saved" / "data" / "validation-00000-of-00001.parquet")
    split = open_source(f"hf://{tmp_path / 'saved'}").val
    for index in range(3):
        with pytest.raises(BadImage, match="which is not a file of the dataset"):
            split.source(index)
    assert split.source(3) == png(1)
    assert len({image.identity() for image in split.images}) == 2
