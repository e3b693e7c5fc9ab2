"""Freed memory is returned or kept, as the command needs it."""

import platform
import subprocess
import sys

import pytest

CODE = """
import os
import numpy as np
from shvit import allocator

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

getattr(allocator, {!r})()
before = resident()
block = np.ones(100 << 20, np.uint8)
assert resident() - before > 90
del block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
@pytest.mark.parametrize(("call", "kept"), [("return_large_blocks", False), ("keep_blocks", True)])
def test_freed_memory(call, kept):
    done = subprocess.run([sys.executable, "-c", CODE.format(call)], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 90) is kept
