"""Shards hold the images they were made of, the same bytes whatever happens meanwhile; and what is amiss is said."""

import gc
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import select
import shutil
import signal
import tarfile
import threading
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from conftest import picture, write_pictures
from shvit.data.decode import BadImage, decode
from shvit.data.loader import WINDOW, Loader
from shvit.data.shards import download as remote
from shvit.data.shards import writer as sharding
from shvit.data.shards.writer import ShardReport, write_shards
from shvit.data.sources import open_source
from shvit.data.transforms import EvalReader, Preprocess
from shvit.errors import DataError, Failure, InputError
from shvit.requests.shard import ShardRequest


def shard(data, out, on_update=None, **options) -> ShardReport:
    """Open data as the command does, and write its shards."""
    request = ShardRequest(str(data), out=out, **options)
    return write_shards(open_source(data, request.seed, request.drawn_share), request, on_update)


@pytest.fixture
def jpegs(tmp_path):
    """Two classes, 12 training and 4 validation images each."""
    for split, count in (("train", 12), ("val", 4)):
        for name, shade in (("dark", 60), ("light", 190)):
            folder = tmp_path / "jpegs" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(shade, index + 100 * (split == "val")).save(folder / f"{name}.{index:03}.jpg", quality=90)
    return tmp_path / "jpegs"


@pytest.fixture
def shards(jpegs, tmp_path):
    """Its shards, five images each at most."""
    shard(jpegs, tmp_path / "shards", per_shard=5, workers=0)
    return tmp_path / "shards"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A cache of its own, and no pauses."""
    monkeypatch.setenv("SHVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSES", (0, 0))


@pytest.fixture
def server(tmp_path):
    """Serves `tmp_path`; `.requests` holds the paths asked for, `.failures` how often each is refused at first."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            if self.server.failures[self.path] > 0:
                self.server.failures[self.path] -= 1
                return self.send_error(403)
            return super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    server.requests, server.failures = [], Counter()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def all_bytes(split):
    return [split.source(index) for index in range(len(split))]


def labelled_bytes(source, split):
    split = getattr(source, split)
    rows = zip(map(partial(usable, split), range(len(split))), split.labels, strict=True)
    return Counter((data, source.classes[label]) for data, label in rows if data is not None)


def usable(split, index):
    try:
        data = split.source(index)
    except BadImage:
        return None
    return data if isinstance(data, bytes) else data.read_bytes()


def make_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def jpeg(shade, seed=0):
    buffer = io.BytesIO()
    picture(shade, seed).save(buffer, "JPEG")
    return buffer.getvalue()


def reason(split, index):
    with pytest.raises(BadImage) as caught:
        split.source(index)
    return str(caught.value)


# writing


def test_small_jpegs_are_copied_and_keep_their_labels(jpegs, shards):
    given, packed = open_source(jpegs), open_source(shards)
    packed.check_trainable()
    assert packed.classes == given.classes
    assert (len(packed.train), len(packed.val), packed.drawn, packed.warnings) == (24, 8, False, ())
    for split in ("train", "val"):
        assert labelled_bytes(packed, split) == labelled_bytes(given, split)
    assert [path.name for path in sorted(shards.iterdir())] == [
        "shards.json",
        *(f"train-{number:06}.tar" for number in range(5)),
        *(f"val-{number:06}.tar" for number in range(2)),
    ]


def test_training_images_are_shuffled_once(jpegs, tmp_path):
    splits = []
    for seed in (0, 0, 1):
        shard(jpegs, tmp_path / f"{len(splits)}", workers=0, seed=seed)
        splits.append(open_source(tmp_path / f"{len(splits)}"))
    first, again, other = (list(source.train.names) for source in splits)
    assert first == again != other
    assert list(splits[0].train.labels) != sorted(splits[0].train.labels)
    assert list(splits[0].val.labels) == sorted(splits[0].val.labels)


