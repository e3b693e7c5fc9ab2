"""Rates are of this machine, so only that they are rates can be asserted."""

import math

import torch

from shvit.bench.machine import Machine, Product, measure_machine


def test_rates_are_positive_and_finite(quick_machine):
    threads = torch.get_num_threads()
    machine = measure_machine(1, "cpu")
    assert {"fp32", "bf16", "int8"} == set(machine.products)
    rates = [product.rate for product in machine.products.values()]
    assert all(math.isfinite(rate) and rate > 0 for rate in [*rates, machine.copy_cache, machine.copy_memory])
    assert all(product.side in (32, 64) and product.by for product in machine.products.values())
    assert torch.get_num_threads() == threads


def test_share_of_the_ceiling():
    machine = Machine({"fp32": Product(2e9, 256, "torch.mm")}, 1.0, 1.0)
    assert machine.share("fp32", 1e9) == 0.5
    assert machine.share("fp16", 1e9) is None
