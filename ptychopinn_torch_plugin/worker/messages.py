"""The messages that a worker sends: small, frozen, and made of plain values.

Arrays never travel in a message; they are ``.npy`` files in the job's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heartbeat:
    """The worker is alive but has sent nothing for a while. Made by the parent, never sent."""


@dataclass(frozen=True)
class Progress:
    """``done`` of ``goal`` units of work are finished, each of about the same time."""

    done: int
    goal: int


@dataclass(frozen=True)
class Stage:
    """A stage of the run begins; the name is one of :mod:`ptychopinn_torch_plugin.observer`."""

    name: str


@dataclass(frozen=True)
class Losses:
    """Epoch ``epoch`` (from 1) of a training or a refinement has ended with these mean losses (dimensionless)."""

    epoch: int
    training: float
    validation: float | None


@dataclass(frozen=True)
class LogRecord:
    """A line of the worker's log: ``level`` as in :mod:`logging`, name of the logger, formatted text."""

    level: int
    logger: str
    text: str


@dataclass(frozen=True)
class Preview:
    """The present object: a ``.npy`` file, complex64 ``(h, w)``, readable until two newer ones exist.

    Read it with :func:`~ptychopinn_torch_plugin.worker.job.read_preview`.
    """

    path: Path


@dataclass(frozen=True)
class Finished:
    """The work is done and its results are written. The last message of a successful run."""


@dataclass(frozen=True)
class Failed:
    """The work ended with an exception. The last message of a failed run; strings only, so it can always be sent."""

    error: str
    """Name of the class: bare for a class of :mod:`ptychopinn_torch_plugin.errors`, else with its module."""

    message: str
    traceback: str


@dataclass(frozen=True)
class Idle:
    """The worker has released what the call used and waits for the next one. The caller does not receive it."""


@dataclass(frozen=True)
class Accepted:
    """A waiting worker has received its next call and begins it. The caller does not receive it."""


Message = Heartbeat | Stage | Progress | Losses | LogRecord | Preview | Finished | Failed | Idle | Accepted
