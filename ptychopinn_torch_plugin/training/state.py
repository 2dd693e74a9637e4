"""Where a training run stands: what is counted, judged and remembered from batch to batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..config import Config
from ..errors import ConfigurationError
from ..types import LossRecord

Weights = Mapping[str, Tensor]
"""A copy of the state of the Lightning module on the CPU, by the names of its ``state_dict``."""


@dataclass(frozen=True)
class Judge:
    """Which loss says how good an epoch is; a rank is that loss with the sign that makes the smallest one best."""

    by_validation: bool
    largest_is_best: bool

    @classmethod
    def of(cls, config: Config, *, has_validation: bool) -> Judge:
        """The judge that ``config.execution`` asks for.

        Raises:
            ConfigurationError: the validation loss is asked for and no position is held out.
        """
        monitor = config.execution.checkpoint_monitor
        if monitor == 'validation_loss' and not has_validation:
            raise ConfigurationError(
                "execution.checkpoint_monitor = 'validation_loss': no position is held out, so there is no such loss; "
                "choose 'auto' or 'loss', or a larger data.validation_fraction."
            )
        return cls(has_validation and monitor != 'loss', config.execution.checkpoint_mode == 'max')

    def loss(self, record: LossRecord) -> float:
        """The judging loss of an epoch."""
        return record.validation if self.by_validation and record.validation is not None else record.training

    def rank(self, record: LossRecord) -> float:
        """The rank of an epoch, the smallest is best."""
        return -self.loss(record) if self.largest_is_best else self.loss(record)


@dataclass
class Course:
    """Where a run stands."""

    epoch: int = 0
    """Epochs that are finished and judged."""
    batch: int = 0
    """Batches of the epoch under way that are finished."""
    loss_sum: float = 0.0
    """Losses of these batches, each times its weight."""
    weight_sum: float = 0.0
    history: list[LossRecord] = field(default_factory=list)
    best: Weights | None = None
    """Weights of the best epoch so far; None before the first one is judged."""
    is_finished: bool = False
    """Whether the run came to its own end: all epochs, or patience lost."""

    def add(self, loss: float, weight: int) -> None:
        """A batch is finished."""
        self.batch += 1
        self.loss_sum += loss * weight
        self.weight_sum += weight

    def end_epoch(self, validation: float | None) -> LossRecord:
        """The epoch under way is finished: enter it in the history."""
        record = LossRecord(self.epoch + 1, self.loss_sum / max(self.weight_sum, 1.0), validation)
        self.history.append(record)
        self.epoch += 1
        self.batch, self.loss_sum, self.weight_sum = 0, 0.0, 0.0
        return record

    def is_best(self, judge: Judge) -> bool:
        """Whether the last epoch is better than all before it."""
        return judge.rank(self.history[-1]) < min((judge.rank(one) for one in self.history[:-1]), default=math.inf)

    def epochs_since_best(self, judge: Judge) -> int:
        """Epochs after the best one."""
        ranks = [judge.rank(record) for record in self.history]
        return len(ranks) - 1 - ranks.index(min(ranks))
