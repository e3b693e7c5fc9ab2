"""Recipes: the paper's settings on the paper's budget, adapted settings on smaller ones."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import shvit
from shvit.errors import InputError
from shvit.model.architecture import Architecture
from shvit.modelfile import ModelFile
from shvit.requests.train import TrainRequest
from shvit.train.budget import choices, fit
from shvit.train.distributed import ProcessGroup
from shvit.train.idle import refuse_idle
from shvit.train.recipe import OLD_NAMES, Recipe, with_current_names
from shvit.train.recipes import RECIPES, TASK_RECIPES, finetune, make_recipe, scratch
from shvit.train.run import _planned, train
from shvit.train.start import variant_of

IMAGENET = 1_281_167
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("model", "decay"), [("shvit_s1", 0.025), ("shvit_s2", 0.032), ("shvit_s3", 0.035), ("shvit_s4", 0.03)]
)
def test_the_papers_values(model, decay):
    recipe = fit(scratch(model), IMAGENET)
    assert recipe == scratch(model)
    assert recipe.effective_lr == pytest.approx(4e-3)
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (300, 2048, decay)
    assert (recipe.warmup_epochs, recipe.cooldown_epochs, recipe.min_lr, recipe.warmup_lr) == (5, 0, 1e-5, 1e-6)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.random_erasing) == (0.8, 1.0, 0.1, 0.25)
    assert (recipe.ema, recipe.clip, recipe.rand_augment, recipe.color_jitter) == (0.99996, 0.02, 9, 0.4)
    assert (recipe.ema_warmup, recipe.interpolation, recipe.schedule_by) == (False, "bicubic", "epoch")


def test_a_small_budget_gets_small_batches_light_augmentation_and_a_short_ema():
    recipe = fit(replace(scratch(), epochs=10, warmup_epochs=1, cooldown_epochs=0), 9469)
    assert recipe.batch_size == 64
    assert (recipe.optimizer, recipe.schedule) == ("muon", "linear")
    assert recipe.effective_lr == pytest.approx(4e-3)
    assert (recipe.mixup, recipe.cutmix, recipe.rand_augment, recipe.random_erasing) == (0, 0, 0, 0)
    assert recipe.crop_min == 0.35
    assert recipe.warmup_epochs == 1
    steps = 10 * (9469 // 64)
    assert 1 / (1 - recipe.ema) < 0.1 * steps


def test_muon_is_for_few_epochs_of_images_that_are_not_small():
    def optimizer(epochs, size, *named, **fields):
        return fit(replace(scratch(), epochs=epochs, **fields), 9469, frozenset(named), size).optimizer

    assert (optimizer(30, 128), optimizer(31, 128), optimizer(30, 127)) == ("muon", "adamw", "adamw")
    assert optimizer(30, 224, image_size=64) == "adamw"
    assert optimizer(30, 224, "optimizer") == "adamw"
    assert fit(replace(finetune(), epochs=10), 9469).optimizer == "adamw"


def test_the_measured_run_is_what_the_defaults_give():
    newest = max((ROOT / "results").glob("train_small_*.json"), key=lambda path: path.stem[-10:])
    measured = with_current_names(json.loads(newest.read_text())["recipe"])
    settings = {"epochs": measured["epochs"], "image_size": measured["image_size"]}
    recipe = fit(make_recipe("scratch", "shvit_s1", settings), 9469, frozenset(settings)).to_dict()
    assert measured.pop("beta2") in (None, 0.999)  # 0.999 is the optimizer's default, which recipes no longer set
    assert measured.pop("lr") * recipe["lr_batch"] == recipe["lr"] * measured.pop("lr_batch")
    assert {key: recipe[key] for key in measured} == measured


def test_more_epochs_bring_stronger_augmentation():
    strengths = [fit(replace(scratch(), epochs=epochs), 9469).mixup for epochs in (20, 60, 120, 150, 300)]
    assert strengths[0] == 0
    assert strengths == sorted(strengths)
    assert strengths[-2:] == [0.8, 0.8]


@pytest.mark.parametrize("images", [10, 100, 1000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("epochs", [1, 5, 30, 300])
def test_every_budget_gives_a_recipe_that_can_run(images, epochs):
    recipe = fit(replace(scratch(), epochs=epochs, warmup_epochs=0, cooldown_epochs=0), images)
    assert 2 <= recipe.batch_size <= min(2048, max(2, images // 2))
    assert 0 < recipe.effective_lr <= 4e-3
    assert 0 <= recipe.ema < 1


def test_settings_of_the_user_are_kept():
    named = {
        "batch_size": 500,
        "lr": 0.1,
        "lr_batch": 100,
        "mixup": 0.7,
        "ema": 0.5,
        "crop_min": 0.2,
        "warmup_epochs": 3.0,
    }
    recipe = fit(replace(scratch(), epochs=10, cooldown_epochs=0, **named), 2000, frozenset(named))
    assert {name: getattr(recipe, name) for name in named} == named


FITTED = [
    ("classify", "scratch", 9469, 10),
    ("classify", "scratch", 9469, 100),
    ("classify", "scratch", IMAGENET, 300),
    ("classify", "distill", 700, 30),
    ("classify", "highres", 9469, 30),
    ("classify", "finetune", 40, 20),
    ("detect", "small", 100, 60),
    ("detect", "coco_1x", 100, 12),
]


@pytest.mark.parametrize(("task", "name", "images", "epochs"), FITTED)
def test_giving_a_flag_its_default_value_changes_nothing(task, name, images, epochs):
    def fitted(**more):
        settings = {"epochs": epochs} | more
        return fit(make_recipe(name, "shvit_s2", settings, task), images, frozenset(settings))

    expected = fitted()
    for entry in fields(Recipe):
        value = getattr(expected, entry.name)
        tasks = entry.metadata.get("tasks") or (task,)
        if entry.name != "name" and value is not None and task in tasks:
            assert fitted(**{entry.name: value}) == expected, entry.name


@pytest.mark.parametrize(("task", "name", "images", "epochs"), FITTED)
def test_setting_lr_or_lr_batch_keeps_the_meaning_of_the_other(task, name, images, epochs):
    published = make_recipe(name, "shvit_s1", {}, task)
    settings = {"epochs": epochs}

    def fitted(**more):
        named = settings | more
        return fit(make_recipe(name, "shvit_s1", named, task), images, frozenset(named))

    for rate in (published.lr, 0.01):
        recipe = fitted(lr=rate)
        assert recipe.lr_batch == published.lr_batch
        assert recipe.effective_lr == pytest.approx(rate * recipe.batch_size / published.lr_batch)
    for lr_batch in (published.lr_batch, 100):
        recipe = fitted(lr_batch=lr_batch)
        assert recipe.lr_batch == lr_batch
        assert recipe.effective_lr == pytest.approx(fitted().effective_lr)
    both = fitted(lr=0.01, lr_batch=100, batch_size=50)
    assert both.effective_lr == pytest.approx(0.005)


def test_every_choice_is_listed_with_its_reason_except_user_settings():
    settings = {"epochs": 10, "clip": 0.0, "image_size": 160}
    recipe = fit(make_recipe("scratch", "shvit_s4", settings), 9469, frozenset(settings))
    made = {choice.field: choice for choice in choices(scratch("shvit_s4"), recipe, 9469, settings)}
    before, after = scratch("shvit_s4").to_dict(), recipe.to_dict()
    changed = {name for name in after if before[name] != after[name]} - {*settings, "lr"}
    assert set(made) == changed
    assert all((choice.published, choice.used) == (before[name], after[name]) for name, choice in made.items())
    assert made["batch_size"].reason.startswith("9,469 images x 10 epochs give 46 steps of 2,048")
    assert "effective_lr" not in {c.field for c in choices(scratch(), recipe, 9469, {"lr"})}
    assert choices(scratch(), scratch(), IMAGENET) == ()


@pytest.mark.parametrize("images", [1, 50, 9469, 10**6])
def test_every_change_by_fit_has_a_reason(images):
    for task, names in TASK_RECIPES.items():
        for name in names:
            published = RECIPES[name]()
            recipe = fit(published, images)
            changed = {key for key, value in recipe.to_dict().items() if published.to_dict()[key] != value} - {"lr"}
            assert {choice.field for choice in choices(published, recipe, images)} == changed, (task, name)


def test_fine_tuning_has_half_the_learning_rate_of_adamw_from_scratch():
    from_scratch = fit(
        replace(scratch(), epochs=15, warmup_epochs=1, cooldown_epochs=0, optimizer="adamw"),
        5000,
        frozenset({"optimizer"}),
    )
    assert fit(finetune(), 5000).effective_lr == pytest.approx(from_scratch.effective_lr / 2)


@pytest.mark.parametrize(
    ("settings", "flags", "where"),
    [({"schedule": "step", "min_lr": 1e-6}, "--min-lr has", "with --schedule step"),
     ({"schedule": "step", "min_lr": 1e-5, "cooldown_epochs": 0.0}, "--min-lr and --cooldown-epochs have",
      "with --schedule step"),
     ({"schedule": "step", "schedule_by": "step"}, "--schedule-by has", "with --schedule step"),
     ({"min_lr": 1.0}, "--min-lr has", "above the effective learning rate"),
     ({"warmup_lr": 1.0}, "--warmup-lr has", "above the effective learning rate"),
     ({"warmup_epochs": 0.0, "warmup_lr": 1e-6}, "--warmup-lr has", "with --warmup-epochs 0"),
     ({"temperature": 2.0}, "--temperature has", "without --teacher"),
     ({"distillation": "hard"}, "--distillation has", "without --teacher"),
     ({"distillation_share": 0.5}, "--distillation-share has", "without --teacher"),
     ({"teacher": "x", "temperature": 2.0}, "--temperature has", "with --distillation hard"),
     ({"ema": 0.0, "ema_warmup": True}, "--ema-warmup has", "with --ema 0"),
     ({"rand_augment": 9, "color_jitter": 0.4}, "--color-jitter has", "with RandAugment"),
     ({"val_share": 0.2}, "--val-share has", "on a dataset with its own validation split")],
    ids=str,
)  # fmt: skip
def test_a_named_setting_without_effect_is_refused(folder, tmp_path, settings, flags, where):
    with pytest.raises(InputError, match=f"^{flags} no effect {where}"):
        train(TrainRequest(folder, out=tmp_path / "run", model="shvit_s1", workers=0, settings=settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [{}, {"schedule": "step"}, {"epochs": 10, "color_jitter": 0.4}, {"color_jitter": 0.0, "rand_augment": 9},
     {"ema": 0.0}, {"warmup_epochs": 0.0}, {"teacher": "x", "distillation_share": 0.1}, {"lr": 1e-7}],
    ids=str,
)  # fmt: skip
def test_settings_with_an_effect_or_not_given_are_accepted(settings):
    refuse_idle(fit(make_recipe("scratch", "shvit_s1", settings), 30, frozenset(settings)), settings)


@pytest.mark.parametrize("name", ["shvit_s4", "timm/shvit_s4"])
def test_weight_decay_follows_the_network_whatever_its_file_is_called(folder, tmp_path, name):
    shvit.save(ModelFile(Architecture(name, 2).build(), ("dark", "light")), tmp_path / "best.safetensors")
    for model in (name, str(tmp_path / "best.safetensors")):
        settings = {"epochs": 1, "batch_size": 2048, "image_size": 64}
        plan = _planned(TrainRequest(folder, model=model, settings=settings), ProcessGroup())
        assert plan.recipe.weight_decay == 0.03
    assert make_recipe("scratch", variant_of(f"{name}.in1k"), {}).weight_decay == 0.03


def test_recipes_from_before_a_field_existed_keep_their_behaviour():
    record = scratch().to_dict() | {"cooldown_epochs": 10.0}
    for name in ("schedule_by", "ema_warmup", "interpolation"):
        del record[name]
    old = {now: before for before, now in OLD_NAMES.items()}
    recipe = Recipe.from_dict({old.get(key, key): value for key, value in record.items()})
    assert recipe == Recipe.from_dict(record)
    assert (recipe.schedule_by, recipe.ema_warmup, recipe.interpolation) == ("step", True, "random")
    assert recipe.cooldown_epochs == 10


def test_json_round_trip():
    recipe = fit(finetune("shvit_s3"), 1234)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict()["effective_lr"] == recipe.effective_lr


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"lr": -1.0}, {"ema": 1.5}, {"mixup": -0.1}, {"crop_min": 2.0},
     {"precision": "fp8"}, {"compile": "maybe"}, {"image_size": 16}, {"warmup_epochs": 400}, {"seed": -1},
     {"label_smoothing": float("nan")}, {"schedule_by": "year"}, {"interpolation": "nearest"}],
    ids=str,
)  # fmt: skip
def test_errors_name_the_field(wrong):
    [(name, _)] = wrong.items()
    with pytest.raises(InputError, match=name):
        replace(scratch(), **wrong)


def test_every_field_except_the_name_has_a_help_text():
    assert [entry.name for entry in fields(Recipe) if not entry.metadata.get("help")] == ["name"]


def test_recipes_need_no_torch():
    code = "import sys, shvit.cli.train, shvit.train.budget, shvit.train.idle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_epochs_of_fine_tuning_depend_on_the_number_of_images():
    for images, epochs in ((40, 40), (244, 20), (322, 16), (323, 15), (60_000, 15), (100_000, 10), (1_281_167, 5)):
        assert fit(finetune(), images).epochs == epochs
    for images in (40, 1_281_167):
        assert fit(replace(finetune(), epochs=12), images, frozenset({"epochs"})).epochs == 12
    [choice] = [one for one in choices(finetune(), fit(finetune(), 100_000), 100_000) if one.field == "epochs"]
    assert (choice.published, choice.used) == (15, 10)
