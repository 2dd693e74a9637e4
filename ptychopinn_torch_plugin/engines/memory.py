"""What to do when the memory of a device runs out: take smaller batches."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..data.sharding import processes
from ..errors import MemoryLimitError
from ..limits import says_out_of_memory

logger = logging.getLogger(__name__)

HALVINGS = 2
"""How often a batch is halved before giving up: what needs less than a quarter needs other settings."""

Result = TypeVar('Result')


def with_smaller_batches(work: Callable[[int], Result], batch_size: int, what: str) -> Result:
    """Return ``work(batch_size)``; where memory runs out, try again with half the batch, ``HALVINGS`` times at most.

    Args:
        work: does everything anew for a batch size; it keeps nothing on the device when it fails.
        batch_size: patterns in memory at a time.
        what: the work in the log, for example ``'The refinement'``.

    Raises:
        MemoryLimitError: the smallest batch is too large as well.
    """
    for attempt in range(HALVINGS + 1):
        try:
            return work(batch_size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            processes().tell(error)  # all take smaller batches, not only the one whose memory ran out
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Here the error is gone, and with it the frames whose tensors it held.
        _free()
        if attempt == HALVINGS or batch_size == 1:
            break
        batch_size = (batch_size + 1) // 2
        logger.warning('%s ran out of memory (%s): again with batches of %d patterns.', what, words, batch_size)
    raise MemoryLimitError(
        f'{what} ran out of memory with batches of {batch_size} patterns as well ({words}): choose a smaller '
        '"Batch size (reconstruction)" or "Window size", or another "Accelerator (reconstruction)".'
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that memory ran out, on any device: torch has an own class for CUDA only."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def _free() -> None:
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
