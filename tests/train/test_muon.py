"""Muon, compared with the singular value decomposition for matrices and with torch's AdamW for vectors."""

import pytest
import torch

from shvit.train.muon import Muon, orthogonalized


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 8), (16, 5), (5, 40), (64, 256)])
def test_orthogonalized_keeps_the_directions_and_evens_the_sizes(shape, dtype):
    matrix = torch.randn(shape, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalized(matrix, dtype)
    assert result.dtype == torch.float64
    in_that_basis = u.T @ result @ vt.T
    sizes = in_that_basis.diagonal()
    assert ((sizes > 0.5) & (sizes < 1.4)).all()
    assert (in_that_basis - torch.diag(sizes)).abs().max() < (0.1 if dtype else 1e-6)


def test_the_size_of_a_gradient_does_not_matter():
    matrix = torch.randn(12, 20)
    torch.testing.assert_close(orthogonalized(1e-3 * matrix), orthogonalized(1e3 * matrix), rtol=1e-4, atol=1e-5)
    assert orthogonalized(torch.zeros(3, 4)).abs().max() == 0


def test_vectors_take_the_steps_of_adamw():
    one, other = (torch.nn.Parameter(torch.arange(5.0)) for _ in range(2))
    ours = Muon([{"params": [one], "weight_decay": 0.1}], lr=0.01)
    theirs = torch.optim.AdamW([other], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(6):
        for parameter, optimizer in ((one, ours), (other, theirs)):
            parameter.grad = torch.sin(torch.arange(5.0) + step)
            optimizer.step()
    torch.testing.assert_close(one, other)


def test_a_step_of_a_convolution_has_the_size_of_adamws():
    weight = torch.nn.Parameter(torch.zeros(32, 16, 3, 3))
    optimizer = Muon([weight], lr=0.1)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.3)


def test_it_solves_what_it_should():
    torch.manual_seed(0)
    inputs, target = torch.randn(200, 10), torch.randn(10, 4)
    layer = torch.nn.Linear(10, 4)
    optimizer = Muon(layer.parameters(), lr=0.5)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / 300)
        loss = (layer(inputs) - inputs @ target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 1e-3


def test_state_survives_saving():
    weight = torch.nn.Parameter(torch.randn(4, 6))
    first = Muon([weight], lr=0.1)
    weight.grad = torch.randn(4, 6)
    first.step()
    second = Muon([weight], lr=0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[weight]["momentum"], first.state[weight]["momentum"])
