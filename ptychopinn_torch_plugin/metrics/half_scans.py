"""Half scans: the odd and the even positions are reconstructed separately, and the two objects are correlated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..data.scan import RawScan
from ..errors import InputError, MemoryLimitError, ReconstructionError
from ..observer import RESULT_LINE, Observer, SilentObserver
from ..types import FourierRingCorrelation, Reconstruction
from .frc import aligned, ring_correlation, window_of
from .overlap import overlap_warning
from .verdict import verdict

logger = logging.getLogger(__name__)

LEAST_POSITIONS = 2
"""Patterns with photons that a half must have."""
SHARES = ((0.0, 0.5), (0.5, 0.75), (0.75, 1.0))
"""Where the progress of the whole scan and of the two halves, which have half the patterns, begins and ends."""

_ENGINES = f'{__name__.partition(".")[0]}.engines'

Run = Callable[[RawScan, Config, Observer], Reconstruction]


def with_half_scans(run: Run, scan: RawScan, config: Config, observer: Observer | None) -> Reconstruction:
    """Reconstruct by ``run``, add the comparison of half scans if configured, and log the verdict.

    A warning says where the positions overlap too little.

    The halves start from the same probe and positions as the whole scan, and from a flat object, and pass through the
    same network and refinement; no result of one part enters another.

    A half that runs out of memory or diverges is a warning: the result is then that of the whole scan.

    Raises:
        InputError: half scans are requested, and a half has fewer than two patterns with photons.
        PtychoPINNError: any error of ``run`` for the whole scan.
    """
    listener = observer or SilentObserver()
    work = partial(_with_halves, run) if config.inference.half_scans else run
    result = work(scan, config, listener)
    if result.metrics is not None:
        refines_probe = config.refinement.refine_probe and config.refinement.refine_epochs > 0
        if sentence := overlap_warning(result.metrics.overlap, refines_probe=refines_probe):
            logger.warning('%s: %s', scan.name, sentence)
        logger.info('%s: %s', scan.name, verdict(result.metrics), extra=RESULT_LINE)
    return result


def _with_halves(run: Run, scan: RawScan, config: Config, observer: Observer) -> Reconstruction:
    if min(np.count_nonzero(scan.lit % 2), np.count_nonzero(scan.lit % 2 == 0)) < LEAST_POSITIONS:
        raise InputError(
            f'{scan.name} has {scan.lit.size} patterns with photons, too few to compare its odd and even ones: switch '
            'off "Compare half scans".'
        )
    goal = _Goal()
    whole = run(scan, _once(config), _PartObserver(observer, goal, 0))
    observer.on_result(whole)
    halves = []
    for part, name in ((1, 'odd'), (2, 'even')):
        if observer.should_stop():
            logger.info('Stopped before the half scans were compared.')
            return whole
        logger.info('Half scan %d of 2: the %s positions of %s, for comparison.', part, name, scan.name)
        half = _half_of(scan, part % 2, name)
        try:
            with _engine_quiet():
                halves.append(run(half, _for_half(config), _PartObserver(observer, goal, part)))
        except (MemoryLimitError, ReconstructionError) as error:
            logger.warning('%s The half scans are not compared; the result of the whole scan is complete.', error)
            return whole
    if observer.should_stop() or whole.metrics is None:
        logger.info('Stopped before the half scans were compared.')
        return whole
    return replace(whole, metrics=replace(whole.metrics, frc=compare_halves(*halves)))


def compare_halves(first: Reconstruction, second: Reconstruction) -> FourierRingCorrelation | None:
    """Align two reconstructions on one grid and correlate them where both are well illuminated; None if nowhere."""
    if first.metrics is None or second.metrics is None:
        return None
    window = window_of(np.minimum(first.metrics.photons_map, second.metrics.photons_map))
    if not window.any():
        return None
    fixed = first.object_array.astype(np.complex128)
    return ring_correlation(fixed, aligned(second.object_array.astype(np.complex128), fixed, window), window)


def _half_of(scan: RawScan, first: int, name: str) -> RawScan:
    """Return every other position from ``first`` on; the patterns are a view."""
    chosen = np.arange(first, scan.size, 2)
    return replace(
        scan,
        counts=scan.counts[first::2],
        positions=scan.positions[chosen],
        empty=np.flatnonzero(np.isin(chosen, scan.empty)),
        name=f'{scan.name}, {name} positions',
    )


def _once(config: Config) -> Config:
    """Return ``config`` without half scans."""
    return config.model_copy(update={'inference': config.inference.model_copy(update={'half_scans': False})})


def _for_half(config: Config) -> Config:
    """Return ``config`` without half scans, previews, verdict, calibration, geometry search and given object.

    They are for the whole scan; halves that begin with one object would correlate for that reason alone.
    """
    left_out = {'half_scans': False, 'preview_interval': 0, 'verify': False, 'calibrate': False}
    inference = config.inference.model_copy(update=left_out)
    refinement = config.refinement.model_copy(update={'refine_geometry': False, 'start': 'flat'})
    return config.model_copy(update={'inference': inference, 'refinement': refinement})


@contextmanager
def _engine_quiet() -> Iterator[None]:
    """Leave out what the engine logs at level INFO: a half repeats the lines of the whole scan."""
    log = logging.getLogger(_ENGINES)
    level = log.level
    if not log.isEnabledFor(logging.DEBUG):
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


class _Goal:
    """The goal of the whole scan, which is that of every part."""

    steps = 1


class _PartObserver:
    """An observer of one of the three parts: the whole scan is half of the progress, each half scan a quarter."""

    def __init__(self, observer: Observer, goal: _Goal, number: int) -> None:
        self._observer = observer
        self._goal = goal
        self._number = number

    def on_stage(self, stage: str) -> None:
        self._observer.on_stage(stage if self._number == 0 else f'half scan {self._number} of 2: {stage}')

    def on_progress(self, done: int, goal: int) -> None:
        if self._number == 0:
            self._goal.steps = goal
        begin, end = SHARES[self._number]
        whole = round(self._goal.steps / SHARES[0][1])
        self._observer.on_progress(round(whole * (begin + (end - begin) * min(1.0, done / max(goal, 1)))), whole)

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        if self._number == 0:
            self._observer.on_losses(epoch, training, validation)

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        if self._number == 0:
            self._observer.on_preview(object_array)

    def on_result(self, reconstruction: Reconstruction) -> None:
        """Ignore the result of a part: the caller reports that of the whole scan."""

    def should_stop(self) -> bool:
        return self._observer.should_stop()