def test_other_images_are_encoded_upright_and_only_made_smaller(tmp_path):
    folder = tmp_path / "images" / "train" / "a"
    folder.mkdir(parents=True)
    smooth = Image.fromarray(np.add.outer(np.arange(90), np.arange(60)).astype(np.uint8)).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth.save(folder / "0.png")
    smooth.save(folder / "1.jpg", exif=turned, quality=95)
    smooth.convert("CMYK").save(folder / "2.jpg", quality=95)
    smooth.resize((180, 270)).save(folder / "3.jpg", quality=95)
    smooth.convert("L").save(folder / "4.jpg", quality=95)
    smooth.resize((20, 30)).save(folder / "5.png")
    shard(tmp_path / "images", tmp_path / "out", size=50, workers=0)
    packed = open_source(tmp_path / "out").train
    by_name = {
        name[-1]: Image.open(io.BytesIO(data)) for name, data in zip(packed.names, all_bytes(packed), strict=True)
    }
    sizes = {name: image.size for name, image in by_name.items()}
    assert sizes == {"0": (50, 75), "1": (75, 50), "2": (50, 75), "3": (50, 75), "4": (50, 75), "5": (20, 30)}
    assert all(image.format == "JPEG" and image.mode == "RGB" and not image.getexif() for image in by_name.values())
    exact = np.asarray(smooth.resize((50, 75), Image.Resampling.LANCZOS)).astype(int)
    for name in "0234":
        assert np.abs(np.asarray(by_name[name]).astype(int) - exact).max() <= 6, name
    sideways = np.rot90(np.asarray(smooth), 3)
    expected = Image.fromarray(sideways).resize((75, 50), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(by_name["1"]).astype(int) - np.asarray(expected).astype(int)).max() <= 6


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("processes_end")
def test_the_bytes_are_the_same_whatever_the_workers(jpegs, shards, tmp_path, workers):
    seen = []
    shard(jpegs, tmp_path / "other", per_shard=5, workers=workers, on_update=lambda *now: seen.append(now))
    assert contents(tmp_path / "other") == contents(shards)
    assert seen[-1] == (32, 32)


def killed_run(data, out, workers, victim):
    """A run whose main process is killed while a worker (or itself) is in the midst of the third shard or later."""
    encode, done = sharding.as_jpeg, multiprocessing.Value("i", 0)

    def deadly(*arguments):
        with done.get_lock():
            done.value += 1
            number = done.value
        if number == 13:
            os.kill(victim(), signal.SIGKILL)
        time.sleep(0.02)
        return encode(*arguments)

    sharding.as_jpeg = deadly
    shard(data, out, per_shard=5, workers=workers)


@pytest.mark.parametrize(("workers", "victim"), [(0, os.getpid), (2, os.getppid), (2, os.getpid)])
def test_a_run_that_was_killed_goes_on(jpegs, shards, tmp_path, workers, victim):
    out = tmp_path / "killed"
    process = multiprocessing.Process(target=killed_run, args=(jpegs, out, workers, victim))
    ended, held = os.pipe()
    process.start()
    os.close(held)
    process.join(120)
    assert process.exitcode in (1, -signal.SIGKILL)
    assert select.select([ended], [], [], 10)[0], "its processes go on without it"
    os.close(ended)
    assert len(list((out / ".unfinished").glob("*.tar.json"))) < 7
    assert not (out / "shards.json").exists()
    with pytest.raises(DataError, match="unfinished set of shards"):
        open_source(out).check_trainable()
    with pytest.raises(InputError, match="holds shards with quality 95 instead of 80"):
        shard(jpegs, out, per_shard=5, quality=80)
    written = shard(jpegs, out, per_shard=5, workers=0)
    assert written.kept >= 1
    assert written.kept + written.made == 7
    assert written.to_dict()["resumed"]
    assert contents(out) == contents(shards)


def test_a_record_that_was_not_written_whole_costs_its_shard_alone(jpegs, shards, tmp_path):
    out = tmp_path / "torn"
    process = multiprocessing.Process(target=killed_run, args=(jpegs, out, 0, os.getpid))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    [first, *_] = sorted((out / ".unfinished").glob("*.tar.json"))
    first.write_bytes(b"")
    written = shard(jpegs, out, per_shard=5, workers=0)
    assert written.made > 0
    assert contents(out) == contents(shards)


