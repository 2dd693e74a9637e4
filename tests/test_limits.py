"""The memory that this process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptychopinn_torch_plugin import limits
from ptychopinn_torch_plugin.limits import memory_limit, physical_memory, says_out_of_memory


@pytest.mark.parametrize('kind', ['RLIMIT_AS', 'RLIMIT_DATA'])
def test_a_limit_of_the_shell_counts(kind: str) -> None:
    program = (
        f'import resource; resource.setrlimit(resource.{kind}, (3 * 2**30, -1)); '
        'from ptychopinn_torch_plugin.limits import memory_limit; print(memory_limit())'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(3 * 2**30, memory_limit())
    assert memory_limit() <= physical_memory()


@pytest.mark.parametrize(
    ('membership', 'expected'),
    [
        ('0::/job/step\n', [5000, 3000]),
        ('1:memory:/old\n0::/job/step\n', [5000, 3000]),
        ('0::/job\n', [3000]),
        ('0::/\n', []),
        ('0::/elsewhere\n', []),
        ('1:memory:/job/step\n', []),
        (None, []),
    ],
)
def test_the_limits_of_control_groups_and_those_above_them(
    membership: str | None, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tmp_path / 'sys' / 'fs' / 'cgroup' / 'job' / 'step'
    step.mkdir(parents=True)
    (step / 'memory.max').write_text('5000\n')
    (step.parent / 'memory.max').write_text('3000\n')
    (step.parent.parent / 'memory.max').write_text('max\n')
    (tmp_path / 'sys' / 'memory.max').write_text('7\n')  # above the root of the groups
    (tmp_path / 'proc' / 'self').mkdir(parents=True)
    if membership is not None:
        (tmp_path / 'proc' / 'self' / 'cgroup').write_text(membership)
    monkeypatch.setattr(limits, 'Path', lambda name: tmp_path / name.removeprefix('/'))
    assert limits._control_group_limits() == expected
    monkeypatch.setattr(limits, 'physical_memory', lambda: 4000)
    assert memory_limit() == min([4000, *expected])


def test_physical_memory_is_pages_times_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, 'sysconf', {'SC_PHYS_PAGES': 1000, 'SC_PAGE_SIZE': 4096}.__getitem__)
    assert physical_memory() == 4_096_000
    monkeypatch.setattr(os, 'sysconf_names', {})
    assert physical_memory() == 64 * 2**30
    monkeypatch.delattr(os, 'sysconf')
    assert physical_memory() == 64 * 2**30


@pytest.mark.parametrize(
    ('text', 'is_about_memory'),
    [
        ('CUDA out of memory. Tried to allocate 2 GiB', True),
        ("RuntimeError: can't start new thread", True),
        ('std::bad_alloc', True),
        ('MemoryError', True),
        ('Unable to allocate 3 GiB for an array', True),
        ('cuDNN error: CUDNN_STATUS_ALLOC_FAILED', True),
        ('index out of bounds', False),
        ('', False),
    ],
)
def test_messages_about_full_memory(text: str, *, is_about_memory: bool) -> None:
    assert says_out_of_memory(text) == is_about_memory
