"""The network: shapes, sizes, and the ways in which torch runs it."""

import copy

import pytest
import torch

import shvit
from conftest import TINY, randomize_norms, tiny_architecture
from shvit.model.attention import SingleHeadAttention
from shvit.model.config import VARIANTS, Config, Stage
from shvit.model.shvit import SHViT


@pytest.mark.parametrize("name", VARIANTS)
def test_features_have_the_strides_and_widths_of_the_table(name):
    model = shvit.create_model(name, num_classes=3).eval()
    maps = model.features(torch.randn(1, 3, 96, 130))
    widths = [stage.width for stage in VARIANTS[name].stages]
    assert [tuple(m.shape) for m in maps] == [(1, widths[0], 6, 9), (1, widths[1], 3, 5), (1, widths[2], 2, 3)]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 161), (32, 500)])
def test_any_size_from_32_up(size):
    model = tiny_architecture(5).build().eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_any_number_of_input_channels(channels):
    model = shvit.create_model("shvit_s1", num_classes=7, in_channels=channels).eval()
    assert model(torch.randn(1, channels, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 31, 64), (1, 3, 64, 31), (1, 4, 64, 64), (3, 64, 64)],
    ids=["low", "narrow", "channels", "unbatched"],
)
def test_impossible_images_are_named(shape):
    with pytest.raises(ValueError, match=r"images must be.*got"):
        tiny_architecture().build()(torch.randn(*shape))


def test_fresh_blocks_are_the_identity():
    model = SHViT(TINY, 2).eval()
    for stage in model.stages:
        for block in stage.blocks:
            channels = block.local.branch.conv.in_channels
            x = torch.randn(1, channels, 5, 7)
            torch.testing.assert_close(block(x), x)


def test_attention_sees_the_whole_map_and_only_its_own_channels():
    attention = randomize_norms(SingleHeadAttention(width=12, attended=4)).double().eval()
    attention.project = torch.nn.Identity()
    attention.act = torch.nn.Identity()
    x = torch.randn(1, 12, 4, 5, dtype=torch.float64)
    out = attention(x)
    torch.testing.assert_close(out[:, 4:], x[:, 4:])
    moved = x.clone()
    moved[0, 0, 3, 4] += 5  # one far pixel of an attended channel reaches every position
    assert ((attention(moved) - out)[:, :4].abs().amax(dim=1) > 1e-9).all()
    # compare with the textbook formula, token by token
    qkv = attention.qkv(attention.norm(x[:, :4])).flatten(2)[0]
    q, k, v = qkv[:16], qkv[16:32], qkv[32:]
    weights = torch.stack([torch.exp((q[:, i : i + 1] * k).sum(0) / 4) for i in range(20)])
    expected = v @ (weights / weights.sum(1, keepdim=True)).T
    torch.testing.assert_close(out[0, :4].flatten(1), expected)


def test_a_mixer_can_be_passed_in():
    seen = []

    class Spy(torch.nn.Identity):
        def __init__(self, width, attended):
            super().__init__()
            seen.append((width, attended))

    SHViT(VARIANTS["shvit_s1"], mixer=Spy)
    assert seen == [(224, 48)] * 4 + [(320, 68)] * 5


def test_distillation_head_gives_two_logits_in_training_and_their_mean_after():
    model = randomize_norms(tiny_architecture(4, distilled=True).build())
    images = torch.randn(3, 3, 64, 64)
    label, teacher = model(images)
    assert label.shape == teacher.shape == (3, 4)
    model.eval()
    pooled = model.features(images)[-1].mean((2, 3))
    torch.testing.assert_close(model(images), (model.head(pooled) + model.distillation_head(pooled)) / 2)


def test_deepcopy_channels_last_and_bf16_autocast():
    model = randomize_norms(shvit.create_model("shvit_s1", num_classes=10)).eval()
    images = torch.randn(2, 3, 64, 96)
    expected = model(images)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(images) - expected).abs().max() < 0.1 * expected.abs().max()


def test_torch_export_with_dynamic_batch_and_size():
    """From 65 pixels, since below that the map of stage 3 has one row, which torch.export takes for a constant."""
    model = randomize_norms(tiny_architecture(3).build()).eval()
    dynamic = torch.export.Dim.DYNAMIC
    images = torch.randn(2, 3, 160, 224)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},))
    for shape in ((5, 3, 130, 70), (3, 3, 65, 480)):
        other = torch.randn(shape)
        torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_torch_compile():
    model = randomize_norms(tiny_architecture(3).build()).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("shvit_s5", "did you mean shvit_s"), ("resnet50", "allowed are shvit_s1"), ("timm/nope", "timm has no model")],
)
def test_unknown_names_say_what_is_allowed(name, reason):
    with pytest.raises(shvit.InputError, match=reason):
        shvit.create_model(name)


@pytest.mark.parametrize(
    "stages", [(), (Stage(12, 1),), (Stage(16, -1),), (Stage(16, 1, attended=16),), (Stage(16, 1, attended=0),)]
)
def test_impossible_sizes_are_refused(stages):
    with pytest.raises(shvit.InputError):
        Config(stages)


@pytest.mark.parametrize("options", [{"num_classes": -1}, {"in_channels": 0}])
def test_impossible_classes_and_channels_are_refused(options):
    with pytest.raises(shvit.InputError, match="at least 1"):
        shvit.create_model("shvit_s1", **options)


def test_timm_models_have_the_same_interface():
    model = shvit.create_model("timm/mobilenetv3_small_050", num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    assert model(images).shape == (1, 5)
    assert len(model.features(images)) == 3
    assert model.image_size == 224
    assert model.architecture.to_dict()["name"] == "timm/mobilenetv3_small_050"
