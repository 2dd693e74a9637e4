"""The choice of the kernels."""

from __future__ import annotations

import functools
import logging
import sys
import time

import torch

from ...config import KernelChoice
from ...errors import MissingDependencyError
from .reference import REFERENCE
from .sums import Kernels

logger = logging.getLogger(__name__)

NOTICEABLE_S = 2.0


def choose_kernels(choice: KernelChoice, device: torch.device) -> Kernels:
    """Return the kernels for ``device``: 'numba' on a CPU where it is installed, otherwise 'torch'.

    Args:
        choice: 'auto', or the kernels to use on a CPU; other devices always use torch.
        device: where the scan is.

    Raises:
        MissingDependencyError: 'numba' was requested and cannot be imported.
    """
    if device.type != 'cpu' or choice == 'torch':
        return REFERENCE
    try:
        return _compiled()
    except ImportError as error:
        if choice == 'numba':
            raise MissingDependencyError(
                f"execution.kernels = 'numba': numba cannot be imported ({error}): run "
                f'"{sys.executable} -m pip install numba", or choose "auto" or "torch".'
            ) from error
        return REFERENCE._replace(description=f'torch, because numba cannot be imported ({error})')


@functools.cache
def _compiled() -> Kernels:
    from .compiled import COMPILED, compile_all

    begin = time.perf_counter()
    compile_all()
    seconds = time.perf_counter() - begin
    if seconds > NOTICEABLE_S:
        logger.info('Prepared the fast computation on this CPU in %.0f s; later runs use it again.', seconds)
    return COMPILED