@pytest.mark.usefixtures("processes_end")
def test_a_process_that_dies_is_a_failure(jpegs, tmp_path, monkeypatch):
    parent = os.getpid()
    monkeypatch.setattr(sharding, "as_jpeg", lambda *_: os.getpid() != parent and os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(Failure, match=r"worker process was killed by SIGKILL \(out of memory\?\): try fewer --workers"):
        shard(jpegs, tmp_path / "out", workers=2)


def test_an_error_in_a_process_is_told(jpegs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharding, "as_jpeg", full)
    with pytest.raises(Failure, match="No space left on device"):
        shard(jpegs, tmp_path / "out", workers=2)


@pytest.mark.usefixtures("processes_end")
def test_ctrl_c_ends_the_processes_and_the_run_goes_on(jpegs, shards, tmp_path):
    def stop(done, _):
        if done > 12:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        shard(jpegs, out, per_shard=5, workers=2, on_update=stop)
    shard(jpegs, out, per_shard=5, workers=0)
    assert contents(out) == contents(shards)


def test_a_complete_folder_is_only_checked(jpegs, shards, monkeypatch):
    before, times = contents(shards), {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    again = shard(jpegs, shards, per_shard=5)
    assert (again.made, again.kept) == (0, 7)
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == times
    damaged = bytearray((shards / "train-000002.tar").read_bytes())
    damaged[1000] ^= 1
    (shards / "train-000002.tar").write_bytes(damaged)
    assert shard(jpegs, shards, per_shard=5, workers=0).made == 1
    assert contents(shards) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_shard": 0}, "per_shard must be at least 1, got 0"),
        ({"quality": 101}, "quality must be from 1 to 100, got 101"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"max_bad_share": 2}, "must be from 0 to 1, got 2"),
        ({"val_share": 0}, "between 0 and 1"),
    ],
)
def test_impossible_arguments(jpegs, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        shard(jpegs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_not_ours(jpegs, shards, folder, tmp_path):
    with pytest.raises(InputError, match="lies within the data"):
        shard(jpegs, jpegs / "shards")
    with pytest.raises(InputError, match="is not empty and was not written by shvit shard"):
        shard(jpegs, folder)
    with pytest.raises(InputError, match=r"holds shards with data .* instead of"):
        shard(folder, shards, per_shard=5)
    with pytest.raises(InputError, match="holds shards with per_shard 5 instead of 6"):
        shard(jpegs, shards, per_shard=6)
    with pytest.raises(InputError, match="is a file"):
        shard(jpegs, shards / "shards.json")


def test_bad_images_are_left_out_and_listed(jpegs, tmp_path):
    (jpegs / "train" / "dark" / "dark.000.jpg").write_bytes(b"oops")
    whole = (jpegs / "val" / "light" / "light.001.jpg").read_bytes()
    (jpegs / "val" / "light" / "light.001.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    with pytest.raises(Failure, match=r"2 of 32 images cannot be used.*dark.000.jpg: not an image"):
        shard(jpegs, out, workers=2, max_bad_share=0.05)
    assert not (out / "shards.json").exists()
    written = shard(jpegs, out, workers=2, max_bad_share=0.07)
    assert (written.made, written.bad_images) == (0, 2)
    rows = (out / "bad_images.csv").read_text().splitlines()
    assert rows[0] == "image,reason"
    assert "dark.000.jpg,not an image in a known format" in rows[1]
    assert "light.001.jpg,cannot be decoded" in rows[2]
    packed = open_source(out)
    assert (len(packed.train), len(packed.val)) == (23, 7)
    for split in ("train", "val"):
        assert all(decode(data).size == (36, 40) for data in all_bytes(getattr(packed, split)))


def test_one_pile_is_divided_as_in_training(jpegs, tmp_path):
    shard(jpegs / "train", tmp_path / "out", workers=0, seed=3, val_share=0.25)
    given, packed = open_source(jpegs / "train", 3, 0.25), open_source(tmp_path / "out")
    assert labelled_bytes(given, "val") == labelled_bytes(packed, "val")
    with pytest.raises(InputError, match="val_share"):
        shard(jpegs / "train", tmp_path / "out", workers=0, seed=3, val_share=0.5)


def test_validation_images_alone(jpegs, tmp_path):
    shutil.rmtree(jpegs / "train")
    written = shard(jpegs, tmp_path / "out", workers=0)
    assert written.to_dict()["shards"] == {"train": 0, "val": 1}
    source = open_source(tmp_path / "out")
    assert (len(source.train), len(source.whole())) == (0, 8)
    with pytest.raises(DataError, match="no training images"):
        source.check_trainable()


def test_shards_of_shards_hold_the_same(shards, jpegs, tmp_path):
    shard(shards, tmp_path / "again", per_shard=3, workers=2)
    assert labelled_bytes(open_source(tmp_path / "again"), "train") == labelled_bytes(open_source(jpegs), "train")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_them(jpegs, shards):
    webdataset = pytest.importorskip("webdataset")
    given = open_source(jpegs)
    for split in ("train", "val"):
        paths = [str(path) for path in sorted(shards.glob(f"{split}-*.tar"))]
        samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8"))
        assert len({sample["__key__"] for sample in samples}) == len(samples)
        expected = Counter(
            (np.asarray(decode(path)).tobytes(), label)
            for path, label in zip(getattr(given, split).images, getattr(given, split).labels, strict=True)
        )
        assert Counter((sample["jpg"].tobytes(), sample["cls"]) for sample in samples) == expected
    gc.collect()  # it leaves files open


# reading


def test_the_index_may_be_named(shards):
    by_folder, by_index = open_source(shards), open_source(shards / "shards.json")
    assert all_bytes(by_folder.train) == all_bytes(by_index.train)
    shutil.copytree(shards, shards.with_name("moved"))
    assert open_source(shards.with_name("moved")).fingerprint == by_folder.fingerprint


def test_the_fingerprint_tells_shards_apart(jpegs, shards, tmp_path):
    picture(60, 999).save(jpegs / "val" / "dark" / "dark.000.jpg", quality=50)
    shard(jpegs, tmp_path / "other", per_shard=5, workers=0)
    assert open_source(tmp_path / "other").fingerprint != open_source(shards).fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-20], "cannot be used"),
        (lambda text: "{}", "it is not an index"),
        (lambda text: text.replace('"version":1', '"version":2'), "its version is 2, but this program reads 1"),
        (lambda text: text.replace('"classes":["dark"', '"classes":["bright"'), "its fingerprint does not match"),
        (lambda text: text.replace("train-000000.tar", "pipe:touch x.tar"), "'pipe:touch x.tar' of .* is not a shard"),
        (lambda text: text.replace("train-000000.tar", "../train-000000.tar"), "'../train-000000.tar' of"),
        (lambda text: re.sub('"bytes":[0-9]+', '"bytes":null', text), "of None bytes is not a shard"),
        (lambda text: re.sub('"sha256":"[0-9a-f]+"', '"sha256":7', text), "is not a shard beside the index"),
        (lambda text: re.sub(r'"labels":\[\d', '"labels":[2', text), "labels that are not class numbers"),
        (lambda text: re.sub(r'"lengths":\[\d+', f'"lengths":[{10**30}', text), "images that lie outside it"),
        (lambda text: re.sub(r'"offsets":\[\d+', '"offsets":[-512', text), "images that lie outside it"),
    ],
)
def test_an_index_that_cannot_be_used(shards, change, words):
    path = shards / "shards.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=words):
        open_source(shards)


