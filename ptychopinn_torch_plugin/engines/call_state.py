"""The state of torch and of the random numbers at the start of a call, in a process that serves several calls."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_SEED = torch.initial_seed()
"""The seed that torch has in every new process."""


@contextmanager
def as_in_new_process() -> Iterator[None]:
    """Begin with the random numbers of a new process; restore torch's settings and release memory at the exit.

    So a call gives the same result, to the last bit, whether or not other calls came before it in this process.
    Unused memory of a GPU goes back to its driver.
    """
    torch.manual_seed(_SEED)
    deterministic = torch.get_deterministic_debug_mode()
    fills_memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    threads, dtype, precision = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ('benchmark', 'deterministic', 'allow_tf32')}
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        torch.set_deterministic_debug_mode(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fills_memory  # type: ignore[attr-defined]
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        for name, value in flags.items():
            setattr(cudnn, name, value)
        # In a new process these two begin with a seed of the system.
        random.seed()
        np.random.seed()
        gc.collect()
        torch.cuda.empty_cache()
