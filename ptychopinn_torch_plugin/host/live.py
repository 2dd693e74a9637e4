"""Progress of the present run as the window shows it: epoch, losses, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..estimate import duration
from ..worker import messages

if TYPE_CHECKING:
    from ..config import Config
    from ..worker.job import JobKind

LEAST_SHARE: Final = 0.02
LEAST_SECONDS: Final = 5.0
"""Share of the work and time since its first report from which on the time left is told."""
RECENT_SHARE: Final = 0.3
"""The speed is that of the last part of the time so far: early stages can be slower or faster than later ones."""

_TITLES: Final[dict[JobKind, str]] = {'train': 'Training', 'reconstruct': 'Reconstruction', 'refine': 'Refinement'}


class RunProgress:
    """Progress of one run. Written by the thread of the run, read by that of the window."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        """Units of work done."""
        self.goal = 1
        """Units of work in all, at least 1."""
        self.kind: JobKind | None = None
        """What is run; None until it has begun."""
        self.training: tuple[tuple[int, float], ...] = ()
        """Epochs and losses: of the training, or the deviances of a refinement."""
        self.validation: tuple[tuple[int, float], ...] = ()
        """Epochs and losses on held-out positions."""
        self.config: Config | None = None
        """Settings of the run; None until it has begun."""
        self.finished_after: float | None = None
        """Seconds that the whole run took; None where it has not reached its goal."""
        self._epochs = 0
        self._is_supervised = False
        self._clock = clock
        self._begun = clock()
        self._marks: deque[tuple[float, float]] = deque(maxlen=4096)

    def begin(self, kind: JobKind, config: Config) -> None:
        """Begin a run of the given kind."""
        self._epochs = config.training.epochs if kind == 'train' else config.refinement.refine_epochs
        self._is_supervised = kind == 'train' and config.model.model_type == 'supervised'
        self.kind, self.config = kind, config

    def update(self, message: messages.Progress) -> None:
        """Receive the progress that the worker reports."""
        self.goal = max(message.goal, 1)
        self.done = min(max(message.done, 0), self.goal)
        self._marks.append((self._clock(), self.done / self.goal))

    def add_losses(self, message: messages.Losses) -> None:
        """Receive the losses of an epoch."""
        if self.training and message.epoch <= self.training[-1][0]:  # repeated in smaller batches
            self.training = self.validation = ()
        self.training = (*self.training, (message.epoch, message.training))
        if message.validation is not None:
            self.validation = (*self.validation, (message.epoch, message.validation))

    def finish(self) -> int:
        """Reach the goal and return it."""
        self.done, self.finished_after = self.goal, self._clock() - self._begun
        return self.goal

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
        epochs_done = self.training[-1][0] if self.training else 0
        if self._epochs and (self.kind != 'reconstruct' or self.training):
            parts.append(f'epoch {min(epochs_done + 1, self._epochs)} of {self._epochs}')
        left = self.seconds_left()
        if left is not None:
            parts.append(f'about {duration(left)} left')
        elif self.done == 0:
            parts.append('starting')
        return ', '.join(parts)
