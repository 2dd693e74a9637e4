"""Lightning callbacks: progress and stop, the gradient's health, the course of the run, and going on from a state."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..errors import TrainingError
from ..observer import Observer
from ..types import LossRecord
from .batches import TrainingBatch, TrainingBatches
from .module import VALIDATION_LOSS
from .precision import ScaledPrecision
from .state import Course, Judge, Weights

logger = logging.getLogger(__name__)

LEAST_LOSS_SCALE = 1.0
"""In float16 gradients overflow now and then, and the scale of the loss is halved; below this it is no help."""


class Keeper(Protocol):
    """Who writes what an epoch has brought."""

    def end_epoch(self, course: Course, weights: Weights, record: LossRecord) -> None:
        """An epoch was judged: keep the best model, the state to resume from, and whatever else is kept."""


class EpochCallback(pl.Callback):
    """Tells the batches which epoch it is, so that every epoch draws other groups."""

    def __init__(self, batches: TrainingBatches) -> None:
        self._batches = batches

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass the number of the epoch on; the data loader's iterator is made after this, but for the first epoch."""
        self._batches.epoch = trainer.current_epoch


class LoaderCallback(pl.Callback):
    """Keeps the death of a loader process from raising an error wherever the training process happens to be.

    torch installs a handler of SIGCHLD that does so, when the first loader process is started; Lightning, at its end,
    installs it once more. The death is noticed without it, too, where the next batch is waited for.
    """

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, 'SIGCHLD') else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The loader processes run by now."""
        self.restore()

    def restore(self) -> None:
        """Put back the handler that was there when this was made."""
        if self._handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, self._handler)


class GradientCallback(pl.Callback):
    """Ends the run before a gradient that is not finite reaches the weights."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradient of every parameter.

        Raises:
            TrainingError: one is not finite; with float16, only when the loss has been scaled down in vain.
        """
        if _is_scaling(trainer):
            return
        gradients = [(name, one.grad) for name, one in pl_module.named_parameters() if one.grad is not None]
        largest = torch.stack([gradient.abs().max() for _, gradient in gradients])
        if torch.isfinite(largest).all():
            return
        name = next(name for (name, _), value in zip(gradients, largest.tolist(), strict=True) if not value < torch.inf)
        where = f'epoch {self._course.epoch + 1}, batch {self._course.batch + 1}'
        raise TrainingError(
            f'The gradient of "{name}" is not finite in {where}, although the loss is: the best model so far is kept; '
            "lower the learning rate or the number of unrolled steps, set training.precision to '32', and look for "
            'impossible counts among the patterns.'
        )


def _is_scaling(trainer: pl.Trainer) -> bool:
    """Whether a loss scaler skips the steps with bad gradients by itself, and still has room to do so."""
    precision = trainer.precision_plugin
    return (
        isinstance(precision, ScaledPrecision)
        and precision.scaler is not None
        and precision.scaler.get_scale() >= LEAST_LOSS_SCALE
    )


class CourseCallback(pl.Callback):
    """Counts batches, judges epochs, has the outcome kept, then reports it; ends the run when asked to.

    Args:
        course: where the run stands.
        judge: which loss says how good an epoch is.
        observer: hears of progress and losses, and may ask to stop.
        keeper: writes files.
        batches: batches of an epoch.
        patience: epochs without improvement after which the run ends; 0 for none.
    """

    def __init__(
        self, course: Course, judge: Judge, observer: Observer, keeper: Keeper, *, batches: int, patience: int
    ) -> None:
        self._course = course
        self._judge = judge
        self._observer = observer
        self._keeper = keeper
        self._batches = batches
        self._patience = patience

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own type
        batch: TrainingBatch | None,
        batch_idx: int,
    ) -> None:
        """Report progress; stop if asked. Batches that were learned before the run was stopped come as None."""
        if batch is None:
            return
        # Lightning shares the loss out among the batches of one optimiser step.
        self._course.add(float(outputs['loss']) * trainer.accumulate_grad_batches, len(batch.reference))
        done = self._course.epoch * self._batches + self._course.batch
        self._observer.on_progress(done, (trainer.max_epochs or 1) * self._batches)
        if self._observer.should_stop():
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the epoch (Lightning has validated by now), keep, report; an epoch cut short is not judged."""
        if self._observer.should_stop():
            trainer.should_stop = True
            return
        metrics = trainer.callback_metrics
        record = self._course.end_epoch(float(metrics[VALIDATION_LOSS]) if VALIDATION_LOSS in metrics else None)
        weights = _weights(pl_module)
        if self._course.best is None or self._course.is_best(self._judge):
            self._course.best = weights
        schedule = getattr(pl_module, 'schedule', None)
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(self._judge.loss(record))
        is_hopeless = 0 < self._patience <= self._course.epochs_since_best(self._judge)
        self._course.is_finished = is_hopeless or self._course.epoch == trainer.max_epochs
        self._keeper.end_epoch(self._course, weights, record)
        log_epoch(record, trainer.max_epochs)
        self._observer.on_losses(record.epoch, record.training, record.validation)
        if is_hopeless:
            logger.info('No better epoch for %d epochs: training ends here.', self._patience)
            trainer.should_stop = True


class RestoreCallback(pl.Callback):
    """Goes on from a state: its epoch's first batches come as None and are skipped, then all is put where it was.

    Restoring comes last, so that nothing that Lightning does on the way can tell a resumed run from another.

    Args:
        restore: puts all moving parts where they were, given the trainer.
        batch: batches that the epoch under way had finished.
    """

    def __init__(self, restore: Callable[[pl.Trainer], None], batch: int) -> None:
        self._restore: Callable[[pl.Trainer], None] | None = restore
        self._batch = batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: TrainingBatch, batch_idx: int
    ) -> None:
        """Restore before the first batch that is learned."""
        self._once(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own type
        batch: TrainingBatch | None,
        batch_idx: int,
    ) -> None:
        """Restore after the last batch that is skipped: the validation may come next."""
        if batch is None and batch_idx + 1 == self._batch:
            self._once(trainer)

    def _once(self, trainer: pl.Trainer) -> None:
        if self._restore is not None:
            self._restore(trainer)
            self._restore = None


def log_epoch(record: LossRecord, epochs: int | None) -> None:
    """Write the losses of an epoch to the log of the package."""
    validation = '' if record.validation is None else f', on held-out positions {record.validation:.4f}'
    logger.info('Epoch %d of %s: loss %.4f%s.', record.epoch, epochs, record.training, validation)


def _weights(module: pl.LightningModule) -> Weights:
    """A copy of the module's state on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
