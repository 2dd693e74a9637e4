"""Limits of what is accepted, and the memory of this machine."""

from __future__ import annotations

import os

MIN_PATTERN_PX = 16
"""Shortest side of a diffraction pattern, pixels."""
MAX_PATTERN_PX = 4096
"""Longest side of a diffraction pattern, pixels."""


def physical_memory() -> int:
    """Return the bytes of main memory of this machine; 64 GiB where the system does not report them."""
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        return int(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return 2**36
