"""Selection of the device and of the number of CPU threads."""

from __future__ import annotations

import os

import torch

from ..config import Accelerator
from ..data.sharding import processes
from ..errors import ConfigurationError


def select_device(accelerator: Accelerator) -> torch.device:
    """Return the torch device for a setting.

    Raises:
        ConfigurationError: the machine does not have the requested device.
    """
    present = {'cpu': True, 'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available()}
    if accelerator == 'auto':
        accelerator = 'cuda' if present['cuda'] else 'mps' if present['mps'] and processes().size == 1 else 'cpu'
    if not present[accelerator]:
        raise ConfigurationError(
            f"accelerator = '{accelerator}': this machine has no such device that torch {torch.__version__} can use; "
            "choose 'auto' or 'cpu'."
        )
    if accelerator != 'cpu' and processes().size > 1:
        _take_own_device(accelerator)
    return torch.device(accelerator)


def name_of(device: torch.device) -> str:
    """Return the kind of a device in a sentence: ``'CPU'`` or ``'GPU'``."""
    return 'CPU' if device.type == 'cpu' else 'GPU'


def _take_own_device(accelerator: Accelerator) -> None:
    """Use the GPU of this process's number on the machine."""
    there = torch.cuda.device_count() if accelerator == 'cuda' else 0
    if processes().local_size > there:
        raise ConfigurationError(
            f"accelerator = '{accelerator}': {processes().local_size} processes on this machine need one device each, "
            f"and it has {there} that several processes can use; start fewer, or choose 'cpu'."
        )
    torch.cuda.set_device(processes().local_rank)


def use_threads(threads: int) -> None:
    """Let torch use ``threads`` CPU threads; 0 for the cores of this process, divided among those that share a scan."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    torch.set_num_threads(threads or max(1, (available or 1) // processes().local_size))
