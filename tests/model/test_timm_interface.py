"""timm's interface works, and gives the results of timm's port of SHViT with the same weights."""

import copy
import warnings

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay

import shvit
from conftest import randomize_norms, tiny_architecture
from shvit.model.config import VARIANTS
from shvit.modelfile import ModelFile, save
from shvit.pretrained import from_timm, to_timm


@pytest.fixture(scope="module")
def twins():
    """S1, and timm's port of S1 with the same weights."""
    ours = randomize_norms(shvit.create_model("shvit_s1", num_classes=7)).eval()
    theirs = timm.create_model("shvit_s1", num_classes=7).eval()
    theirs.load_state_dict(to_timm(ours.state_dict()))
    return ours, theirs


def tiny(classes=5, **options):
    return randomize_norms(tiny_architecture(classes, **options).build())


def images(count=2, height=64, width=96):
    return torch.randn(count, 3, height, width)


@torch.no_grad()
def test_features_heads_and_intermediates_are_those_of_timms_port(twins):
    ours, theirs = twins
    x = images()
    last = ours.forward_features(x)
    torch.testing.assert_close(last, theirs.forward_features(x), rtol=1e-4, atol=1e-4)
    for pre_logits in (False, True):
        expected = theirs.forward_head(last, pre_logits=pre_logits)
        torch.testing.assert_close(ours.forward_head(last, pre_logits=pre_logits), expected, rtol=1e-4, atol=1e-4)
    for indices in (None, 1, 2, [0, 2], (-1,), [0]):
        for stop_early in (False, True):
            options = {"indices": indices, "stop_early": stop_early}
            found, expected = (model.forward_intermediates(x, **options) for model in twins)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            alone = ours.forward_intermediates(x, intermediates_only=True, **options)
            torch.testing.assert_close(alone, found[1], rtol=0, atol=0)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_attributes_are_those_of_timms_port(name):
    ours, theirs = shvit.create_model(name), timm.create_model(name)
    for attribute in ("num_classes", "num_features", "head_hidden_size"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    for one, other in zip(ours.feature_info, theirs.feature_info, strict=True):
        assert one == {key: other[key] for key in ("num_chs", "reduction", "module")}
    for key in ("input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "num_classes"):
        assert ours.default_cfg[key] == theirs.default_cfg[key], key
    for key in ("first_conv", "classifier"):
        assert f"{ours.pretrained_cfg[key]}.weight" in ours.state_dict()
    assert resolve_model_data_config(ours) == resolve_model_data_config(theirs)
    assert ours.get_classifier() is ours.head.linear


def test_layer_groups_are_those_of_timms_port(twins):
    ours, theirs = twins
    for coarse in (False, True):
        found = group_parameters(ours, ours.group_matcher(coarse), reverse=True)
        expected = group_parameters(theirs, theirs.group_matcher(coarse), reverse=True)
        names = dict(zip(theirs.state_dict(), from_timm(theirs.state_dict()), strict=True))
        assert found == {names[key]: layer for key, layer in expected.items()}
    groups = param_groups_layer_decay(ours, 0.05, ours.no_weight_decay(), layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(ours.parameters()))
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scales[id(ours.head.linear.weight)] == 1
    assert scales[id(ours.stem[0].conv.weight)] == min(scales.values()) < 0.01


@pytest.mark.parametrize("distilled", [False, True])
def test_reset_classifier(distilled):
    model = tiny(distilled=distilled).double().eval()
    x = images().double()
    model.reset_classifier(9)
    assert model(x).shape == (2, 9)
    assert (model.num_classes, model.architecture.num_classes) == (9, 9)
    assert not model.head.training
    assert len(model.train()(x)) == 2
    model.eval().reset_classifier(0)
    torch.testing.assert_close(model(x), model.features(x)[-1].mean((2, 3)))
    assert model.num_classes == 0
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x))
    model.reset_classifier(4, "avg")
    assert model(x).shape == (2, 4)


