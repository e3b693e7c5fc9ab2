"""Classes of different sizes: balanced sampling, weighted losses, and the advice to use them."""

import signal
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

import shvit
from conftest import tiny_architecture, write_pictures
from shvit.data.dataset import Dataset, Split
from shvit.data.loader import Batch, EpochSampler, Share, seeded
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile, save
from shvit.requests.train import TrainRequest
from shvit.tasks.classify import Classify, class_weights, cross_entropy
from shvit.train import bad_images, loop
from shvit.train.distill import LogitsCache
from shvit.train.recipe import Recipe
from shvit.train.run import train

SIZES = {0: 50, 1: 7, 2: 1, 3: 20}
LABELS = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))
EPOCHS = 12


def sampler_of(labels=LABELS, batch_size=12, shards=None, **options):
    split = Split([None] * len(labels), labels, [""] * len(labels), shards)
    return EpochSampler(split, batch_size, shuffle=True, strata=labels, **{"seed": 3, **options})


def keys_of(sampler, epoch):
    sampler.epoch = epoch
    return [key for batch in sampler for key in batch]


def test_each_class_is_drawn_equally_often_and_each_image_as_often_as_the_others_of_its_class():
    sampler, seen = sampler_of(), []
    for epoch in range(EPOCHS):
        keys = keys_of(sampler, epoch)
        assert len(keys) == len(LABELS) // 12 * 12  # as many steps as without balancing
        by_class = Counter(LABELS[index] for _, index, _ in keys)
        assert by_class.keys() == SIZES.keys()
        assert max(by_class.values()) - min(by_class.values()) <= 1
        seen += keys
    counts = np.bincount([index for _, index, _ in seen], minlength=len(LABELS))
    for label in SIZES:
        of_class = counts[label == LABELS]
        assert of_class.min() >= 1
        assert of_class.max() - of_class.min() <= 1
    assert len(set(seen)) == len(seen)  # each draw of an image is augmented in another way


def test_the_order_is_random_and_depends_on_seed_and_epoch_only():
    sampler = sampler_of()
    first, second = keys_of(sampler, 0), keys_of(sampler, 1)
    labels = [int(LABELS[index]) for _, index, _ in first]
    assert labels != sorted(labels)
    assert {index for _, index, _ in first if LABELS[index] == 0} != {
        index for _, index, _ in second if LABELS[index] == 0
    }
    assert keys_of(sampler, 0) == first == keys_of(sampler_of(), 0)
    assert keys_of(sampler_of(seed=4), 0) != first


