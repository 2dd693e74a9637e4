"""The memory that this process may use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ptychopinn_torch_plugin.limits import memory_limit, physical_memory


@pytest.mark.parametrize('kind', ['RLIMIT_AS', 'RLIMIT_DATA'])
def test_a_limit_of_the_shell_counts(kind: str) -> None:
    program = (
        f'import resource; resource.setrlimit(resource.{kind}, (3 * 2**30, -1)); '
        'from ptychopinn_torch_plugin.limits import memory_limit; print(memory_limit())'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(3 * 2**30, memory_limit())
    assert memory_limit() <= physical_memory()