def test_a_network_with_a_new_classifier_is_saved_and_one_without_is_not(tmp_path):
    model = tiny()
    model.reset_classifier(2)
    save(ModelFile(model, ("a", "b")), tmp_path / "m.safetensors")
    assert shvit.load(tmp_path / "m.safetensors").model(images()).shape == (2, 2)
    model.reset_classifier(0)
    with pytest.raises(shvit.InputError, match="no classifier"):
        ModelFile(model, ())
    model.prune_intermediate_layers(1)
    model.reset_classifier(2, "avg")
    ModelFile(model, ("a", "b"))  # nothing was pruned
    model.prune_intermediate_layers([0])
    with pytest.raises(shvit.InputError, match="pruned"):
        ModelFile(model, ("a", "b"))


def test_pruning_leaves_the_maps_that_were_chosen():
    model = tiny().eval()
    x = images()
    expected = model.features(x)
    assert model.prune_intermediate_layers([0, -2]) == [0, 1]
    assert len(model.stages) == len(model.feature_info) == 2
    for found, map_ in zip(model.features(x), expected[:2], strict=True):
        torch.testing.assert_close(found, map_, rtol=0, atol=0)
    torch.testing.assert_close(model(x), expected[1], rtol=0, atol=0)
    assert model.num_features == expected[1].shape[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.reset_classifier(3, ""),
        lambda model: model.reset_classifier(-1),
        lambda model: model.reset_classifier(3, "max"),
        lambda model: model.forward_intermediates(images(), indices=[3]),
        lambda model: model.forward_intermediates(images(), indices=4),
        lambda model: model.forward_intermediates(images(), output_fmt="NLC"),
        lambda model: model.set_distilled_training(),
    ],
)
def test_what_shvit_does_not_have_is_refused(call):
    with pytest.raises(shvit.InputError):
        call(tiny())


def test_distilled_training_may_return_the_mean():
    model = tiny(distilled=True).train()
    x = images()
    heads = copy.deepcopy(model)(x)
    model.set_distilled_training(False)
    torch.testing.assert_close(model(x), (heads[0] + heads[1]) / 2)
    assert model.get_classifier() == (model.head.linear, model.distillation_head.linear)


def test_checkpointing_changes_neither_gradients_nor_statistics():
    model = randomize_norms(tiny_architecture(5).build(drop_path_rate=0.5))
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = images(8)
    kept = []
    for network in (model, other):
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            network(x).square().sum().backward()
        kept.append(None)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=0)
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    middle = kept.index(None)
    assert sum(kept[middle + 1 : -1]) < sum(kept[:middle])


def test_drop_path_is_timms_and_grows_linearly():
    model = randomize_norms(tiny_architecture(5).build(drop_path_rate=0.5)).train()
    rates = [[block.feed_forward.drop_path for block in stage.blocks] for stage in model.stages]
    assert [[rate.p if rate else 0 for rate in row] for row in rates] == [[0], [0.25], [0.5]]
    residual = model.stages[2].blocks[0].feed_forward
    x = torch.randn(64, 32, 3, 3)
    torch.manual_seed(3)
    found = residual(x)
    torch.manual_seed(3)
    torch.testing.assert_close(found, x + DropPath(0.5)(residual.branch(x)), rtol=0, atol=0)
    x = images()
    plain = tiny_architecture(5).build()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
    assert [name for name, _ in plain.named_modules()] == [
        name for name, _ in model.named_modules() if not name.endswith("drop_path")
    ]
    torch.testing.assert_close(shvit.fuse(model)(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient(name):
    model = shvit.create_model(name, num_classes=4, distilled=True)
    torch.cat(model(images(2, 96, 64))).mean().backward()
    assert all(p.grad is not None for p in model.parameters())


SCRIPTS = {
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model, images()),
    "fx": torch.fx.symbolic_trace,
    "fx, script": lambda model: torch.jit.script(torch.fx.symbolic_trace(model)),
    "export": lambda model: torch.export.export(model, (images(),)).module(),
}


@pytest.mark.parametrize("way", SCRIPTS)
@pytest.mark.parametrize("kind", ["training", "evaluation", "fused"])
@pytest.mark.parametrize("distilled", [False, True], ids=["one head", "two heads"])
def test_scripts_traces_and_graphs_give_the_same_outputs(way, kind, distilled):
    model = tiny(distilled=distilled).train(kind == "training")
    model = shvit.fuse(model) if kind == "fused" else model
    x = images()
    expected = copy.deepcopy(model)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        found = SCRIPTS[way](copy.deepcopy(model))(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", SCRIPTS)
@pytest.mark.parametrize("name", VARIANTS)
def test_scripts_traces_and_graphs_of_the_variants(way, name):
    model = randomize_norms(shvit.create_model(name, num_classes=4)).eval()
    x = images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = SCRIPTS[way](copy.deepcopy(model))(x)
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 4, 64, 64)])
def test_a_script_refuses_impossible_images(shape):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(tiny().eval())
    with pytest.raises(torch.jit.Error, match=r"images must be.*got"):
        script(torch.randn(shape))


