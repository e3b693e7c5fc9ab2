"""The instruction sets in the provenance are those of the processor."""

import platform

import pytest
import torch

from shvit.provenance import facts, instructions


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="torch tells of x86 alone")
def test_the_instructions_are_those_that_pytorch_finds():
    found = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX-512": torch.cpu._is_avx512_supported(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    assert [name for name in instructions() if name in found] == [name for name, has in found.items() if has]
    assert facts()["hardware"]["instructions"] == instructions()
