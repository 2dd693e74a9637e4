"""Estimate the time and the memory of a run before it begins.

The time is the number of operations, counted from the settings, times the time of each on the reference machine (one
core of a server; ``docs/benchmarks.md``). It is good to a factor of two on another CPU; a run that has ended corrects
the next estimate (:class:`Calibration`). On a GPU nothing is known before the first run.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Literal

from .config import Config

Work = Literal['train', 'reconstruct', 'refine']

SOLVER_S = 14e-9
"""Seconds of the solver for one pixel of one pattern and mode in one epoch, probe and positions refined."""
FIXED_SHARE = 0.55
"""Share of that time if neither probe nor positions are refined."""
NETWORK_S = 11e-9
"""Seconds of the network for one pixel of one pattern in one step at inference, in a network of the default width."""
TRAINING_S = 190e-9
"""The same in training, gradient included."""
START_S = 6.0
"""Seconds from the start of the worker to its first epoch."""
METRICS_EPOCHS = 2
"""The metrics take as long as so many epochs of the solver."""
FIRST_CALIBRATION_EPOCHS = 40
LATER_CALIBRATION_EPOCHS = 10
"""Epochs of the solver before the first and before every later epoch of a training that learns the probe."""
CORE_EXPONENT = 0.7
"""The speed grows with this power of the number of cores."""
DEFAULT_WIDTH = 16

WORKER_BYTES = 700e6
"""Memory of the worker beside the patterns: torch, the compiled kernels, a batch."""
GRAPH_BYTES = 110.0
"""Memory in training for one pixel of one pattern of a batch and one step, in a network of the default width."""
BATCH_PATTERNS = 64
GRID_BYTES = 64.0
"""Memory for one pixel of the object grid."""


@dataclass(frozen=True)
class ScanSize:
    """What an estimate needs to know about a scan."""

    patterns: int
    height: int
    width: int
    modes: int
    pattern_bytes: int = 4
    """Bytes of one pixel of the stored patterns."""
    object_pixels: int = 0

    @property
    def pixels(self) -> int:
        """Number of pixels of all patterns together."""
        return self.patterns * self.height * self.width


@dataclass(frozen=True)
class Device:
    """Where a run is computed."""

    is_gpu: bool
    cores: int

    @property
    def name(self) -> str:
        """Name in a sentence."""
        return 'this GPU' if self.is_gpu else f'this CPU ({self.cores} core{"" if self.cores == 1 else "s"})'


@dataclass(frozen=True)
class Cost:
    """Estimated time and memory of a run."""

    seconds: float | None
    """None where nothing is known about the speed of the device."""
    memory_bytes: float


class Calibration:
    """Corrects estimates by the runs of this session: remembers measured over estimated time, by work and device."""

    def __init__(self) -> None:
        self._factors: dict[tuple[Work, bool], float] = {}

    def add(self, work: Work, device: Device, estimated_s: float, measured_s: float) -> None:
        """Remember a whole run; one of less than two seconds beyond the start of the worker tells nothing."""
        if min(estimated_s, measured_s) > START_S + 2:
            self._factors[work, device.is_gpu] = (measured_s - START_S) / (estimated_s - START_S)

    def factor(self, work: Work, device: Device) -> float | None:
        """Return the correction; 1 for a CPU, and None for a GPU, on which nothing was run yet."""
        return self._factors.get((work, device.is_gpu), None if device.is_gpu else 1.0)


def device_of(work: Work, config: Config) -> Device:
    """Return the device that the settings choose, as far as that can be known without torch."""
    section = config.training if work == 'train' else config.inference
    is_gpu = section.accelerator in ('cuda', 'mps')
    if section.accelerator == 'auto':
        is_gpu = shutil.which('nvidia-smi') is not None
    return Device(is_gpu, section.threads or usable_cores())


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def raw_seconds(work: Work, scan: ScanSize, config: Config, device: Device) -> float:
    """Return the time of a run on the reference machine with as many cores, in seconds."""
    seconds = _training_seconds(scan, config) if work == 'train' else _reconstruction_seconds(work, scan, config)
    return START_S + seconds / float(device.cores**CORE_EXPONENT)


def estimate(work: Work, scan: ScanSize, config: Config, calibration: Calibration) -> Cost:
    """Return the expected cost of a run."""
    device = device_of(work, config)
    factor = calibration.factor(work, device)
    seconds = None
    if factor is not None:
        seconds = START_S + factor * (raw_seconds(work, scan, config, device) - START_S)
    return Cost(seconds, _memory_bytes(work, scan, config))


def sentence(work: Work, scan: ScanSize, config: Config, calibration: Calibration) -> str:
    """Return the estimate in words.

    For example: "516 patterns of 128 x 128 pixels, one probe mode: 20 epochs, about 3 minutes on this CPU (2 cores),
    1.2 GB."
    """
    cost, device = estimate(work, scan, config, calibration), device_of(work, config)
    modes = config.refinement.probe_modes if work != 'train' and config.refinement.probe_modes else scan.modes
    epochs = config.training.epochs if work == 'train' else config.refinement.refine_epochs
    time = 'time known after the first run' if cost.seconds is None else f'about {duration(cost.seconds)}'
    return (
        f'{scan.patterns:,} patterns of {scan.height} x {scan.width} pixels, '
        f'{"one probe mode" if modes == 1 else f"{modes} probe modes"}: '
        f'{"no refinement" if epochs == 0 else "1 epoch" if epochs == 1 else f"{epochs:,} epochs"}, '
        f'{time} on {device.name}, {cost.memory_bytes / 1e9:.1f}\u00a0GB.'
    )


def duration(seconds: float) -> str:
    """Return a time in words, rounded as an estimate deserves: ``'20 s'``, ``'4 minutes'``, ``'2.5 hours'``."""
    if seconds < 90:
        return f'{max(5, 5 * round(seconds / 5))} s'
    if seconds < 90 * 60:
        return f'{max(2, round(seconds / 60))} minutes'
    return f'{seconds / 3600:.1f} hours'


def _training_seconds(scan: ScanSize, config: Config) -> float:
    training = config.training
    width = float((config.model.width / DEFAULT_WIDTH) ** 0.5)
    steps = config.model.steps
    epoch = TRAINING_S * scan.pixels * steps * width
    if training.probe_trainable or training.positions_trainable:
        epoch += (
            SOLVER_S * scan.pixels * scan.modes * LATER_CALIBRATION_EPOCHS + NETWORK_S * scan.pixels * steps * width
        )
    first = FIRST_CALIBRATION_EPOCHS * SOLVER_S * scan.pixels * scan.modes if training.probe_trainable else 0.0
    return first + training.epochs * epoch


def _reconstruction_seconds(work: Work, scan: ScanSize, config: Config) -> float:
    refinement = config.refinement
    modes = max(refinement.probe_modes, scan.modes)
    share = 1.0 if refinement.refine_probe or refinement.refine_positions else FIXED_SHARE
    solver = SOLVER_S * scan.pixels * modes
    seconds = (share * refinement.refine_epochs + METRICS_EPOCHS) * solver
    if work == 'reconstruct':
        steps = config.inference.steps or 2 * config.model.steps
        seconds += NETWORK_S * scan.pixels * steps * (config.model.width / DEFAULT_WIDTH) ** 0.5
    return seconds * (2 if config.inference.half_scans else 1)


def _memory_bytes(work: Work, scan: ScanSize, config: Config) -> float:
    memory = WORKER_BYTES + scan.pixels * scan.pattern_bytes + GRID_BYTES * scan.object_pixels
    if work == 'train':
        groups = max(1, config.training.batch_size)
        patterns = max(BATCH_PATTERNS, groups * config.data.group_size)
        width = config.model.width / DEFAULT_WIDTH
        memory += GRAPH_BYTES * patterns * scan.height * scan.width * config.model.steps * width
    return float(memory)
