"""Train a model on scans: the one training loop of the package."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ..config import Config
from ..data.probe_preparation import prepared
from ..data.scan import RawScan
from ..data.subsampling import select_subsample
from ..data.tensors import ScanTensors, initial_state
from ..engines.devices import select_device, use_threads
from ..errors import ConfigurationError, InputError, TrainingError
from ..observer import Observer, SilentObserver
from ..storage.model_file import (
    BACKEND,
    FORMAT_VERSION,
    MODEL_FILE,
    LossEntry,
    ModelHeader,
    TrainedModel,
    load_model,
    package_versions,
    save_model,
)
from ..types import LossRecord, ReconstructionState
from .batches import TrainingScan
from .calibration import Unknowns, UnknownsCallback, first_probe, learns_unknowns
from .callbacks import CourseCallback, EpochCallback, GradientCallback, LoaderCallback, RestoreCallback
from .checkpoints import Checkpoints
from .data import PtychoPINNDataModule, trained_scans
from .loggers import Ending, Image, open_log
from .module import PtychoPINNModule
from .precision import make_precision
from .preview import draw_scan
from .resume import Fingerprint, Machinery, capture, find_state, remove_state, restore, restore_module, write_state
from .state import Course, Judge, Weights

logger = logging.getLogger(__name__)

_QUIET = (
    '.*does not have many workers.*',
    '.*IterableDataset. has `__len__` defined.*',
    '.*isinstance.treespec, LeafSpec.*',
    # Batches that a resumed epoch skips are None, and take no step of the optimiser.
    '.*yielded None.*',
    '.*Detected call of .lr_scheduler.step.*',
    # SequentialLR steps its parts by number.
    '.*epoch parameter in .scheduler.step.*',
    '.*does not have a deterministic implementation.*',
)
"""Warnings of Lightning and torch that a user can do nothing about."""


def train(scans: Sequence[RawScan], config: Config, output_folder: Path, observer: Observer | None = None) -> Path:
    """Train on ``scans`` and write the model, the log and, until the run is finished, its resume state.

    The files, all in ``output_folder``: ``model.safetensors``, the best model so far by the judging loss (on held-out
    positions, if there are any); ``checkpoints``, those of the best epochs, if asked for; the log of
    ``config.execution.logger``; ``resume.safetensors``. All of an epoch is on disk before its losses are reported.
    When the observer asks to stop, the batch under way is finished and everything stays; the next run on the same
    folder goes on from there, as ``config.training.resume`` says, and hears of the earlier epochs first.

    Args:
        scans: one or more validated scans; one model learns from all of them.
        config: the configuration tree; the seed makes a run on a CPU repeatable to the last bit.
        output_folder: where the files go; made if absent.
        observer: hears of progress and losses, and may ask to stop.

    Returns:
        The path of the model file.

    Raises:
        InputError: no scan, or a flat reference object for a supervised model.
        ConfigurationError: the device or the settings do not allow it, or there is no state to resume from and there
            must be one.
        MissingDependencyError: the log needs a package that is not installed.
        TrainingError: the loss or its gradient is not finite, or a loader process died.
        OutputError: a file cannot be written.
    """
    if not scans:
        raise InputError('There is no scan to train on.')
    if config.model.model_type == 'supervised':
        for scan in scans:
            _refuse_flat(scan)
    observer = observer or SilentObserver()
    use_threads(config.training.threads)
    scans = [
        prepared(select_subsample(scan, config.data.subsample, config.data.subsample_seed), config.probe)
        for scan in scans
    ]
    with _algorithms(deterministic=config.execution.deterministic):
        run = _Run(scans, config, output_folder, observer)
        run.perform()
    logger.info('The model is in %s.', run.model_path)
    return run.model_path


class _Run:
    """One training, from the scans to the files; it is the keeper of its own callback."""

    def __init__(self, scans: Sequence[RawScan], config: Config, folder: Path, observer: Observer) -> None:
        self._scans = scans
        self._config = config
        self._folder = folder
        self._observer = observer
        self.model_path = folder / MODEL_FILE
        self._device = select_device(config.training.accelerator)
        precision = make_precision(config, self._device)
        pl.seed_everything(config.training.seed, workers=True, verbose=False)
        loads_apart = config.execution.workers > 0
        if loads_apart and learns_unknowns(config):
            raise ConfigurationError(
                f'execution.workers = {config.execution.workers}: loader processes do not hear of a probe, positions '
                'or a scale that are learned with the network; set it to 0, or switch "Learn the probe" off.'
            )
        device = torch.device('cpu') if loads_apart else self._device
        self._training_scans = [_training_scan(scan, device, config) for scan in scans]
        self._data = PtychoPINNDataModule(self._training_scans, config, observer.should_stop)
        self._judge = Judge.of(config, has_validation=len(self._data.validation) > 0)
        self._module = PtychoPINNModule(config)
        self._unknowns = Unknowns(self._training_scans, config) if learns_unknowns(config) else None
        if self._unknowns is not None:
            self._module.add_module('unknowns', self._unknowns)
        self._fingerprint = Fingerprint.of(config, scans)
        self._state = find_state(folder, config, self._fingerprint, self._module)
        if self._state is not None and self._unknowns is not None:
            # The unknowns of an epoch come from the network before it: both are wanted before the first batch.
            restore_module(self._module, self._state)
        self._course = Course() if self._state is None else self._state.course()
        kept = None if self._state is None else self._state.header.checkpoints
        self._checkpoints = Checkpoints(folder, config.execution.checkpoint_top_k, kept)
        self._loader = LoaderCallback()
        self._is_paused = False
        self._trainer = _trainer(
            config, folder, self._callbacks(), precision, validation_batches=len(self._data.validation)
        )
        # Last: whatever refuses a run has done so before a log is begun.
        self._log = open_log(folder, config, [scan.name for scan in scans], self._course.history)

    def perform(self) -> None:
        """Train, and leave what the end of the run calls for."""
        ending: Ending = 'failed'
        try:
            _log_plan(self._scans, self._config, self._data, self._device)
            self._begin()
            self._fit()
            self._end()
            ending = 'finished' if self._course.is_finished else 'stopped'
        finally:
            self._log.close(ending)

    def end_epoch(self, course: Course, weights: Weights, record: LossRecord) -> None:
        """Keep what the epoch has brought; the model comes first."""
        self._save(self.model_path, course.best or weights)
        self._checkpoints.offer(
            record.epoch, self._judge.rank(record), lambda path: self._save(path, weights, history=course.history)
        )
        if not course.is_finished:
            self._write_state()
        self._log.losses(record)

    def _callbacks(self) -> list[pl.Callback]:
        training = self._data.training
        course = CourseCallback(
            self._course,
            self._judge,
            self._observer,
            self,
            batches=len(training),
            patience=self._config.training.early_stop_patience,
        )
        callbacks: list[pl.Callback] = [EpochCallback(training), GradientCallback(self._course), course]
        if self._unknowns is not None:
            resumed = self._course.epoch if self._course.batch else None
            callbacks.append(UnknownsCallback(self._unknowns, self._observer, self._pause, resumed))
        if self._config.execution.workers:
            callbacks.append(self._loader)
        if self._state is not None:
            callbacks.append(RestoreCallback(self._restore, self._course.batch))
        return callbacks

    def _begin(self) -> None:
        """Go to where the run was stopped, if it was, and tell of the epochs before."""
        if self._course.best is not None:
            self._save(self.model_path, self._course.best)
        for record in self._course.history:
            self._observer.on_losses(record.epoch, record.training, record.validation)
        self._data.training.skip(self._course.epoch, self._course.batch)
        progress: Any = self._trainer.fit_loop.epoch_progress.current
        progress.processed = progress.completed = self._course.epoch

    def _fit(self) -> None:
        with warnings.catch_warnings():
            for message in _QUIET:
                warnings.filterwarnings('ignore', message=message)
            try:
                self._trainer.fit(self._module, datamodule=self._data)
            except SIGTERMException:
                # Lightning turns SIGTERM into this error; for a run that was asked to stop it is the orderly end.
                if not self._observer.should_stop():
                    raise
            except (RuntimeError, ConnectionError, EOFError) as error:
                # A dead process either fails to hand its batch over, or is found dead while the batch is waited for.
                if self._config.execution.workers == 0 or not _is_of_a_loader(error):
                    raise
                raise TrainingError(
                    f'A loader process died ({error}): the best model so far is kept; set execution.workers to 0, or '
                    'free some memory.'
                ) from error
            finally:
                self._loader.restore()

    def _end(self) -> None:
        """Write what only the end of the run can: a model if no epoch came to its end, the state, the log's results."""
        if self._course.best is None:
            self._save(self.model_path, self._module.state_dict())
        if self._course.is_finished:
            remove_state(self._folder)
        elif not self._is_paused:
            self._write_state()
        picture = self._picture() if self._log.wants_picture and self._course.is_finished else None
        self._log.result(self.model_path, picture)

    def _picture(self) -> Image:
        first = self._training_scans[0]
        if first.tensors.device != self._device:
            first = _training_scan(self._scans[0], self._device, self._config)
        generator = load_model(self.model_path).build().to(self._device)
        return draw_scan(first, generator, self._config)

    def _machinery(self, trainer: pl.Trainer) -> Machinery:
        return Machinery(trainer, self._module, self._module.schedule)

    def _restore(self, trainer: pl.Trainer) -> None:
        if self._state is not None:
            restore(self._machinery(trainer), self._state)
            self._state = None

    def _pause(self, epoch: int) -> None:
        """Have ``epoch`` not begin: without the solver's turn the network would learn from other numbers.

        The state is kept here, because Lightning moves its schedule along with the batches that come as None. Where
        the run has just gone on and restored nothing yet, the state on disk is still the right one.
        """
        if self._state is None:
            self._write_state()
        self._is_paused = True
        self._data.training.skip(epoch, len(self._data.training))

    def _write_state(self) -> None:
        machinery = self._machinery(self._trainer)
        write_state(self._folder, capture(machinery, self._course, self._fingerprint, self._checkpoints.ranks))

    def _save(self, path: Path, weights: Weights, *, history: Sequence[LossRecord] | None = None) -> None:
        history = self._course.history if history is None else history
        save_model(path, _trained_model(self._config, self._scans, self._training_scans[0].state, weights, history))


