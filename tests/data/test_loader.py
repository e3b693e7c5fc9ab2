"""The loader's choices follow from seed, epoch and image alone; the evaluation transform is timm's."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from conftest import picture
from shvit.data.augmentation import TrainReader
from shvit.data.loader import WINDOW, Loader, draw_some, probe, seeded, worker_death_as_failure
from shvit.data.sources import open_source
from shvit.data.transforms import EvalReader, Preprocess
from shvit.errors import Failure, InputError

TRANSFORM = TrainReader(32, color_jitter=0.4)
STRONG = TrainReader(32, rand_augment="rand-m9-mstd0.5-inc1")


def by_index(loader, epoch=0):
    return {
        index: image for batch in loader.epoch(epoch) for index, image in zip(batch.indices, batch.images, strict=True)
    }


@pytest.mark.parametrize("transform", [TRANSFORM, STRONG], ids=["jitter", "randaugment"])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder, workers, transform):
    split = open_source(folder).train
    reference = [(b.indices, b.images) for b in Loader(split, transform, 7, 0, shuffle=True, seed=3).epoch(2)]
    loader = Loader(split, transform, 7, workers, shuffle=True, seed=3)
    list(loader.epoch(0))
    for (indices, images), batch in zip(reference, loader.epoch(2), strict=True):
        assert batch.indices == indices
        assert torch.equal(batch.images, images)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_in_channels_last(folder, workers):
    [batch] = Loader(open_source(folder).train, TRANSFORM, 40, workers)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for index, image in zip(batch.indices[:3], batch.images, strict=False):
        with seeded(0, 0, index, 0):
            assert torch.equal(TRANSFORM(open_source(folder).train.source(index)), image)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_main_process_keeps_its_generators(folder, workers):
    loader = Loader(open_source(folder).train, STRONG, 20, workers)
    list(loader)  # a new iterator of torch's draws its workers' seed from the generator; ours do not depend on it
    batches = iter(loader)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert sum(len(batch) for batch in batches) == 40
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_an_image_is_the_same_whatever_the_batch_it_is_in(folder):
    split = open_source(folder).train
    one, other = by_index(Loader(split, STRONG, 5, seed=1), 4), by_index(Loader(split, STRONG, 8, seed=1), 4)
    assert all(torch.equal(one[index], other[index]) for index in range(len(split)))


def test_seed_and_epoch_change_images_and_order(folder):
    split = open_source(folder).train
    base = Loader(split, TRANSFORM, 40, shuffle=True, seed=1)
    [first], [later] = list(base.epoch(0)), list(base.epoch(1))
    [other] = Loader(split, TRANSFORM, 40, shuffle=True, seed=2).epoch(0)
    assert first.indices != later.indices
    assert first.indices != other.indices
    assert sorted(first.indices) == sorted(later.indices) == list(range(40))
    assert not torch.equal(first.images[first.indices.index(0)], later.images[later.indices.index(0)])


def test_a_restart_goes_on_where_it_was(folder):
    split = open_source(folder).train
    whole = [batch.indices for batch in Loader(split, TRANSFORM, 6, shuffle=True, seed=1).epoch(3)]
    restarted = Loader(split, TRANSFORM, 6, shuffle=True, seed=1)
    restarted.sampler.start = 2
    assert [batch.indices for batch in restarted.epoch(3)] == whole[2:]


def test_evaluation_sees_every_image_once_and_training_full_batches_only(folder):
    split = open_source(folder).train
    assert [len(batch) for batch in Loader(split, TRANSFORM, 16)] == [16, 16, 8]
    assert [len(batch) for batch in Loader(split, TRANSFORM, 16, shuffle=True)] == [16, 16]


def test_bad_images_are_skipped_with_their_reason(folder):
    split = open_source(folder).train
    split.images[3].write_bytes(b"")
    split.images[11].write_bytes(b"no image")
    batches = list(Loader(split, TRANSFORM, 20))
    assert {k: v for b in batches for k, v in b.bad.items()} == {
        3: "file is empty",
        11: "not an image in a known format",
    }
    assert [len(batch) for batch in batches] == [18, 20]
    assert probe(split, draw_some(split, 1000, seed=0))[1] == {3: "file is empty", 11: "not an image in a known format"}


def test_a_batch_of_bad_images_is_empty(folder):
    split = open_source(folder).val.subset([0, 1])
    for path in split.images:
        path.write_bytes(b"")
    [batch] = Loader(split, TRANSFORM, 4)
    assert len(batch) == 0
    assert len(batch.bad) == 2


def test_few_shards_are_probed(folder):
    split = open_source(folder).train
    sharded = replace(split, shards=np.arange(40), bad=dict.fromkeys(range(40), "x"))
    assert len(probe(sharded, draw_some(sharded, 20, seed=0))[1]) == WINDOW
    assert len(probe(sharded, draw_some(sharded, 40, seed=0))[1]) == 40
    assert len(probe(split, draw_some(split, 20, seed=0))[1]) == 0


def test_excluded_images_do_not_come_back(folder):
    loader = Loader(open_source(folder).train, TRANSFORM, 5, shuffle=True)
    loader.sampler.exclude({0, 1, 2})
    seen = {index for batch in loader.epoch(0) for index in batch.indices}
    assert not seen & {0, 1, 2}
    assert (loader.images, len(loader)) == (37, 7)


def test_seeded_leaves_the_generators_as_they_were():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    with seeded(1, 2, 3):
        inside = random.random(), np.random.rand(), float(torch.rand(()))
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    with seeded(1, 2, 3):
        assert (random.random(), np.random.rand(), float(torch.rand(()))) == inside


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "workers": -1}])
def test_impossible_loaders(folder, options):
    with pytest.raises(ValueError, match="at least"):
        Loader(open_source(folder).val, TRANSFORM, **options)


@pytest.mark.parametrize("size", [(300, 200), (64, 500), (37, 41), (160, 160)])
@pytest.mark.parametrize(("image_size", "crop"), [(224, 0.875), (96, 0.9), (160, 1.0)])
def test_evaluation_transform_is_timms(size, image_size, crop):
    image = picture(120, size=size)
    reference = timm.data.create_transform(image_size, crop_pct=crop, interpolation="bicubic", normalize=False)(image)
    reference = torch.from_numpy(np.asarray(reference)) if not torch.is_tensor(reference) else reference
    ours = EvalReader(Preprocess(image_size, crop))(image)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, image_size, image_size)
    scale = 255 if reference.is_floating_point() else 1
    assert (ours.float() - reference.float() * scale).abs().max() <= 1


def test_photographs_have_no_bad_image(photos):
    images = sorted(photos.iterdir())
    for path in images[:10]:
        with Image.open(path) as image:
            image.load()
    from shvit.data.dataset import Split

    split = Split(images, [0] * len(images), [str(p) for p in images])
    assert probe(split, draw_some(split, 100, 0))[1] == {}


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 31},
        {"crop": 0.0},
        {"crop": 1.1},
        {"interpolation": "cubic"},
        {"std": (0.1, 0.2, 0.0)},
        {"mean": (0.5,)},
    ],
    ids=str,
)
def test_impossible_preprocessing(options):
    with pytest.raises(ValueError, match="got"):
        Preprocess(**options)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PermissionError(13, "not allowed", "a.png"), Failure, r"^\[Errno 13\] not allowed: 'a.png'$"),
        (InputError("no such place"), InputError, "^no such place$"),
        (ZeroDivisionError("our own"), ZeroDivisionError, "our own"),
    ],
)
def test_errors_in_workers_keep_their_message(folder, error, kind, text):
    def read(source):
        raise error

    with pytest.raises(kind, match=text), worker_death_as_failure():
        list(Loader(open_source(folder).val, read, 4, workers=1))


def test_a_worker_that_exits_is_not_said_to_be_killed(folder):
    with (
        pytest.raises(Failure, match=r"a data-loading worker died \(use --workers 0 to see why\)") as failure,
        worker_death_as_failure(),
    ):
        list(Loader(open_source(folder).val, lambda source: os._exit(3), 4, workers=1))
    assert "memory" not in str(failure.value)


def test_a_small_shared_memory_is_a_failure_in_one_line(folder, tmp_path):
    """In a mount namespace of its own, where /dev/shm has 256 kB, then 4 kB."""
    code = (
        "from pathlib import Path; import sys; from shvit.data.loader import Loader, worker_death_as_failure\n"
        "from shvit.data.sources import open_source; from shvit.data.transforms import Preprocess\n"
        "from shvit.data.transforms import EvalReader; from shvit.errors import Failure\n"
        "split = open_source(sys.argv[1]).train\n"
        "try:\n"
        "    with worker_death_as_failure(): list(Loader(split, EvalReader(Preprocess(192)), 20, 1))\n"
        "except Failure as error: print(error)"
    )
    for size in ("256k", "4k"):
        mount = f'mount -t tmpfs -o size={size} none /dev/shm || exit 77; exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-W", "ignore", "-c", code, folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip("no mount of one's own here")
        assert "no space left on /dev/shm" in done.stdout, done.stderr
        assert "Traceback" not in done.stderr
