"""Limits of what is accepted, and the memory of this machine."""

from __future__ import annotations

import os
from pathlib import Path

MIN_PATTERN_PX = 16
"""Shortest side of a diffraction pattern, pixels."""
MAX_PATTERN_PX = 4096
"""Longest side of a diffraction pattern, pixels."""

_OUT_OF_MEMORY_SIGNS = (
    'memoryerror',
    'out of memory',
    'allocate memory',
    'not enough memory',
    'unable to allocate',
    'bad_alloc',
    'bad allocation',
    "can't start new thread",
    'failed to map segment',
    'cudnn_status_alloc_failed',
    'cublas_status_alloc_failed',
)
"""Parts of the messages of torch, CUDA, cuDNN, numpy, C++, Python and the system about full memory, in lower case."""


def says_out_of_memory(text: str) -> bool:
    """Return whether an error message says that memory ran out, whichever library wrote it."""
    text = text.lower()
    return any(sign in text for sign in _OUT_OF_MEMORY_SIGNS)


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: those of the machine, or a limit of the shell or job."""
    limits = [physical_memory()]
    try:
        import resource
    except ImportError:  # no such limits on this system
        return limits[0]
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return min([*limits, *_control_group_limits()])


def _control_group_limits() -> list[int]:
    """Return the memory limits of the control groups (version 2) of this process, as schedulers set them on Linux."""
    root = Path('/sys/fs/cgroup')
    membership = Path('/proc/self/cgroup')
    if not membership.is_file():
        return []
    names = [line.removeprefix('0::/') for line in membership.read_text().splitlines() if line.startswith('0::/')]
    limits = []
    for name in names:
        for group in (root / name, *(root / name).parents):
            file = group / 'memory.max'
            if group.is_relative_to(root) and file.is_file() and (text := file.read_text().strip()).isdigit():
                limits.append(int(text))
    return limits


def physical_memory() -> int:
    """Return the bytes of main memory of this machine; 64 GiB where the system does not report them."""
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        return int(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return 2**36