def test_no_index(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / "shards.json")


def test_parts_are_lazy_too_and_travel(shards):
    source = open_source(shards)
    part = source.train.subset([5, 3, 20])
    both = part.joined(source.val)
    assert not isinstance(both.images, list)
    assert list(both.names) == [source.train.names[i] for i in (5, 3, 20)] + list(source.val.names)
    assert list(both.labels) == [*source.train.labels[[5, 3, 20]], *source.val.labels]
    assert set(both.shards[:3]).isdisjoint(both.shards[3:])
    assert all_bytes(pickle.loads(pickle.dumps(both))) == all_bytes(both)
    assert both.images[-1] == both.images[len(both) - 1]
    assert list(both.names[2:5]) == list(both.names)[2:5]
    with pytest.raises(IndexError):
        both.images[len(both)]


def test_files_are_closed_when_there_are_many(shards, monkeypatch):
    monkeypatch.setattr("shvit.data.shards.tar.OPEN_FILES", 2)
    opened = []
    true_open, true_close = os.open, os.close
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(true_open(*a, **k)) or opened[-1])
    monkeypatch.setattr(os, "close", lambda number: (number in opened and opened.remove(number), true_close(number)))
    split = open_source(shards).train
    assert len(set(split.shards)) == 5
    all_bytes(split)
    assert len(opened) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_image_once(jpegs, shards, workers):
    split = open_source(shards).train
    read = EvalReader(Preprocess(32))
    batches = list(Loader(split, read, 6, workers, shuffle=True, seed=1).epoch(2))
    alone = list(Loader(split, read, 6, 0, shuffle=True, seed=1).epoch(2))
    assert sorted(index for batch in batches for index in batch.indices) == list(range(24))
    for one, other in zip(batches, alone, strict=True):
        assert one.indices == other.indices
        assert one.images.equal(other.images)
        assert one.targets.tolist() == [split.labels[index] for index in one.indices]


def test_an_epoch_goes_through_few_shards_at_once(jpegs, tmp_path):
    write_pictures(jpegs / "train" / "dark", 60, 40)
    shard(jpegs, tmp_path / "out", per_shard=2, workers=0)
    split = open_source(tmp_path / "out").train
    assert len(set(split.shards)) == 32
    order = [key[1] for keys in Loader(split, lambda _: None, 2, shuffle=True).sampler for key in keys]
    window = order[: 2 * WINDOW]
    assert len(set(split.shards[window])) == WINDOW
    assert sorted(order) == list(range(64))


# shards that are missing or damaged


def test_a_missing_shard_is_named_once(jpegs, shards):
    before = open_source(shards)
    (shards / "train-000003.tar").unlink()
    source = open_source(shards)
    lost = [i for i in range(24) if before.train.shards[i] == 3]
    assert source.warnings == (f"train-000003.tar is missing: {len(lost)} images left out",)
    assert list(source.train.bad) == lost
    assert "train-000003.tar is missing" in reason(source.train, lost[0])
    assert source.fingerprint == before.fingerprint
    kept = [i for i in range(24) if i not in lost]
    assert all(source.train.source(i) == before.train.source(i) for i in kept)
    assert list(source.train.subset([lost[0], kept[0], lost[1]]).bad) == [0, 2]
    assert list(source.val.joined(source.train).bad) == [8 + i for i in lost]
    assert source.train.usable_labels() == {0, 1}


def test_a_truncated_shard_keeps_what_is_whole(shards):
    before = open_source(shards).train
    path = shards / "train-000001.tar"
    inside = [i for i in range(24) if before.shards[i] == 1]
    cut = before.images[inside[2]].offset + 10
    whole = path.stat().st_size
    os.truncate(path, cut)
    source = open_source(shards)
    assert source.warnings == (
        f"train-000001.tar has {cut:,} bytes instead of {whole:,}: {len(inside) - 2} images left out",
    )
    assert list(source.train.bad) == inside[2:]
    assert source.train.source(inside[1])


