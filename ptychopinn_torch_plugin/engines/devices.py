"""Selection of the device and of the number of CPU threads."""

from __future__ import annotations

import os

import torch

from ..config import Accelerator
from ..errors import ConfigurationError


def select_device(accelerator: Accelerator) -> torch.device:
    """Return the torch device for a setting.

    Raises:
        ConfigurationError: the machine does not have the requested device.
    """
    present = {'cpu': True, 'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available()}
    if accelerator == 'auto':
        return torch.device(next(name for name in ('cuda', 'mps', 'cpu') if present[name]))
    if not present[accelerator]:
        raise ConfigurationError(
            f"accelerator = '{accelerator}': this machine has no such device that torch {torch.__version__} can use; "
            "choose 'auto' or 'cpu'."
        )
    return torch.device(accelerator)


def use_threads(threads: int) -> None:
    """Let torch use ``threads`` CPU threads; 0 for every core that this process may run on."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    torch.set_num_threads(threads or available or 1)
