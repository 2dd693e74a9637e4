"""The checkpoint writer: the files that every epoch leaves, all of them safetensors."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Checkpoint

from ..config import Config
from ..data.scan import RawScan
from ..observer import Observer
from ..storage.folder_lock import FolderLock
from ..storage.model_file import (
    BACKEND,
    FORMAT_VERSION,
    MODEL_FILE,
    MODEL_SUFFIX,
    WEIGHTS_PREFIX,
    ModelHeader,
    TrainedModel,
    package_versions,
    save_model,
)
from ..types import LossRecord
from .calibration import calibrated_probe
from .data import trained_scans
from .loggers import log_result, named_losses, shows_pictures
from .resume import remove_state, write_state
from .state import TRAINING_LOSS, VALIDATION_LOSS, Monitor, TrainingState, Weights, loss_entries

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = 'checkpoints'
_EPOCH_FILE = 'epoch-{:06d}' + MODEL_SUFFIX


@dataclass(frozen=True)
class ModelWriter:
    """Writes model files of one run."""

    config: Config
    scans: Sequence[RawScan]
    probe: npt.NDArray[np.complex64]
    """Probe of the first scan as it is without a calibration, ``(M, H, W)``."""
    lock: FolderLock

    def write(self, path: Path, weights: Weights, history: Iterable[LossRecord]) -> None:
        """Write the model of the Lightning module's state ``weights``."""
        self.lock.check()
        network = {
            name.removeprefix(WEIGHTS_PREFIX): tensor.cpu().numpy()
            for name, tensor in weights.items()
            if name.startswith(WEIGHTS_PREFIX)
        }
        calibrated = calibrated_probe(weights)
        probe = self.probe if calibrated is None else calibrated.cpu().numpy()
        header = ModelHeader(
            format_version=FORMAT_VERSION,
            backend=BACKEND,
            config=self.config,
            history=loss_entries(history),
            photons_per_frame=float(np.sum(np.abs(probe) ** 2)),
            scans=tuple(scan.name for scan in trained_scans(self.scans, self.config)),
            versions=package_versions(),
            object_pixel_m=self.scans[0].pixel_m,
        )
        save_model(path, TrainedModel(header, network, probe))


class EpochFollower(Checkpoint):
    """Ends a run in the processes that write nothing when the first one does; called where that writes.

    Args:
        observer: may stop the run.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Free memory; stop if asked."""
        # Tensors lie in circles of references. A process that writes nothing makes too few objects for Python to look
        # for circles often: it would grow by about a MiB an epoch for hundreds of epochs, also with a small scan.
        gc.collect()
        if self._observer.should_stop():
            trainer.should_stop = True


class CheckpointWriter(Checkpoint):
    """Writes the model, the models of the best epochs, the resume state and the log; then reports the losses.

    Lightning calls callbacks of this base class last, after early stopping.

    Args:
        folder: the output folder.
        models: writes the model files.
        monitor: the loss that compares epochs.
        state: the finished epochs; new ones are added.
        observer: receives the losses, and may stop the run.
        draw: draws the first scan with the network of a model file, for a log with pictures.
        fingerprint: identifies the run in the resume state.
    """

    def __init__(
        self,
        folder: Path,
        models: ModelWriter,
        monitor: Monitor,
        state: TrainingState,
        observer: Observer,
        draw: Callable[[Path], npt.NDArray[np.uint8]],
        fingerprint: dict[str, Any],
    ) -> None:
        self._folder = folder
        self._models = models
        self._config = models.config
        self._monitor = monitor
        self._state = state
        self._observer = observer
        self._draw = draw
        self._fingerprint = fingerprint

    @property
    def model_path(self) -> Path:
        """The file of the best model."""
        return self._folder / MODEL_FILE

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the best model of a stopped run, log and report its epochs."""
        if self._state.best is not None:
            self._save(self.model_path, self._state.best)
        for record in self._state.history:
            self._report(trainer, record)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the epoch gave, the model first, then report it; an epoch that was cut short does not count."""
        if self._observer.should_stop():
            trainer.should_stop = True
            return
        metrics, state = trainer.callback_metrics, self._state
        validation = float(metrics[VALIDATION_LOSS]) if VALIDATION_LOSS in metrics else None
        record = LossRecord(state.epoch + 1, float(metrics[TRAINING_LOSS]), validation)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.state_dict().items()}
        state.add(record, weights, self._monitor)
        # Only early stopping has set this here.
        state.is_finished = trainer.should_stop or state.epoch == self._config.training.epochs
        self._save(self.model_path, weights if state.best is None else state.best)
        self._keep_best_epochs(weights)
        if not state.is_finished:
            optimizer, precision = trainer.optimizers[0], trainer.precision_plugin
            write_state(self._folder, self._fingerprint, state, optimizer, precision)
        logger.info('Epoch %d of %d: %s.', record.epoch, self._config.training.epochs, _in_words(record))
        self._report(trainer, record, learning_rate=trainer.optimizers[0].param_groups[0]['lr'])
        if trainer.should_stop:
            epochs = self._config.training.early_stop_patience
            logger.info('No better epoch for %d epochs: training ends here.', epochs)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a model if no epoch was finished; remove the resume state of a finished run; log the result."""
        if self._state.best is None:
            self._save(self.model_path, pl_module.state_dict())
        if self._state.is_finished:
            remove_state(self._folder)
        for log in trainer.loggers:
            has_picture = shows_pictures(log) and self._state.is_finished
            log_result(log, self._folder, self.model_path, self._draw(self.model_path) if has_picture else None)

    def _report(self, trainer: pl.Trainer, record: LossRecord, **rates: float) -> None:
        for log in trainer.loggers:
            log.log_metrics(named_losses(record) | rates, step=record.epoch)
            log.save()
        self._observer.on_losses(record.epoch, record.training, record.validation)

    def _keep_best_epochs(self, weights: Weights) -> None:
        """Write the model of the last epoch if it is one of the best; remove the files of all others."""
        count = self._config.execution.checkpoint_top_k
        if count == 0:
            return
        folder = self._folder / CHECKPOINT_FOLDER
        best = sorted(self._state.history, key=self._monitor.rank)[:count]
        kept = {folder / _EPOCH_FILE.format(record.epoch) for record in best}
        last = folder / _EPOCH_FILE.format(self._state.epoch)
        if last in kept:
            self._save(last, weights)
        for path in folder.glob(f'epoch-*{MODEL_SUFFIX}'):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _save(self, path: Path, weights: Weights) -> None:
        self._models.write(path, weights, self._state.history)


def _in_words(record: LossRecord) -> str:
    validation = '' if record.validation is None else f', on held-out positions {record.validation:.4f}'
    return f'loss {record.training:.4f}{validation}'