def test_a_shard_that_was_changed_is_noticed(shards):
    source = open_source(shards)
    one, other = sorted(shards.glob("train-*.tar"))[:2]
    one.write_bytes(other.read_bytes())
    assert "is damaged or has changed since it was indexed" in reason(source.train, 0)


def test_damage_within_is_found_when_it_is_read(shards):
    source = open_source(shards)
    image = source.train.images[0]
    path = shards / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[image.offset - 400] ^= 1
    path.write_bytes(data)
    assert "damaged" in reason(source.train, 0)
    os.truncate(path, image.offset + 5)
    assert "ends before the end of the image" in reason(source.train, 0)


# shards without an index


@pytest.fixture
def bare(shards):
    (shards / "shards.json").unlink()
    return shards


def test_shards_without_an_index(jpegs, bare):
    given, source = open_source(jpegs), open_source(bare)
    source.check_trainable()
    assert source.classes == ("0", "1")
    assert not source.drawn
    for split in ("train", "val"):
        assert Counter(all_bytes(getattr(source, split))) == Counter(
            path.read_bytes() for path in getattr(given, split).images
        )
        assert sorted(getattr(source, split).labels) == sorted(getattr(given, split).labels)
    assert source.train.names[0].startswith("train-000000.tar/train-0")
    assert set(source.train.shards) == {0, 1, 2, 3, 4}


def test_classes_by_name_beside_the_shards(jpegs, bare):
    (bare / "classes.txt").write_text("dark\nlight\n")
    source = open_source(bare)
    assert source.classes == ("dark", "light")
    assert labelled_bytes(source, "train") == labelled_bytes(open_source(jpegs), "train")
    (bare / "classes.txt").write_text("dark\n")
    with pytest.raises(DataError, match=r"has the label 1, but its classes.txt names 1 class"):
        open_source(bare)


def test_braces_and_single_files(bare):
    everything = open_source(bare)
    pattern = open_source(f"{bare}/{{train-{{000000..000004}},val-00000{{0,1}}}}.tar")
    assert Counter(all_bytes(pattern.train)) == Counter(all_bytes(everything.train))
    assert Counter(all_bytes(pattern.val)) == Counter(all_bytes(everything.val))
    pile = open_source(f"{bare}/train-{{000000..000004}}.tar", val_share=0.5)
    assert pile.drawn
    assert (len(pile.train) + len(pile.val), min(len(pile.train), len(pile.val)) > 4) == (24, True)
    assert set(all_bytes(pile.train)).isdisjoint(all_bytes(pile.val))
    alone = open_source(bare / "val-000000.tar")
    assert (len(alone.train), len(alone.val)) == (0, 4)


def test_a_pipe(bare):
    assert len(open_source(f"pipe:cat {bare}/train-{{000000..000001}}.tar", val_share=0.2).train) > 0


def test_labels_in_json_names_and_what_has_none(tmp_path):
    make_tar(
        tmp_path / "x.tar",
        [
            ("./a/1.jpg", jpeg(1)),
            ("./a/1.json", b'{"label": "cat"}'),
            ("./b/1.png", jpeg(2)),
            ("./b/1.cls", b"dog\n"),
            ("2.jpeg", jpeg(3)),
            ("2.json", b'{"cls": "dog", "width": 3}'),
            ("3.txt", b"no image"),
            ("4.jpg", jpeg(5)),
            ("5.seg.png", b"no image either"),
            ("6.jpg", jpeg(7)),
            ("6.json", b'{"label": [1]}'),
            ("7.jpg", jpeg(8)),
            ("7.json", b"{"),
            (f"{'long' * 40}/ä.jpg", jpeg(9)),
            (f"{'long' * 40}/ä.cls", b"cat"),
        ],
    )
    source = open_source(tmp_path / "x.tar", val_share=0.5)
    pile = source.whole()
    assert source.classes == ("cat", "dog")
    names = {name.removeprefix("x.tar/"): i for i, name in enumerate(pile.names)}
    labels = {name: int(pile.labels[i]) for name, i in names.items()}
    long = f"{'long' * 40}/ä"
    assert labels == {"./a/1": 0, "./b/1": 1, "2": 1, "3": -1, "4": -1, "5": -1, "6": -1, "7": -1, long: 0}
    assert {name: pile.source(i) for name, i in names.items() if labels[name] >= 0} == {
        "./a/1": jpeg(1), "./b/1": jpeg(2), "2": jpeg(3), long: jpeg(9)
    }  # fmt: skip
    reasons = {name: pile.bad[i].partition(":")[0] for name, i in names.items() if i in pile.bad}
    assert reasons == {
        "3": "it has no image", "5": "it has no image", "4": "it has no label",
        "6": "its label cannot be read", "7": "its label cannot be read",
    }  # fmt: skip
    assert source.warnings == ("5 samples cannot be used, the first because it has no image",)
    assert source.whole().usable_labels() == {0, 1}