def _is_of_a_loader(error: Exception) -> bool:
    return isinstance(error, ConnectionError | EOFError) or 'DataLoader worker' in str(error)


@contextmanager
def _algorithms(*, deterministic: bool) -> Iterator[None]:
    """Ask torch for algorithms that repeat themselves, where it has them; undone at the exit."""
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
    )
    if deterministic:
        # Read by cuBLAS when it starts.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Costs time, and nothing here reads memory before it is written.
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before[2]


def _training_scan(scan: RawScan, device: torch.device, config: Config) -> TrainingScan:
    tensors = ScanTensors(scan, device, config.execution.kernels)
    return TrainingScan(tensors, initial_state(tensors, scale=config.probe.scale))


def _refuse_flat(scan: RawScan) -> None:
    if scan.is_flat:
        raise InputError(
            f'The object of {scan.name} is flat, but "Supervised" learns from a reference object: choose a product '
            'that was reconstructed before, or train "PINN", which needs no reference.'
        )


def _trainer(
    config: Config,
    output_folder: Path,
    callbacks: list[pl.Callback],
    precision: Precision,
    *,
    validation_batches: int,
) -> pl.Trainer:
    settings = config.training
    return pl.Trainer(
        accelerator={'cuda': 'gpu'}.get(settings.accelerator, settings.accelerator),
        devices=settings.devices,
        plugins=[precision],
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip or None,
        limit_val_batches=validation_batches,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=config.execution.progress_bar,
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
    first: ReconstructionState,
    weights: Weights,
    history: Sequence[LossRecord],
) -> TrainedModel:
    """The model file's content for the module's state ``weights``."""
    prefix = 'generator.'
    network = {name.removeprefix(prefix): one.cpu().numpy() for name, one in weights.items() if name.startswith(prefix)}
    learned = first_probe(weights)
    probe = (first.probe if learned is None else learned).cpu().numpy()
    header = ModelHeader(
        format_version=FORMAT_VERSION,
        backend=BACKEND,
        config=config,
        history=tuple(
            LossEntry(epoch=record.epoch, training=record.training, validation=record.validation) for record in history
        ),
        photons_per_frame=float(np.sum(np.abs(probe) ** 2)),
        scans=tuple(scan.name for scan in trained_scans(scans, config)),
        versions=package_versions(),
    )
    return TrainedModel(header, network, probe)
