"""The state of a training run between two epochs, and the loss that says which epoch is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..config import Config
from ..errors import ConfigurationError
from ..storage.model_file import LossEntry
from ..types import LossRecord

TRAINING_LOSS = 'loss'
VALIDATION_LOSS = 'validation_loss'

Weights = Mapping[str, Tensor]
"""A copy of the state of the Lightning module on the CPU, by the names of its ``state_dict``."""


@dataclass(frozen=True)
class Monitor:
    """The loss that compares epochs."""

    name: str
    """``loss`` or ``validation_loss``."""
    mode: str
    """``min`` or ``max``: which value is best."""

    @classmethod
    def of(cls, config: Config, *, has_validation: bool) -> Monitor:
        """Return the monitor that ``config.execution`` names.

        Raises:
            ConfigurationError: it names the validation loss and no position is held out.
        """
        name: str = config.execution.checkpoint_monitor
        if name == VALIDATION_LOSS and not has_validation:
            raise ConfigurationError(
                "execution.checkpoint_monitor = 'validation_loss': no position is held out, so there is no such loss; "
                "choose 'auto' or 'loss', or a larger data.validation_fraction."
            )
        if name == 'auto':
            name = VALIDATION_LOSS if has_validation else TRAINING_LOSS
        return cls(name, config.execution.checkpoint_mode)

    def value(self, record: LossRecord) -> float:
        """Return the monitored loss of an epoch."""
        return record.validation if self.name == VALIDATION_LOSS and record.validation is not None else record.training

    def rank(self, record: LossRecord) -> float:
        """Return the monitored loss with the sign that makes the smallest one best."""
        return -self.value(record) if self.mode == 'max' else self.value(record)


@dataclass
class TrainingState:
    """A run after its finished epochs."""

    history: list[LossRecord] = field(default_factory=list)
    best: Weights | None = None
    """Weights of the best epoch; None before the first one is finished."""
    weights: Weights = field(default_factory=dict)
    """Weights after the last finished epoch."""
    moments: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    """State of the optimiser at the start of a resumed run, by the number of the parameter."""
    loss_scale: tuple[float, int] | None = None
    """Scale and growth tracker of the loss scaler of float16 at the start of a resumed run."""
    is_finished: bool = False
    """Whether the run came to its own end: all epochs, or early stopping."""

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def add(self, record: LossRecord, weights: Weights, monitor: Monitor) -> None:
        """Add a finished epoch; its ``weights`` are kept if it is better than all before it."""
        if monitor.rank(record) < min((monitor.rank(one) for one in self.history), default=math.inf):
            self.best = weights
        self.history.append(record)
        self.weights = weights

    def epochs_since_best(self, monitor: Monitor) -> int:
        """Return the number of epochs after the best one."""
        ranks = [monitor.rank(record) for record in self.history]
        return len(ranks) - 1 - ranks.index(min(ranks))


def loss_entries(history: Iterable[LossRecord]) -> tuple[LossEntry, ...]:
    """Return the losses as they are written into the header of a file."""
    return tuple(LossEntry(epoch=one.epoch, training=one.training, validation=one.validation) for one in history)
