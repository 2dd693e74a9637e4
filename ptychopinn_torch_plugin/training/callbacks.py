"""Lightning callbacks: progress and stop, and the best model on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt

from ..observer import Observer
from ..types import LossRecord
from .batches import Batch, TrainingBatches
from .module import TRAINING_LOSS, VALIDATION_LOSS, PtychoPINNModule

logger = logging.getLogger(__name__)

Weights = dict[str, npt.NDArray[np.float32]]
SaveModel = Callable[[Weights, tuple[LossRecord, ...]], None]


class EpochCallback(pl.Callback):
    """Tells the batches which epoch it is, so that every epoch draws other groups."""

    def __init__(self, batches: TrainingBatches) -> None:
        self._batches = batches

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass the number of the epoch on; the data loader's iterator is made after this."""
        self._batches.epoch = trainer.current_epoch


class ObserverCallback(pl.Callback):
    """Reports every optimiser step, and ends the run after the batch in which the observer asks for it."""

    def __init__(self, observer: Observer, steps: int) -> None:
        self._observer = observer
        self._steps = steps

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own type
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Report progress; stop if asked."""
        self._observer.on_progress(trainer.global_step, self._steps)

        if self._observer.should_stop():
            trainer.should_stop = True


class BestModelCallback(pl.Callback):
    """Keeps the history and the best weights on disk: after every epoch, before its losses are reported."""

    def __init__(self, observer: Observer, save: SaveModel) -> None:
        self._observer = observer
        self._save = save
        self._history: list[LossRecord] = []
        self._best_loss = math.inf
        self._best_weights: Weights | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the epoch (Lightning has validated by now), write, report; an epoch cut short is not judged."""
        if self._observer.should_stop():
            return
        assert isinstance(pl_module, PtychoPINNModule)  # noqa: S101 - the Trainer of this package runs no other
        metrics = trainer.callback_metrics
        training = float(metrics[TRAINING_LOSS])
        validation = float(metrics[VALIDATION_LOSS]) if VALIDATION_LOSS in metrics else None
        record = LossRecord(trainer.current_epoch + 1, training, validation)
        self._history.append(record)
        judged = training if validation is None else validation
        if self._best_weights is None or judged < self._best_loss:
            self._best_loss = judged
            self._best_weights = _weights(pl_module)
        self._save(self._best_weights, tuple(self._history))
        logger.info(
            'Epoch %d of %s: loss %.4f%s.',
            record.epoch,
            trainer.max_epochs,
            training,
            '' if validation is None else f', on held-out positions {validation:.4f}',
        )
        self._observer.on_losses(record.epoch, record.training, record.validation)

    def ensure_model(self, module: PtychoPINNModule) -> None:
        """Write the model as it is if no epoch has ended: a run that was stopped early leaves one, too."""
        if self._best_weights is None:
            self._save(_weights(module), ())


def _weights(module: PtychoPINNModule) -> Weights:
    """A copy of the network's weights on the CPU."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.generator.state_dict().items()}
