"""How the rows are timed: CPU time of one thread, or device time on a GPU; medians, and ratios within a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

REFERENCE_PAIR_US = {64: 6.5, 128: 37.5}
"""Microseconds of a forward and an inverse transform, by the side of a pattern, on the machine the goals are for."""


@dataclass(frozen=True)
class Row:
    """One row of the table; also a record of the JSON."""

    name: str
    value: float
    """What was measured; smaller is better."""
    unit: str
    reach: float | None = None
    """The goal; None where there is none."""
    transforms: float | None = None
    """Cost of the Fourier transforms alone in the same run, in the same unit."""
    slowdown: float = 1.0
    """Cost of the transforms in this run relative to the machine that the goals are for."""
    note: str = ''

    @property
    def share(self) -> float | None:
        """Share of the transforms in the value."""
        return None if self.transforms is None else self.transforms / self.value

    @property
    def scaled(self) -> float:
        """The value on the machine that the goals are for."""
        return self.value / self.slowdown

    @property
    def is_reached(self) -> bool | None:
        """Whether the scaled value is as good as the goal."""
        return None if self.reach is None else self.scaled <= self.reach

    def __str__(self) -> str:
        """The row in Markdown."""
        share = '' if self.share is None else f'{100 * self.share:.0f} %'
        transforms = '' if self.transforms is None else f'{self.transforms:.3g}'
        reach = '' if self.reach is None else f'{self.reach:.4g}'
        verdict = {None: '', True: 'reached', False: '**missed**'}[self.is_reached]
        cells = (
            self.name,
            f'{self.value:.3g} {self.unit}',
            transforms,
            share,
            f'{self.scaled:.3g}',
            reach,
            verdict,
            self.note,
        )
        return '| ' + ' | '.join(cells) + ' |'


HEAD = (
    '| what | measured | transforms alone | share | scaled | reach | | where the time goes |\n'
    '| --- | --- | --- | --- | --- | --- | --- | --- |'
)


class Clock:
    """Seconds of work: CPU time of this process, or wall time until a GPU has finished."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """Return the seconds so far."""
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
            return time.perf_counter()
        return time.process_time()


def median(values: list[float]) -> float:
    """Return the median."""
    return float(np.median(values))


def transform_pair_us(side: int, device: torch.device) -> float:
    """Return the microseconds of one forward and one inverse transform of a pattern, the median of many batches."""
    count = max(1, 2**20 // (8 * side * side)) if device.type == 'cpu' else 1024
    waves = torch.randn(count, side, side, dtype=torch.complex64, device=device)
    clock, found = Clock(device), []

    def pair() -> None:
        torch.fft.ifft2(torch.fft.fft2(waves, norm='backward'), norm='forward')

    pair()
    for _ in range(15):
        begin = clock.now()
        for _ in range(4):
            pair()
        found.append((clock.now() - begin) / (4 * count))
    return 1e6 * median(found)


def repeated(make: Callable[[], tuple[float, float]], repetitions: int) -> tuple[float, float]:
    """Return the medians of two costs that are measured one after the other; their ratio is the median ratio."""
    pairs = [make() for _ in range(repetitions)]
    value = median([one for one, _ in pairs])
    return value, value * median([other / one for one, other in pairs])
