"""1x1 convolutions computed as products give what they gave, forwards and backwards."""

import copy

import torch

import shvit
from conftest import tiny_architecture
from shvit.train.products import ProductConv2d, use_products


def test_outputs_and_gradients_are_those_of_convolutions():
    plain = tiny_architecture().build()
    products = copy.deepcopy(plain)
    use_products(products)
    assert {type(each) for each in products.modules()} - {type(each) for each in plain.modules()} == {ProductConv2d}
    assert not isinstance(products.stem[0].conv, ProductConv2d)
    images = torch.randn(4, 3, 40, 48).contiguous(memory_format=torch.channels_last)
    for network in (plain, products):
        network(images).square().sum().backward()
    assert products.state_dict().keys() == plain.state_dict().keys()
    for (name, one), other in zip(plain.named_parameters(), products.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(products.eval()(images), plain.eval()(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shvit.fuse(products)(images), plain(images), rtol=1e-3, atol=1e-4)


def test_biases_strides_and_groups():
    convolutions = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 1), torch.nn.Conv2d(6, 6, 1, stride=2), torch.nn.Conv2d(6, 6, 1, groups=2)
    )
    images = torch.randn(2, 4, 6, 8)
    expected = convolutions(images)
    use_products(convolutions)
    assert [type(each) is ProductConv2d for each in convolutions] == [True, False, False]
    torch.testing.assert_close(convolutions(images), expected)
