"""Limits of what is accepted, and the memory of this machine."""

from __future__ import annotations

import os

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


def physical_memory() -> int:
    """Return the bytes of main memory of this machine; 64 GiB where the system does not report them."""
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        return int(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return 2**36