def test_create_model_with_features_only():
    model = shvit.create_model("shvit_s1", features_only=True, out_indices=(0, 2)).eval()
    assert model.feature_info.channels() == [128, 320]
    assert model.feature_info.reduction() == [16, 64]
    theirs = timm.create_model("shvit_s1", features_only=True, out_indices=(0, 2)).eval()
    assert [tuple(x.shape) for x in model(images())] == [tuple(x.shape) for x in theirs(images())]
    other = shvit.create_model("timm/resnet10t", features_only=True, out_indices=(1, 3), in_chans=1).eval()
    assert [x.shape[1] for x in other(torch.randn(1, 1, 64, 64))] == [64, 256]


def test_create_model_without_classifier_or_pooling():
    x = images()
    for name, width in (("shvit_s1", 320), ("timm/mobilenetv3_small_050", 1024)):
        assert shvit.create_model(name, num_classes=0).eval()(x).shape == (2, width)
    assert shvit.create_model("shvit_s1", num_classes=0, global_pool="").eval()(x).shape == (2, 320, 1, 2)
    pooled = shvit.create_model("timm/resnet10t", num_classes=3, global_pool="max")
    assert pooled.architecture.name == "timm/resnet10t:global_pool='max'"
    assert pooled.eval()(x).shape == (2, 3)


def test_create_model_from_a_model_file(tmp_path):
    trained = randomize_norms(shvit.create_model("shvit_s1", num_classes=3)).eval()
    path = tmp_path / "m.safetensors"
    save(ModelFile(trained, ("a", "b", "c")), path)
    x = images()
    model = shvit.create_model("shvit_s1", num_classes=3, checkpoint_path=path, drop_path_rate=0.1).eval()
    torch.testing.assert_close(model(x), trained(x), rtol=0, atol=0)
    maps = shvit.create_model("shvit_s1", features_only=True, checkpoint_path=path).eval()(x)
    for found, expected in zip(maps, trained.features(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    pooled = shvit.create_model("shvit_s1", num_classes=0, checkpoint_path=path).eval()(x)
    torch.testing.assert_close(pooled, trained.features(x)[-1].mean((2, 3)), rtol=0, atol=0)
    gray = shvit.create_model("shvit_s1", num_classes=3, in_chans=1, checkpoint_path=path).eval()
    torch.testing.assert_close(gray(x[:, :1]), trained(x[:, :1].expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    with pytest.raises(shvit.InputError, match="has 3 classes, not 1000: give num_classes=3"):
        shvit.create_model("shvit_s1", checkpoint_path=path)


@pytest.mark.parametrize(
    "options",
    [
        {"out_indices": (0,)},
        {"features_only": True, "out_indices": (5,)},
        {"features_only": True, "distilled": True},
        {"features_only": True, "global_pool": "avg"},
        {"global_pool": "max"},
        {"global_pool": ""},
        {"drop_path_rate": 1.0},
        {"in_chans": 1, "in_channels": 4},
        {"num_classes": 0, "distilled": True},
        {"pretrained": True, "checkpoint_path": "m.safetensors"},
    ],
    ids=str,
)
def test_create_model_refuses_what_has_no_effect(options):
    with pytest.raises(shvit.InputError):
        shvit.create_model("shvit_s1", **options)


def test_arguments_that_timms_model_does_not_take_are_named():
    with pytest.raises(shvit.InputError, match=r"drop_path_rate=0\.1"):
        shvit.create_model("timm/vgg11", drop_path_rate=0.1)
    with pytest.raises(shvit.InputError, match="maps of timm/resnet10t"):
        shvit.create_model("timm/resnet10t", features_only=True, out_indices=(9,))
