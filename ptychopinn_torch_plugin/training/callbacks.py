"""Lightning callbacks: progress and stop, early stopping, and the signal handlers of the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import EarlyStopping

from ..config import Config
from ..models.base import Generator
from ..observer import Observer
from .batches import TrainingBatch
from .module import PtychoPINNModule
from .progress import TrainingProgress
from .state import Monitor, TrainingState

PREVIEWS = 10
"""Previews of the object in a training without a calibration: each takes a few per cent of the time of an epoch."""


class ProgressCallback(pl.Callback):
    """Reports every batch to the observer, and ends the run when it asks for that.

    Args:
        observer: may ask to stop.
        progress: counts the batches.
    """

    def __init__(self, observer: Observer, progress: TrainingProgress) -> None:
        self._observer = observer
        self._progress = progress

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own type
        batch: TrainingBatch,
        batch_idx: int,
    ) -> None:
        """Report progress; stop if asked."""
        assert isinstance(pl_module, PtychoPINNModule)  # noqa: S101 - the Trainer of this package runs no other
        self._progress.on_batch(pl_module.epoch, batch_idx + 1)
        if self._observer.should_stop():
            trainer.should_stop = True


class PreviewCallback(pl.Callback):
    """Shows the object that the network reconstructs, ``PREVIEWS`` times in a run; a calibration shows it by itself.

    The object is reconstructed before the random numbers of the epoch are seeded: the training is the same without it.

    Args:
        draw: reconstructs the object with a network, complex64 ``(h, w)`` on the product's grid.
        epochs: epochs of the whole run.
        observer: receives the object.
    """

    def __init__(self, draw: Callable[[Generator], npt.NDArray[np.complex64]], epochs: int, observer: Observer) -> None:
        self._draw = draw
        self._interval = max(1, epochs // PREVIEWS)
        self._observer = observer

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the object if it is due."""
        assert isinstance(pl_module, PtychoPINNModule)  # noqa: S101 - the Trainer of this package runs no other
        if pl_module.epoch and pl_module.epoch % self._interval == 0 and not self._observer.should_stop():
            self._observer.on_preview(self._draw(pl_module.generator))


def early_stopping(config: Config, monitor: Monitor, state: TrainingState) -> list[pl.Callback]:
    """Return Lightning's early stopping, in its state after the finished epochs; nothing where it is off."""
    epochs = config.training.early_stop_patience
    if not epochs:
        return []
    callback = EarlyStopping(
        monitor.name,
        patience=epochs,
        mode=monitor.mode,
        # The monitored loss is absent in a run that is stopped in its first validation.
        strict=False,
        check_on_train_epoch_end=True,
    )
    if state.history:
        callback.wait_count = state.epochs_since_best(monitor)
        callback.best_score = torch.tensor(monitor.value(min(state.history, key=monitor.rank)))
    return [callback]


class SignalCallback(pl.Callback):
    """Keeps the signal handlers of the process, which stop a run in order.

    Lightning replaces that of SIGTERM. torch replaces that of SIGCHLD with the first loader process: the death of one
    would then raise an error wherever the training process happens to be. It is noticed without the handler, too, when
    the next batch is due.
    """

    def __init__(self) -> None:
        numbers = (signal.SIGTERM, getattr(signal, 'SIGCHLD', None))
        self._handlers = {number: signal.getsignal(number) for number in numbers if number is not None}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the handlers back; the loader processes run by now."""
        self.restore()

    def restore(self) -> None:
        """Put back the handlers that were there when this was made."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