def test_a_restart_and_other_processes_see_the_same_batches():
    whole = list(sampler_of())
    restarted = sampler_of()
    restarted.start = 2
    assert list(restarted) == whole[2:]
    parts = [list(sampler_of(share=Share(rank, 3))) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert sorted(key for part in parts for key in part[step]) == sorted(batch)


def test_excluded_images_and_their_classes_do_not_come_back():
    sampler = sampler_of()
    bad = set(np.flatnonzero(LABELS == 2).tolist()) | set(np.flatnonzero(LABELS == 0)[:30].tolist())
    sampler.exclude(bad)
    seen = [index for epoch in range(EPOCHS) for _, index, _ in keys_of(sampler, epoch)]
    assert not bad & set(seen)
    by_class = Counter(LABELS[seen])
    assert by_class.keys() == {0, 1, 3}
    assert max(by_class.values()) - min(by_class.values()) <= 1


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_images_are_different_copies(repeats):
    sampler = sampler_of(repeats=repeats)
    for epoch in range(EPOCHS):
        keys = keys_of(sampler, epoch)
        assert len(set(keys)) == len(keys) == len(LABELS) // 12 * 12
        by_class = Counter(LABELS[index] for _, index, _ in keys)
        assert max(by_class.values()) - min(by_class.values()) <= repeats
        assert [copy for *_, copy in keys[:repeats]] == list(range(repeats))
        assert len({key[:2] for key in keys[:repeats]}) == 1


def test_views_are_limited_and_used_in_turn():
    sampler = sampler_of(views=3)
    seen = [key for epoch in range(EPOCHS) for key in keys_of(sampler, epoch)]
    single = int(np.flatnonzero(LABELS == 2)[0])
    assert Counter(view for view, *_ in seen).keys() == {0, 1, 2}
    views = Counter(view for view, index, _ in seen if index == single)
    assert max(views.values()) - min(views.values()) <= 1


def test_images_of_few_shards_are_together(monkeypatch):
    monkeypatch.setattr("shvit.data.loader.WINDOW", 4)
    labels = (np.arange(400) % 10 == 0).astype(np.int64)
    shards = np.arange(400) // 10
    sampler = sampler_of(labels, batch_size=40, shards=shards)
    windows = []
    for epoch in range(2):
        indices = np.array([index for _, index, _ in keys_of(sampler, epoch)])
        assert labels[indices].sum() == 200
        order = list(dict.fromkeys(shards[indices].tolist()))
        windows.append([order[start : start + 4] for start in range(0, 40, 4)])
        ends = [np.flatnonzero(np.isin(shards[indices], window)) for window in windows[-1]]
        assert all(place.max() - place.min() + 1 == len(place) for place in ends)  # one window after another
    assert windows[0] != windows[1]


def test_weights_are_scikit_learns_and_have_a_mean_of_1():
    weights = class_weights(LABELS, 6)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    np.testing.assert_allclose(weights[:4], expected, rtol=1e-6)
    assert weights[4:].tolist() == [0, 0]
    assert float(weights[LABELS].mean()) == pytest.approx(1)


def weighted_task(**options):
    task = Classify(list("abcd"), **options, balance="loss")
    task.weigh(Split([None] * len(LABELS), LABELS, [""] * len(LABELS)), np.arange(len(LABELS)))
    return task


def loss_of(task, labels, logits, seed=0):
    images = torch.rand(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with seeded(seed):
        images, targets = task.augment(images, Batch(images, labels, list(range(len(labels))), {}))
    return float(task.loss(lambda _: logits, images, targets)), targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_loss_of_an_image_is_weighted_by_its_label(smoothing):
    labels, logits = torch.tensor([0, 1, 2, 3, 0, 1]), torch.randn(6, 4)
    each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    expected = (class_weights(LABELS, 4)[labels] * each).mean()
    assert loss_of(weighted_task(label_smoothing=smoothing), labels, logits)[0] == pytest.approx(float(expected))


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_image_has_the_weights_of_both_labels(mixing, smoothing):
    labels, logits, weights = torch.tensor([0, 1, 2, 3, 0, 1]), torch.randn(6, 4), class_weights(LABELS, 4)
    shares = loss_of(Classify(list("abcd"), **mixing), labels, logits)[1]
    assert ((shares > 0).sum(1) == 2).all()
    expected = sum(
        shares[:, label]
        * weights[label]
        * F.cross_entropy(logits, torch.full((6,), label), label_smoothing=smoothing, reduction="none")
        for label in range(4)
    ).mean()
    found, _ = loss_of(weighted_task(**mixing, label_smoothing=smoothing), labels, logits)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_weighted_over_all_images_the_loss_is_the_mean_over_classes():
    labels, logits = torch.from_numpy(LABELS), torch.randn(len(LABELS), 4)
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = np.mean([float(each[labels == label].mean()) for label in SIZES])
    assert loss_of(weighted_task(), labels, logits)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("balance", ["none", "sampling"])
def test_without_weights_the_targets_are_those_of_before(balance):
    labels, logits = torch.tensor([0, 1, 2, 3]), torch.randn(4, 4)
    task = Classify(list("abcd"), 0.1, balance=balance)
    task.weigh(Split([None] * len(LABELS), LABELS, [""] * len(LABELS)), np.arange(len(LABELS)))
    found, targets = loss_of(task, labels, logits)
    assert torch.equal(targets, F.one_hot(labels, 4).float() * (1 - 0.1) + 0.1 / 4)
    assert found == float(cross_entropy(logits, targets))


def test_advice_names_the_classes_and_the_flag():
    def dataset(*counts, bad=()):
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        split = Split([None] * len(labels), labels, [""] * len(labels), bad=dict.fromkeys(bad, "file is empty"))
        return Dataset("d", ("cat", "dog", "newt")[: len(counts)], split, split)

    assert Classify.advice(dataset(99, 10)) is None
    assert Classify.advice(dataset(8, 100, 10)) == (
        "class dog has 100 training images, class cat only 8: --balance sampling draws each class equally often"
    )
    assert Classify.advice(dataset(10, 99, bad=[0])).startswith("class dog has 99 training images, class cat only 9")
    assert Classify.advice(dataset(0, 5, 6)) is None  # a class without training images is another problem


@pytest.fixture
def start(tmp_path):
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


@pytest.fixture
def uneven(tmp_path):
    """44 dark images and 4 light ones, one of which cannot be used."""
    for name, shade, count in (("dark", 60, 44), ("light", 190, 4)):
        write_pictures(tmp_path / "uneven" / "train" / name, shade, count)
        write_pictures(tmp_path / "uneven" / "val" / name, shade, 3, first=100)
    (tmp_path / "uneven" / "train" / "light" / "002.png").write_bytes(b"")
    return tmp_path / "uneven"


FLAGS = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "lr_batch": 8, "compile": "off", "precision": "fp32"}


def go(data, start, out, resume=False, **settings):
    settings = {} if resume else {**FLAGS, **settings}
    where = {"device": "cpu", "workers": 0, "resume": resume}
    return train(TrainRequest(data, out=out, model=start, recipe="scratch", settings=settings, **where))


@pytest.mark.parametrize("probed", [512, 0], ids=["found before the first step", "found in the first epoch"])
def test_training_draws_usable_images_of_each_class_equally_often(uneven, start, tmp_path, monkeypatch, probed):
    step, drawn = loop.Trainer.train_step, []

    def watched(self, pieces):
        drawn.append((self.epoch, [label for piece in pieces for label in piece.targets.tolist()]))
        step(self, pieces)

    monkeypatch.setattr(bad_images, "PROBED", probed)
    monkeypatch.setattr(loop.Trainer, "train_step", watched)
    go(uneven, start, tmp_path / "run", balance="sampling")
    last = Counter(label for epoch, labels in drawn if epoch == 1 for label in labels)
    assert last == {0: 20, 1: 20}  # 5 steps, since one of 48 images cannot be used
    if probed:
        assert Counter(label for epoch, labels in drawn if epoch == 0 for label in labels) == last


def test_training_weights_usable_images(uneven, start, tmp_path, monkeypatch):
    weights = []
    monkeypatch.setattr(loop.Trainer, "train_step", lambda self, _: weights.append(self.task._weights.tolist()))
    go(uneven, start, tmp_path / "run", balance="loss", epochs=1)
    assert weights[-1] == pytest.approx([47 / (2 * 44), 47 / (2 * 3)])


@pytest.mark.parametrize(
    "settings", [{"balance": "sampling", "repeats": 2}, {"balance": "loss", "mixup": 0.8}], ids=str
)
def test_a_resumed_run_ends_with_the_same_weights(uneven, start, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(bad_images, "PROBED", 0)
    go(uneven, start, tmp_path / "whole", **settings)
    step = loop.Trainer.train_step

    def stopping(self, pieces):
        step(self, pieces)
        self.stopped_by = signal.SIGINT if (self.epoch, self.step) == (1, 1) else None

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "train_step", stopping)
        assert go(uneven, start, tmp_path / "parts", **settings).interrupted
    go(uneven, start, tmp_path / "parts", resume=True)
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_requests_that_cannot_be_balanced(run, uneven, start, tmp_path):
    flags = ["--out", tmp_path / "run", "--model", start, "--workers", 0]
    code, _, err = run("train", uneven, *flags, "--recipe", "distill", "--teacher", start, "--balance", "loss")
    assert (code, "use --balance sampling, or remove --teacher" in err) == (2, True), err
    code, _, err = run("train", uneven, *flags, "--task", "detect", "--balance", "sampling")
    assert (code, "recipes for task detect have no balance" in err) == (2, True), err
    code, _, err = run("train", uneven, *flags, "--balance", "both")
    assert code == 2
    assert not (tmp_path / "run").exists()
    recipe = Recipe(mixup=0.0, cutmix=0.0, random_erasing=0.0, balance="sampling")
    with pytest.raises(shvit.InputError, match="--teacher-cache requires --balance none"):
        LogitsCache(tmp_path / "cache", recipe, Preprocess(32), {"classes": "ab"}, 4)


def test_a_teacher_and_balanced_sampling(uneven, start, tmp_path):
    where = {"device": "cpu", "workers": 0}
    settings = {**FLAGS, "epochs": 1, "balance": "sampling", "teacher": start}
    result = train(
        TrainRequest(uneven, out=tmp_path / "run", model=start, recipe="distill", settings=settings, **where)
    )
    assert result.epochs == 1


def test_uneven_data_is_pointed_out_once(run, uneven, start, tmp_path):
    def out_of(name, *flags):
        shape = ["--epochs", 1, "--batch-size", 8, "--compile", "off", "--workers", 0]
        code, out, err = run("train", uneven, "--out", tmp_path / name, *flags, *([] if "--resume" in flags else shape))
        assert code == 0, err
        return out

    advice = "class dark has 44 training images, class light only 4: --balance sampling"
    assert out_of("a", "--model", start).count(advice) == 1
    for name, flags in (("b", ["--balance", "none"]), ("c", ["--balance", "loss"])):
        assert "--balance" not in out_of(name, "--model", start, *flags)
    assert "--balance" not in out_of("a", "--resume")
