"""Distillation: losses, normalization, classes and the logits cache."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import shvit
from conftest import randomize_norms, tiny_architecture, trained_looking
from shvit.data.loader import Batch
from shvit.data.transforms import Normalize, Preprocess
from shvit.modelfile import ModelFile, load, save
from shvit.requests.train import TrainRequest
from shvit.tasks.classify import Classify
from shvit.train.distill import Distill, LogitsCache, Teacher
from shvit.train.recipe import Recipe
from shvit.train.run import train

CLASSES = ("dark", "light")
CALM = Recipe(mixup=0.0, cutmix=0.0, random_erasing=0.0)


def teacher_file(classes=("light", "grey", "dark"), **preprocess):
    network = trained_looking(tiny_architecture(len(classes)).build())
    return ModelFile(network, classes, Preprocess(32, **preprocess))


def batch_of(count=4, view=0):
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return Batch(images, torch.arange(count) % 2, list(range(count)), {}, view)


def test_a_teacher_gets_its_own_normalization_and_returns_the_students_classes():
    trained = teacher_file(mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.2))
    student, batch = Preprocess(32), batch_of()
    answers = Teacher(trained, CLASSES, student)(Normalize(student)(batch.images), batch)
    with torch.no_grad():
        expected = trained.model(Normalize(trained.preprocess)(batch.images))[:, [2, 0]]
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-4)


def test_losses_are_those_of_the_paper():
    task = Classify(CLASSES, label_smoothing=0.1)
    logits, taught, answers = torch.randn(3, 5, 2).unbind()
    targets = F.one_hot(torch.tensor([0, 1, 1, 0, 1]), 2).float()
    own = task.loss(lambda _: logits, None, targets)
    hard = Distill(task, None, "hard", 0.3).loss(lambda _: (logits, taught), None, (targets, answers))
    torch.testing.assert_close(hard, 0.7 * own + 0.3 * F.cross_entropy(taught, answers.argmax(1)))
    soft = Distill(task, None, "soft", 0.5, 3.0).loss(lambda _: (logits, taught), None, (targets, answers))
    p, q = (answers / 3).softmax(1), (taught / 3).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(soft, 0.5 * own + 0.5 * 9 * divergence)
    one_head = Distill(task, None, "hard", 0.5).loss(lambda _: logits, None, (targets, answers))
    torch.testing.assert_close(one_head, 0.5 * own + 0.5 * F.cross_entropy(logits, answers.argmax(1)))


@pytest.mark.parametrize(
    ("trained", "size", "reason"),
    [
        (teacher_file(("dark", "grey")), 32, "does not know 1 of the dataset's 2 classes, such as 'light'"),
        (
            ModelFile(shvit.create_model("timm/deit_tiny_patch16_224", 2), CLASSES),
            96,
            "teacher timm/deit_tiny_patch16_224 cannot teach .* does not accept 96x96",
        ),
    ],
    ids=["class", "size"],
)
def test_teachers_that_cannot_teach(trained, size, reason):
    with pytest.raises(shvit.InputError, match=reason):
        Teacher(trained, CLASSES, Preprocess(size))


def test_cached_logits_are_not_computed_again(tmp_path):
    trained, student = teacher_file(), Preprocess(32)
    batch, asked = batch_of(), []
    about = {"teacher": "a", "data": "b", "classes": CLASSES}
    teacher = Teacher(trained, CLASSES, student, cache=LogitsCache(tmp_path, CALM, student, about, 10))
    network = teacher._network
    teacher._network = lambda images: asked.append(len(images)) or network(images)
    inputs = Normalize(student)(batch.images)
    first = teacher(inputs, batch)
    again = Teacher(trained, CLASSES, student, cache=LogitsCache(tmp_path, CALM, student, about, 10))
    again._network = teacher._network
    assert torch.equal(again(inputs, batch), first)
    assert asked == [4]
    again(inputs, replace(batch, view=1))
    again(inputs, replace(batch, indices=[6, 7, 8, 9]))
    assert asked == [4, 4, 4]
    for recipe, also, images in (
        (replace(CALM, flip=0.1), {}, 10),
        (replace(CALM, val_share=0.3), {}, 10),
        (CALM, {"precision": "bf16"}, 10),
        (CALM, {}, 11),
    ):
        assert LogitsCache(tmp_path, recipe, student, {**about, **also}, images).get(batch) is None


@pytest.mark.parametrize(
    ("field", "least"), [({"mixup": 0.1}, 0), ({"random_erasing": 0.2}, 0), ({"repeats": 3}, 1)], ids=str
)
def test_logits_of_images_that_differ_at_every_step_are_not_cached(tmp_path, field, least):
    with pytest.raises(
        shvit.InputError, match=f"--teacher-cache requires --{next(iter(field)).replace('_', '-')} {least}: "
    ):
        LogitsCache(tmp_path, replace(CALM, **field), Preprocess(32), {"classes": CLASSES}, 10)


SETTINGS = {
    "epochs": 4,
    "batch_size": 8,
    "lr": 1e-2,
    "lr_batch": 8,
    "compile": "off",
    "precision": "fp32",
    "distillation": "soft",
}


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save(ModelFile(randomize_norms(tiny_architecture().build()).eval(), CLASSES, Preprocess(32)), path)
    return str(path)


def test_the_recipe_trains_two_heads_that_fuse_into_one(folder, teacher, tmp_path):
    start = tmp_path / "start.safetensors"
    save(ModelFile(tiny_architecture(3).build(), tuple("abc"), Preprocess(32)), start)
    settings = {**SETTINGS, "teacher": teacher, "distillation_share": 0.1, "epochs": 8}
    options = {"device": "cpu", "workers": 0}
    result = train(
        TrainRequest(folder, out=tmp_path / "run", model=str(start), recipe="distill", settings=settings, **options)
    )
    trained = load(tmp_path / "run" / "best.safetensors")
    assert trained.architecture.distilled
    assert trained.provenance["recipe"]["teacher"] == teacher
    assert result.best["top1"] == trained.metrics["top1"] >= 0.9
    images = torch.randn(2, 3, 32, 32)
    fused = shvit.fuse(trained.model)
    assert fused.distillation_head is None
    with torch.no_grad():
        torch.testing.assert_close(fused(images), trained.model(images), rtol=1e-4, atol=1e-4)


def test_a_cache_changes_no_bit_of_a_resumed_run_and_saves_the_teacher_work(folder, teacher, tmp_path, monkeypatch):
    settings = {**SETTINGS, "teacher": teacher, "views": 2, "image_size": 32}
    options = {"device": "cpu", "workers": 0, "teacher_cache": tmp_path / "answers"}
    asked = []
    put = LogitsCache.put
    monkeypatch.setattr(LogitsCache, "put", lambda self, *args: asked.append(None) or put(self, *args))
    for name in ("one", "two"):
        train(
            TrainRequest(
                folder, out=tmp_path / name, model="timm/test_resnet", recipe="distill", settings=settings, **options
            )
        )
    # two views of 40 images in batches of 8 that differ between epochs: all are cached after some epochs
    assert 10 <= len(asked) < 20
    one, two = (load(tmp_path / name / "last.safetensors").model.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_cache_without_a_teacher_is_refused(folder, tmp_path):
    with pytest.raises(shvit.InputError, match="needs a teacher, but recipe finetune has none"):
        train(
            TrainRequest(
                folder, out=tmp_path / "run", device="cpu", teacher_cache=tmp_path, settings={"image_size": 32}
            )
        )
