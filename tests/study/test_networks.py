"""The experiments' networks go wherever a network's name does, and heads taken out are heads switched off."""

import pytest
import timm
import torch

import shvit
from conftest import randomize_norms
from shvit.errors import InputError
from shvit.model.architecture import is_network
from shvit.study.heads import attention_layers, heads_off
from shvit.study.networks import NETWORK_KINDS
from shvit.study.prune import can_prune, with_single_heads


@pytest.mark.parametrize("kind", NETWORK_KINDS)
def test_each_folds_to_the_same_function(kind):
    model = randomize_norms(shvit.create_model(f"study/s1-{kind}", 5)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(shvit.fuse(model)(images), model(images), rtol=1e-3, atol=1e-4)


def test_an_unknown_name_is_told_what_is_allowed():
    with pytest.raises(InputError, match="multi-head"):
        shvit.create_model("study/s1-nothing")


def test_four_stages_begin_at_stride_4():
    assert [stride for _, stride in shvit.create_model("study/s1-four-stages").maps] == [4, 8, 16, 32]


def test_arguments_of_timm_follow_the_name():
    model = shvit.create_model("timm/deit_tiny_patch16_224:img_size=64:depth=1", 5)
    assert model.image_size == 64
    assert shvit.create_model("timm/deit_tiny_patch16_224:img_size=(64,64):depth=1", 5).image_size == 64
    with pytest.raises(InputError, match="img_size=160"):
        shvit.create_model("timm/deit_tiny_patch16_224:img_size=x", 5)


@pytest.mark.parametrize(
    "name",
    ["study/s1-multi-head", "timm/deit_tiny_patch16_224:img_size=64:depth=2", "timm/swin_tiny_patch4_window7_224"],
)
def test_heads_taken_out_are_heads_switched_off(name):
    model = randomize_norms(shvit.create_model(name, 5)).eval().double()
    size = model.image_size if name.startswith("timm") else 64
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    kept = {layer: layer.heads - 1 for layer in attention_layers(model)}
    off = {layer: set(range(layer.heads)) - {head} for layer, head in kept.items()}
    with torch.no_grad():
        with heads_off(off):
            expected = model(images)
        torch.testing.assert_close(with_single_heads(model, kept)(images), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", "vit_relpos_small_patch16_224", "eva02_tiny_patch14_224"])
def test_heads_that_share_more_than_is_known_stay_in(name):
    assert not any(can_prune(layer) for layer in attention_layers(timm.create_model(name)))


def test_a_file_in_a_folder_of_a_familys_name_is_a_file():
    assert not is_network("study/best.safetensors")
    assert is_network("study/s1-multi-head")
