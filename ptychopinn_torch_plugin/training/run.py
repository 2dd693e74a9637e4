"""Train a model on scans: the one training loop of the package, run by Lightning's Trainer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from uuid import uuid4

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ..config import Config
from ..data.probe_preparation import prepared
from ..data.scan import RawScan
from ..data.sharding import processes, working_alone
from ..data.subsampling import select_subsample
from ..data.tensors import ScanTensors, initial_state
from ..engines.devices import name_of, select_device, use_threads
from ..engines.distributed import train_together
from ..engines.progress import on_object_grid
from ..errors import InputError, TrainingError
from ..models.base import Generator
from ..observer import Observer, SilentObserver
from ..storage.folder_lock import FolderLock, locked
from ..storage.model_file import MODEL_FILE, load_model
from .batches import TrainingScan
from .calibration import Calibration, is_calibrated, predict
from .callbacks import PreviewCallback, ProgressCallback, SignalCallback, early_stopping
from .checkpoint import CheckpointWriter, EpochFollower, ModelWriter
from .data import PtychoPINNDataModule, with_group_for_each
from .environment import ConnectedEnvironment, make_strategy
from .loggers import make_logger, mark_stopped
from .module import PtychoPINNModule
from .precision import make_precision, restore_loss_scale
from .preview import grey_picture
from .progress import TrainingProgress
from .resume import find_state, fingerprint_of
from .state import Monitor, TrainingState

logger = logging.getLogger(__name__)

_MUTED = (
    '.*isinstance.treespec, LeafSpec.*',
    '.*does not have a deterministic implementation.*',
    '.*broadcast_buffers. is deprecated.*',
)
"""Warnings of Lightning and torch that a user can do nothing about."""


def train(scans: Sequence[RawScan], config: Config, output_folder: Path, observer: Observer | None = None) -> Path:
    """Train on ``scans`` and write the model, the log and, until the run is finished, its resume state.

    The files, all in ``output_folder``: ``model.safetensors``, the best model so far by the monitored loss (on held-out
    positions, if there are any); ``checkpoints``, those of the best epochs, if asked for; the log of
    ``config.execution.logger``; ``resume.safetensors``. All of an epoch is on disk before its losses are reported.
    When the observer asks to stop, the batch under way is finished and everything stays; the next run in the same
    folder continues after the last finished epoch, as ``config.training.resume`` says, and reports the earlier epochs
    first.

    Several processes (``config.training.devices``, or those of ``torchrun``) divide the groups of every step among
    them; the first one reads the resume state, writes and reports.

    Args:
        scans: one or more validated scans; one model learns from all of them.
        config: the configuration tree; the seed makes a run on a CPU repeatable to the last bit, for one number of
            processes and threads.
        output_folder: where the files go; made if absent.
        observer: receives progress and losses, and may ask to stop.

    Returns:
        The path of the model file.

    Raises:
        InputError: no scan, or a flat reference object for a supervised model.
        ConfigurationError: the device or the settings do not allow it, or there is no state to resume from and there
            must be one.
        MissingDependencyError: the log needs a package that is not installed.
        TrainingError: the loss or its gradient is not finite, or a loader process died.
        OutputError: a file cannot be written, or another run writes into the folder.
        WorkerError: one of several processes ended.
    """
    if not scans:
        raise InputError('There is no scan to train on.')
    if config.model.model_type == 'supervised':
        for scan in scans:
            _refuse_flat(scan)
    scans = [
        prepared(select_subsample(scan, config.data.subsample, config.data.subsample_seed), config.probe)
        for scan in scans
    ]
    observer = observer or SilentObserver()
    with locked(output_folder, 'training') if processes().rank == 0 else nullcontext() as lock:
        first = partial(_train, config, output_folder, lock)
        along = partial(_train, config, output_folder, None)
        train_together(first, along, scans, config.training.devices, observer)
    model_path = output_folder / MODEL_FILE
    logger.debug('The model is in %s.', model_path)
    return model_path


def _train(config: Config, folder: Path, lock: FolderLock | None, scans: Sequence[RawScan], observer: Observer) -> None:
    """Train in this process, together with the others if there are any; the one with the lock writes and reports."""
    use_threads(config.training.threads)
    with _algorithms(deterministic=config.execution.deterministic), _lightning_warnings_only():
        _train_with_lightning(config, folder, lock, scans, observer)


def _train_with_lightning(
    config: Config, folder: Path, lock: FolderLock | None, scans: Sequence[RawScan], observer: Observer
) -> None:
    config = with_group_for_each(config)
    device = select_device(config.training.accelerator)
    precision = make_precision(config, device)
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    calibrated = is_calibrated(config)
    batches_device = torch.device('cpu') if config.execution.workers else device
    training_scans = [_training_scan(scan, config, batches_device) for scan in scans]
    data = PtychoPINNDataModule(training_scans, config, observer.should_stop)
    monitor = Monitor.of(config, has_validation=data.has_validation)
    calibration = Calibration(training_scans, config, observer) if calibrated else None
    module = PtychoPINNModule(config, monitor, calibration)

    fingerprint = fingerprint_of(config, scans)
    # One process reads the state, so that all of them continue from the same.
    state = processes().from_first(lambda: find_state(folder, config, fingerprint, module)) or TrainingState()
    if state.epoch:
        module.resume(state)
        data.resume(state.epoch)
        restore_loss_scale(precision, state.loss_scale)

    def draw(model_path: Path) -> npt.NDArray[np.uint8]:
        first = training_scans[0] if batches_device == device else _training_scan(scans[0], config, device)
        generator = load_model(model_path).build().to(device)
        with working_alone():
            return grey_picture(predict(first, generator, config).object_array.cpu().numpy())

    signals = SignalCallback()
    progress = TrainingProgress(observer, config, training_scans, data.batches_per_epoch, state.epoch)
    if calibration is not None:
        calibration.listener = progress
    callbacks: list[pl.Callback] = [ProgressCallback(observer, progress), signals]
    if config.inference.preview_interval and not calibrated and batches_device == device:
        callbacks.append(PreviewCallback(_drawer(training_scans[0], config), config.training.epochs, observer))
    log = None
    if lock is None:
        callbacks.append(EpochFollower(observer))
    else:
        models = ModelWriter(config, scans, training_scans[0].state.probe.cpu().numpy(), lock)
        callbacks.append(CheckpointWriter(folder, models, monitor, state, observer, draw, fingerprint))
        # Last: whatever refuses a run has done so before a log is begun.
        log = make_logger(folder, config, [scan.name for scan in scans])
        _log_plan(scans, config, data, device)
    environment = ConnectedEnvironment(processes())
    trainer = pl.Trainer(
        accelerator={'cuda': 'gpu'}.get(device.type, device.type),
        devices=processes().local_size,
        strategy=make_strategy(processes()),
        # Not the environment of a cluster: Lightning would requeue the job and load pickled checkpoints.
        plugins=[precision, environment],
        max_epochs=config.training.epochs - state.epoch,
        accumulate_grad_batches=config.training.accumulate,
        gradient_clip_val=config.training.gradient_clip or None,
        limit_val_batches=1.0 if data.has_validation else 0,
        callbacks=[*early_stopping(config, monitor, state), *callbacks],
        num_sanity_val_steps=0,
        logger=log or False,
        log_every_n_steps=1,
        enable_progress_bar=config.execution.progress_bar and lock is not None,
        enable_model_summary=False,
        # The groups of a step are divided among the processes already.
        use_distributed_sampler=False,
        # In a SLURM job Lightning would load a pickled checkpoint from here: a folder that does not exist.
        default_root_dir=folder / f'none-{uuid4().hex}',
    )
    if processes().size > 1:
        # Its handler of SIGTERM would exchange a tensor, in the middle of whatever the processes exchange.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    _fit(trainer, module, data, signals, observer)
    if log is not None and not state.is_finished:
        mark_stopped(log)


def _drawer(scan: TrainingScan, config: Config) -> Callable[[Generator], npt.NDArray[np.complex64]]:
    """Return a function that reconstructs the object of ``scan`` with a network."""

    def draw(generator: Generator) -> npt.NDArray[np.complex64]:
        found = predict(scan, generator, config)
        return on_object_grid(found.object_array, found.origin, scan.tensors.scan.object_shape)

    return draw


def _fit(
    trainer: pl.Trainer,
    module: PtychoPINNModule,
    data: PtychoPINNDataModule,
    signals: SignalCallback,
    observer: Observer,
) -> None:
    with warnings.catch_warnings():
        for message in _MUTED:
            warnings.filterwarnings('ignore', message=message)
        try:
            trainer.fit(module, datamodule=data)
        except SIGTERMException:
            # Lightning turns a SIGTERM into this error while it starts; a run that was asked to stop ends in order.
            if not observer.should_stop():  # one process: this is no exchange
                raise
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A dead process either fails to send its batch, or is found dead while the batch is waited for.
            if module.config.execution.workers == 0 or not _is_of_a_loader(error):
                raise
            raise TrainingError(
                f'A loader process died ({error}): the best model so far is kept; set execution.workers to 0, or '
                'free some memory.'
            ) from error
        finally:
            signals.restore()


@contextmanager
def _lightning_warnings_only() -> Iterator[None]:
    """Leave out what Lightning logs at level INFO: it lists devices and advertises products."""
    log = logging.getLogger('lightning.pytorch')
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _is_of_a_loader(error: Exception) -> bool:
    return isinstance(error, ConnectionError | EOFError) or 'DataLoader worker' in str(error)


@contextmanager
def _algorithms(*, deterministic: bool) -> Iterator[None]:
    """Ask torch for algorithms that repeat themselves, where it has them; undone at the exit."""
    before = torch.get_deterministic_debug_mode()
    if deterministic:
        # Read by cuBLAS when it starts.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.set_deterministic_debug_mode('warn')
        # Costs time, and nothing here reads memory before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _training_scan(scan: RawScan, config: Config, device: torch.device) -> TrainingScan:
    tensors = ScanTensors(scan, device, config.execution.kernels)
    return TrainingScan(tensors, initial_state(tensors, scale=config.probe.scale))


def _refuse_flat(scan: RawScan) -> None:
    if scan.is_flat:
        raise InputError(
            f'The object of {scan.name} is flat, but "Supervised" learns from a reference object: choose a product '
            'that was reconstructed before, or train "PINN", which needs no reference.'
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
        'Training on %s (%d patterns) on the %s: %d epochs.',
        ', '.join(scan.name for scan in scans),
        sum(scan.size for scan in scans),
        name_of(device),
        config.training.epochs,
    )
    logger.debug('%d batches in an epoch.', data.batches_per_epoch)