def unusable(path):
    """The images of a shard by name, with their labels; and why the others cannot be used."""
    source = open_source(path, val_share=0.5)
    pile = source.whole()
    good = sorted((pile.names[i], source.classes[pile.labels[i]]) for i in range(len(pile)) if i not in pile.bad)
    return source, good, sorted((pile.names[i], reason) for i, reason in pile.bad.items())


def test_members_of_one_name_in_a_shard_are_said(tmp_path, run):
    rows = [(f"{i % 5}.{ending}", data) for i in range(10) for ending, data in (("jpg", jpeg(i)), ("cls", b"cat"))]
    make_tar(tmp_path / "x.tar", rows)
    source, good, bad = unusable(tmp_path / "x.tar")
    assert good == [(f"x.tar/{i}", "cat") for i in range(5)]
    assert bad == [(f"x.tar/{i}", "another member has the same name") for i in range(5)]
    assert source.warnings == ("5 samples cannot be used, the first because another member has the same name",)
    assert "5 samples cannot be used" in run("info", tmp_path / "x.tar")[1]


def test_an_image_with_several_labels_of_one_name_has_none(tmp_path):
    make_tar(tmp_path / "x.tar", [*pair("1", 1), ("1.cls", b"dog"), *pair("2", 2), *pair("3", 3)])
    _, good, bad = unusable(tmp_path / "x.tar")
    assert good == [("x.tar/2", "cat"), ("x.tar/3", "cat")]
    assert bad == [("x.tar/1", "it has several labels with the same name")]


def pair(key, shade):
    return [(f"{key}.jpg", jpeg(shade)), (f"{key}.cls", b"cat")]


def test_names_with_dots_in_a_shard_are_said(tmp_path, run):
    dotted = [member for i in range(3) for member in pair(f"img.00{i}", i)]
    make_tar(tmp_path / "x.tar", [*pair("a", 7), *pair("b", 8), *dotted, *pair("a.v2", 9), ("b.seg.png", b"a mask")])
    source, good, bad = unusable(tmp_path / "x.tar")
    assert good == [("x.tar/a", "cat"), ("x.tar/b", "cat")]
    reason = "keys end at the first dot of a name, so its key is"
    lost = [("x.tar/a", f"{reason} a"), *[("x.tar/img", f"{reason} img")] * 3]
    assert [row for row in bad if row[1] != "it has no image"] == lost
    assert "5 samples cannot be used" in source.warnings[0]
    assert "samples cannot be used" in run("info", tmp_path / "x.tar")[1]


def test_a_shard_with_braces_in_its_name(tmp_path):
    make_tar(tmp_path / "x{1,2}.tar", [member for i in range(4) for member in pair(i, i)])
    assert len(open_source(tmp_path / "x{1,2}.tar", val_share=0.5).whole()) == 4


def test_unindexed_shards_that_are_damaged(jpegs, bare):
    whole = open_source(bare)
    (bare / "train-000000.tar").write_bytes(b"x" * 2000)
    path = bare / "train-000001.tar"
    inside = [i for i in range(24) if whole.train.shards[i] == 1]
    os.truncate(path, whole.train.images[inside[2]].offset + 10)
    broken = bytearray((bare / "train-000002.tar").read_bytes())
    at = [whole.train.images[i].offset for i in range(24) if whole.train.shards[i] == 2][1] - 512
    broken[at : at + 300] = bytes(range(100)) * 3
    (bare / "train-000002.tar").write_bytes(broken)
    source = open_source(bare)
    assert [text.partition(":")[0] for text in source.warnings] == [
        "train-000000.tar is damaged (invalid header)",
        "train-000001.tar is damaged (unexpected end of data)",
        f"train-000002.tar is damaged (no header at byte {at})",
        "1 sample cannot be used, the first because the shard ends before the end of the image",
    ]
    assert len(source.train) == 24 - 5 - 2 - 4
    assert len(source.train.bad) == 1
    missing = open_source(f"{bare}/train-{{000003..000006}}.tar")
    assert [text.partition(":")[0] for text in missing.warnings] == [
        "train-000005.tar is missing",
        "train-000006.tar is missing",
    ]


