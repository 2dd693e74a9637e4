"""Train a model on scans: the one training loop of the package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ..config import Config
from ..data.scan import RawScan
from ..devices import select_device, use_threads
from ..errors import InputError
from ..observer import Observer, SilentObserver
from ..persistence import (
    BACKEND,
    FORMAT_VERSION,
    MODEL_FILE,
    LossEntry,
    ModelHeader,
    TrainedModel,
    package_versions,
    save_model,
)
from ..tensors import ScanTensors
from ..types import LossRecord
from .callbacks import BestModelCallback, EpochCallback, ObserverCallback, Weights
from .datamodule import PtychoPINNDataModule
from .module import PtychoPINNModule

logger = logging.getLogger(__name__)


def train(scans: Sequence[RawScan], config: Config, output_folder: Path, observer: Observer | None = None) -> Path:
    """Train on ``scans`` and write ``model.safetensors`` and ``training_log/metrics.csv`` into ``output_folder``.

    The best model so far by the loss on held-out positions (by the training loss if none are held out) is on disk
    after every epoch, with the history up to then; when the observer asks to stop, it stays.

    Args:
        scans: one or more validated scans; one model learns from all of them.
        config: the configuration tree; the seed makes a run on a CPU repeatable.
        output_folder: where the files go; made if absent.
        observer: hears of progress and losses, and may ask to stop.

    Returns:
        The path of the model file.

    Raises:
        InputError: no scan, or a flat reference object for a supervised model.
        TrainingError: the loss is not finite.
    """
    if not scans:
        raise InputError('There is no scan to train on.')
    if config.model.model_type == 'supervised':
        for scan in scans:
            _refuse_flat(scan)
    observer = observer or SilentObserver()
    use_threads(config.training.threads)
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    device = select_device(config.training.accelerator)
    tensors = [ScanTensors(scan, device) for scan in scans]
    data = PtychoPINNDataModule(tensors, config, observer.should_stop)
    module = PtychoPINNModule(config)
    steps = config.training.epochs * len(data.training)
    _log_plan(scans, config, data, device)
    model_path = output_folder / MODEL_FILE

    def save(weights: Weights, history: tuple[LossRecord, ...]) -> None:
        save_model(model_path, _trained_model(config, scans, tensors[0], weights, history))

    best = BestModelCallback(observer, save)
    callbacks: list[pl.Callback] = [EpochCallback(data.training), ObserverCallback(observer, steps), best]
    trainer = _trainer(config, output_folder, callbacks, validation_batches=len(data.validation))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*does not have many workers.*')
        warnings.filterwarnings('ignore', message='.*IterableDataset. has `__len__` defined.*')
        warnings.filterwarnings('ignore', message='.*isinstance.treespec, LeafSpec.*')
        _fit(trainer, module, data, observer)
    best.ensure_model(module)
    logger.info('The model is in %s.', model_path)
    return model_path


def _fit(trainer: pl.Trainer, module: PtychoPINNModule, data: PtychoPINNDataModule, observer: Observer) -> None:
    try:
        trainer.fit(module, datamodule=data)
    except SIGTERMException:
        # Lightning turns SIGTERM into this error; for a run that was asked to stop it is the orderly end.
        if not observer.should_stop():
            raise


def _refuse_flat(scan: RawScan) -> None:
    if scan.is_flat:
        raise InputError(
            f'The object of {scan.name} is flat, but "Supervised" learns from a reference object: choose a product '
            'that was reconstructed before, or train "PINN", which needs no reference.'
        )


def _trainer(
    config: Config, output_folder: Path, callbacks: list[pl.Callback], *, validation_batches: int
) -> pl.Trainer:
    settings = config.training
    return pl.Trainer(
        accelerator={'cuda': 'gpu'}.get(settings.accelerator, settings.accelerator),
        devices=settings.devices,
        max_epochs=settings.epochs,
        gradient_clip_val=settings.gradient_clip or None,
        limit_val_batches=validation_batches,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        logger=CSVLogger(output_folder, name='', version='training_log'),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=output_folder,
    )


def _log_plan(scans: Sequence[RawScan], config: Config, data: PtychoPINNDataModule, device: torch.device) -> None:
    smallest = min(scan.size for scan in scans)
    if smallest < config.data.group_size:
        logger.warning(
            'The smallest scan has %d positions: groups of that many are drawn instead of %d.',
            smallest,
            config.data.group_size,
        )
    logger.info(
        'Training on %s (%d positions) with %s: %d epochs of %d steps.',
        ', '.join(scan.name for scan in scans),
        sum(scan.size for scan in scans),
        device,
        config.training.epochs,
        len(data.training),
    )


def _trained_model(
    config: Config,
    scans: Sequence[RawScan],
    first: ScanTensors,
    weights: Weights,
    history: tuple[LossRecord, ...],
) -> TrainedModel:
    probe = first.probe.cpu().numpy()
    header = ModelHeader(
        format_version=FORMAT_VERSION,
        backend=BACKEND,
        config=config,
        history=tuple(
            LossEntry(epoch=record.epoch, training=record.training, validation=record.validation) for record in history
        ),
        photons_per_frame=float(np.sum(np.abs(probe) ** 2)),
        scans=tuple(scan.name for scan in scans),
        versions=package_versions(),
    )
    return TrainedModel(header, weights, probe)
