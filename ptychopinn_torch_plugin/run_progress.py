"""Progress of one run as people see it: stage, epoch, losses, and the time that is left.

The window, the terminal and ``status.json`` use it, so that they say the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from .config import Config
from .estimate import Work, duration
from .observer import FITTING_PROBE, REFINING

LEAST_SHARE: Final = 0.02
LEAST_SECONDS: Final = 5.0
"""Share of the work and time since the first report from which on the time left is estimated."""
RECENT_SHARE: Final = 0.3
"""The speed is that of the last part of the time so far: early stages can be slower or faster than later ones."""
PREVIEW_PIXELS: Final = 400
"""Most pixels of a side of the preview that is kept."""
MOST_MARKS: Final = 4000
"""Reports that are remembered; where there are more, every other one is forgotten."""

_TITLES: Final[dict[Work, str]] = {'train': 'Training', 'reconstruct': 'Reconstruction', 'refine': 'Refinement'}


class RunProgress:
    """Progress of one run. Written by the thread of the run, read by that of the window.

    Args:
        clock: returns the time in seconds, for its differences.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        """Units of work done."""
        self.goal = 1
        """Units of work in all, at least 1."""
        self.kind: Work | None = None
        """What is run; None until it has begun."""
        self.stage = ''
        """Name of the present stage; empty before the first one."""
        self.training: tuple[tuple[int, float], ...] = ()
        """Epochs and losses: of the training, or the deviances of a refinement."""
        self.validation: tuple[tuple[int, float], ...] = ()
        """Epochs and losses on held-out positions."""
        self.config: Config | None = None
        """Settings of the run; None until it has begun."""
        self.finished_after: float | None = None
        """Seconds that the whole run took; None where it has not reached its goal."""
        self.makes_product = True
        """Whether the result is a product; False for a training."""
        self.preview: npt.NDArray[np.complex64] | None = None
        """Object that the network of a training reconstructs, thinned out for a picture; None before there is one."""
        self.preview_epoch = 0
        """Epoch after which it was reconstructed."""
        self.epochs = 0
        """Epochs of the whole run; 0 where it has none."""
        self._is_supervised = False
        self._clock = clock
        self._begun = clock()
        self._marks: list[tuple[float, float]] = []

    def begin(self, kind: Work, config: Config) -> None:
        """Begin a run of the given kind."""
        self.epochs = config.training.epochs if kind == 'train' else config.refinement.refine_epochs
        self._is_supervised = kind == 'train' and config.model.model_type == 'supervised'
        self.kind, self.config = kind, config

    def update(self, done: int, goal: int) -> None:
        """Receive the progress that the engine reports; it never goes back."""
        fraction = self.fraction
        self.goal = max(goal, 1)
        self.done = min(max(done, 0), self.goal)
        self._marks.append((self._clock(), max(self.fraction, fraction)))
        if len(self._marks) > MOST_MARKS:
            self._marks = [*self._marks[:1], *self._marks[2::2]]

    def add_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Receive the losses of an epoch."""
        if self.training and epoch <= self.training[-1][0]:  # repeated in smaller batches
            self.training = self.validation = ()
        self.training = (*self.training, (epoch, training))
        if validation is not None:
            self.validation = (*self.validation, (epoch, validation))

    def show(self, object_array: npt.NDArray[np.complex64]) -> None:
        """Receive the object ``(h, w)`` that the network of a training reconstructs."""
        step = max(1, -(-max(object_array.shape) // PREVIEW_PIXELS))
        self.preview = object_array[::step, ::step].copy()
        self.preview_epoch = self.training[-1][0] if self.training else 0

    def finish(self) -> int:
        """Reach the goal and return it."""
        self.done, self.finished_after = self.goal, self._clock() - self._begun
        return self.goal

    @property
    def fraction(self) -> float:
        """Share of the work that is done, from 0 to 1."""
        return self.done / self.goal

    @property
    def epoch(self) -> int | None:
        """Number of the epoch under way, from 1; None in stages that have no epochs."""
        if not self.epochs or not (self.kind == 'train' or self.stage == REFINING):
            return None
        return min((self.training[-1][0] if self.training else 0) + 1, self.epochs)

    @property
    def loss_name(self) -> str:
        """What the losses are, for the axis of a plot."""
        return 'Squared error of the object' if self._is_supervised else 'Deviance per pixel (1 is photon noise)'

    def seconds_left(self) -> float | None:
        """Return the expected time until the end; None where too little is done to tell."""
        marks = list(self._marks)
        if len(marks) < 2 or self.done >= self.goal:
            return None
        (first_s, first), (last_s, last) = marks[0], marks[-1]
        if last - first < LEAST_SHARE or last_s - first_s < LEAST_SECONDS:
            return None
        limit = last_s - RECENT_SHARE * (last_s - first_s)
        recent_s, recent = next(mark for mark in marks if mark[0] >= limit or mark is marks[-1])
        if last - recent < LEAST_SHARE / 4:
            recent_s, recent = first_s, first
        left = (1 - last) * (last_s - recent_s) / (last - recent) - (self._clock() - last_s)
        return max(left, 0.0)

    def text(self) -> str:
        """Return the progress in words: ``Training, epoch 7 of 30, about 5 minutes left``."""
        if self.kind is None:
            return 'Preparing'
        parts = [_TITLES[self.kind]]
        if self.epoch is not None:
            parts.append(f'epoch {self.epoch} of {self.epochs}')
        if self.stage and (self.epoch is None or self.stage == FITTING_PROBE):
            parts.append(self.stage)
        left = self.seconds_left()
        if left is not None:
            parts.append(f'about {duration(left)} left')
        elif not self.stage and not self.training and self.done == 0:
            parts.append('starting')
        return ', '.join(parts)
