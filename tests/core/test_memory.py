"""retain_freed_memory: freed memory comes back. In processes of their own: it is for the life of a process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
import jax_maddness

def faults_of_the_second():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.empty(1 << 25, np.uint8).fill(1)  # more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults_of_the_second(), jax_maddness.retain_freed_memory(), faults_of_the_second())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_a_large_array_gets_the_pages_of_the_last_one():
    run = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    before, agreed, after = run.stdout.split()
    assert agreed == "True"
    assert int(before) > 10 * max(int(after), 1)
