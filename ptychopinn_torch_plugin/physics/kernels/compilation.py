"""Compilation of numba functions, with a cache on disk where one can be written.

Compiled code is kept in numba's cache (beside the source, or in the user's cache folder; ``NUMBA_CACHE_DIR`` names
another one), so that only the first process compiles. A cache that cannot be written costs the compilation in every
process and nothing else. The cache knows a function by its source file: compiled functions that call each other are in
one file, and constants of other files are arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

logger = logging.getLogger(__name__)

Function = TypeVar('Function', bound=Callable[..., Any])

FAST_MATH = frozenset({'reassoc', 'contract', 'arcp', 'nsz', 'afn'})
"""NaN and infinity keep their meaning (no 'nnan', 'ninf'): a diverging refinement is recognised by them."""


def compiled(function: Function) -> Function:
    """Compile ``function`` for the types of its arguments at its first call; it runs without the interpreter's lock."""
    try:
        dispatcher = _compile(function, cache=True)
    except RuntimeError as error:  # numba found no folder that it can write to
        logger.debug('%s is compiled in every process: %s', function, error)
        dispatcher = _compile(function, cache=False)
    return cast(Function, dispatcher)


def _compile(function: Callable[..., Any], *, cache: bool) -> object:
    return numba.njit(function, cache=cache, nogil=True, fastmath=set(FAST_MATH), error_model='numpy')