def sized(name, size, kind=tarfile.REGTYPE):
    """The header of a member that says it is of this size."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def test_members_that_claim_to_be_huge_are_not_read(tmp_path):
    """Neither of a tar that is as large, but full of nothing, nor of one that is not."""
    begin = sized("0.jpg", 512) + bytes(512) + sized("0.cls", 1) + b"1".ljust(512, b"\0")
    for name, header, words in (
        ("a", sized("1.jpg", 30 * 10**9), "the first because its 30,000,000,000 bytes"),
        ("b", sized("1.cls", 30 * 10**9), "it has no image"),
        ("c", sized("x", 30 * 10**9, tarfile.GNUTYPE_LONGNAME), "a header of 30,000,000,000 bytes"),
        ("d", sized("x", 30 * 10**9, tarfile.XHDTYPE), "a header of 30,000,000,000 bytes"),
    ):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(begin + header)
        os.truncate(path, 31 * 10**9)
        source = open_source(path)
        assert re.search(words, " ".join(source.warnings)), source.warnings
        os.truncate(path, len(begin + header))
        assert len(open_source(path).whole().usable_labels()) == 1


@pytest.mark.usefixtures("at_most_ten_seconds")
def test_pipes_and_devices_are_no_shards(tmp_path, shards):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match="not a regular file"):
        open_source(tmp_path / "pipe.tar")
    (shards / "shards.json").unlink()
    os.mkfifo(shards / "shards.json")
    with pytest.raises(DataError, match="not a regular file"):
        open_source(shards / "shards.json")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("1.jpg", b"x"), ("1.cls", b"9" * 30)], "the limit is 1,000,000 classes"),
        ([], "no samples in 1 shard"),
        ([("1.jpg", b"x"), ("1.cls", b"-1")], "has the label -1: classes are counted from 0"),
    ],
)
def test_unindexed_shards_that_cannot_be_used(tmp_path, members, words):
    make_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=words):
        open_source(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("label", "words"),
    [(("1.json", b"[" * 100_000), "nested too deeply"), (("1.cls", b"1" * (2 << 20)), "2,097,152 bytes are more than")],
    ids=["deep", "long"],
)
def test_labels_that_cannot_be_read_are_told(tmp_path, label, words):
    make_tar(tmp_path / "x.tar", [("0.jpg", b"x"), ("0.cls", b"0"), ("1.jpg", b"x"), label])
    [warning] = open_source(tmp_path / "x.tar").warnings
    assert words in warning


def test_a_word_for_test_in_the_names_of_other_shards(bare):
    before = open_source(bare)
    for path in list(bare.glob("*.tar")):
        path.rename(bare / f"my-test-{path.name}")
    source = open_source(bare)
    assert (len(source.train), len(source.val), source.test) == (len(before.train), len(before.val), None)


def test_names_of_shards_that_do_not_go_together(bare):
    (bare / "train-000000.tar").rename(bare / "more-000000.tar")
    with pytest.raises(DataError, match=r"more-000000.tar has neither train nor val"):
        open_source(bare)
    (bare / "more-000000.tar").rename(bare / "train-val-000000.tar")
    with pytest.raises(DataError, match=r"train-val-000000.tar has both"):
        open_source(bare)


def test_compressed_and_absent_shards(tmp_path):
    with pytest.raises(DataError, match="is compressed"):
        open_source(tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match=r"no samples in 2 shards; x-0.tar is missing"):
        open_source(f"{tmp_path}/x-{{0..1}}.tar")


def test_names_are_numbered_by_classes_txt_and_must_be_in_it(tmp_path):
    make_tar(tmp_path / "x.tar", [("1.jpg", jpeg(1)), ("1.cls", b"cat"), ("2.jpg", jpeg(2)), ("2.cls", b"dog")])
    (tmp_path / "classes.txt").write_text("dog\nbird\ncat\n")
    source = open_source(tmp_path)
    pile = source.whole()
    assert source.classes == ("dog", "bird", "cat")
    assert sorted((pile.source(i), pile.labels[i]) for i in range(2)) == sorted([(jpeg(1), 2), (jpeg(2), 0)])
    (tmp_path / "classes.txt").write_text("dog\ncat\nbird\ncat\n")
    with pytest.raises(DataError, match=r"its classes.txt has 'cat' twice"):
        open_source(tmp_path)
    (tmp_path / "classes.txt").write_text("dog\nbird\n")
    with pytest.raises(DataError, match=r"has the label 'cat', which is not in its classes.txt"):
        open_source(tmp_path)


def test_braces_that_are_not_closed(tmp_path):
    with pytest.raises(InputError, match="cannot be expanded"):
        open_source(f"{tmp_path}/x-{{0..1.tar")


def test_archives_beside_folders_of_images_are_not_the_data(jpegs):
    make_tar(jpegs / "original.tar", [("1.jpg", b"x")])
    assert len(open_source(jpegs).train) == 24


# shards elsewhere


def test_shards_by_url_are_fetched_when_needed_and_once(server, shards):
    url = f"{server.url}/shards/shards.json"
    local, source = open_source(shards), open_source(url)
    assert server.requests == ["/shards/shards.json"]
    assert source.fingerprint == local.fingerprint
    assert source.train.source(0) == local.train.source(0)
    assert server.requests[1:] == ["/shards/train-000000.tar"]
    assert all_bytes(open_source(url).train) == all_bytes(local.train)
    tars = [path for path in server.requests if path.endswith(".tar")]
    assert sorted(tars) == [f"/shards/train-{number:06}.tar" for number in range(5)]


def test_an_index_behind_a_token(server, shards):
    source = open_source(f"{server.url}/shards/shards.json?token=1")
    assert source.train.source(0) == open_source(shards).train.source(0)
    assert server.requests == ["/shards/shards.json?token=1", "/shards/train-000000.tar?token=1"]
    open_source(f"{server.url}/shards/shards.json?token=2").train.source(0)
    assert server.requests[2:] == ["/shards/shards.json?token=2"]


def test_a_fetch_is_tried_three_times(server, shards):
    source = open_source(f"{server.url}/shards/shards.json")
    image = source.train.images[0]
    copied = (shards / "train-000000.tar").read_bytes()
    (shards / "train-000000.tar").write_bytes(copied[:-512])
    assert "its checksum is" in reason(source.train, 0)
    assert server.requests.count("/shards/train-000000.tar") == 3
    assert "its checksum is" in reason(source.train, 1)
    assert server.requests.count("/shards/train-000000.tar") == 3
    (shards / "train-000000.tar").write_bytes(copied)
    again = open_source(f"{server.url}/shards/shards.json")
    assert again.train.source(0) == copied[image.offset : image.offset + image.length]


def test_a_connection_that_is_lost_is_taken_up_again(server, shards, monkeypatch, tmp_path):
    calls = tmp_path / "calls"
    source = f"pipe:echo >> {calls}; test $(wc -l < {calls}) -ge 3 && cat {shards}/train-000000.tar"
    assert len(open_source(source, val_share=0.4).train) == 3
    assert len(calls.read_text()) == 3


def test_a_shard_that_is_not_there(server, shards):
    source = open_source(f"{server.url}/shards/shards.json")
    (shards / "train-000002.tar").unlink()
    lost = int(np.flatnonzero(source.train.shards == 2)[0])
    assert reason(source.train, lost) == "train-000002.tar cannot be fetched: not found"
    assert source.train.source(0)


def test_a_url_that_gives_nothing(server, tmp_path):
    with pytest.raises(DataError, match=r"shards.json cannot be read: not found"):
        open_source(f"{server.url}/nowhere/shards.json")
    with pytest.raises(DataError, match=r"x.tar cannot be fetched \(not found\)"):
        open_source(f"{server.url}/nowhere/x.tar")
    with pytest.raises(DataError, match="connection failed"):
        open_source("http://127.0.0.1:9/shards.json")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".tar"]


def test_a_pattern_by_url_is_fetched_whole(server, bare):
    (bare / "classes.txt").write_text("dark\nlight\n")
    pattern = f"{server.url}/shards/{{train-{{000000..000004}},val-{{000000..000001}}}}.tar"
    source, local = open_source(pattern), open_source(bare)
    assert source.classes == ("dark", "light")
    assert all_bytes(source.train) == all_bytes(local.train)
    assert source.fingerprint == local.fingerprint
    assert Counter(server.requests).most_common(1)[0][1] == 1
    open_source(pattern)
    assert Counter(server.requests)["/shards/train-000000.tar"] == 1
    with_query = open_source(f"{server.url}/shards/val-000000.tar?token=1")
    assert with_query.val.names[0].startswith("val-000000.tar/")


def test_a_cache_without_room_is_told_once(server, shards, monkeypatch):
    split = open_source(f"{server.url}/shards/shards.json").train
    asked = []

    def full(*_):
        asked.append(None)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "_fetch", full)
    for index in range(2):
        assert reason(split, index) == "train-000000.tar cannot be read: No space left on device"
    assert len(asked) == 1


def test_one_process_fetches_and_the_others_wait(server, shards):
    source = open_source(f"{server.url}/shards/shards.json")
    first = [int(np.flatnonzero(source.train.shards == 0)[0])] * 4
    with multiprocessing.Pool(4) as pool:
        datas = pool.map(source.train.source, first, chunksize=1)
    assert set(datas) == {open_source(shards).train.source(0)}
    assert server.requests.count("/shards/train-000000.tar") == 1


@pytest.mark.parametrize("place", ["http://host/a.tar", "a-{0..1}.tar", "pipe:cat a.tar"])
def test_webdataset_is_named_where_it_is_missing(monkeypatch, place):
    for name in ("webdataset", "webdataset.gopen", "braceexpand"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'shvit\[webdataset\]'"):
        open_source(place)


def test_the_index_is_what_its_documentation_says(shards):
    document = json.loads((shards / "shards.json").read_text())
    record = document["splits"]["train"][0]
    data = (shards / record["name"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == record["sha256"]
    assert len(data) == record["bytes"]
    with tarfile.open(shards / record["name"]) as tar:
        for key, label, offset, length in zip(
            record["keys"], record["labels"], record["offsets"], record["lengths"], strict=True
        ):
            assert tar.extractfile(f"{key}.jpg").read() == data[offset : offset + length]
            assert tar.extractfile(f"{key}.cls").read() == str(label).encode()
            assert "." not in key
