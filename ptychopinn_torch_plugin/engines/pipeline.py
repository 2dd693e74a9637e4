"""Reconstruction of one scan: network, refinement, or both, then metrics, on the scan's own object grid.

One :class:`~ptychopinn_torch_plugin.types.ReconstructionState` passes through all stages::

    initial_state -> Predictor.predict -> Solver.run -> measure -> Reconstruction
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..config import Config, ProbeConfig
from ..data.finite_check import refuse_non_finite
from ..data.probe_preparation import prepared
from ..data.scan import RawScan
from ..data.sharding import Processes, working_as
from ..data.tensors import ScanTensors, initial_state, with_given_object
from ..errors import InputError, MemoryLimitError, ReconstructionError
from ..metrics.half_scans import with_half_scans
from ..metrics.residuals import illuminated_pixels, measure
from ..observer import APPLYING_NETWORK, METRICS, REFINING, VERIFYING, Observer
from ..physics.kernels.selection import choose_kernels
from ..storage.model_facts import ModelFacts, ScanFacts, differences
from ..storage.model_file import TrainedModel
from ..types import Credibility, LossRecord, Reconstruction, ReconstructionMetrics, ReconstructionState, Smoothing
from .devices import name_of, select_device, use_threads
from .distributed import run_together
from .geometry_search import search_geometry
from .memory import is_out_of_memory, with_smaller_batches
from .network import Predictor, steps_of, turns_of, windows_of
from .position_search import search_positions
from .probe_selection import prefers
from .progress import ProgressReporter, on_object_grid, plan_stages
from .solver import Solver
from .stopping_rule import StoppingRule
from .uncertainty_calibration import LEAST_CALIBRATED, calibration_factor
from .verification import LEAST_VERIFIED, verified_epochs, verify

logger = logging.getLogger(__name__)

Result = TypeVar('Result')

_IN_SENTENCES = {
    APPLYING_NETWORK: 'The network',
    REFINING: 'The refinement',
    METRICS: 'The computation of the metrics',
}


def reconstruct(scan: RawScan, model: TrainedModel, config: Config, observer: Observer | None = None) -> Reconstruction:
    """Reconstruct ``scan`` with ``model``, then refine the result as configured.

    Args:
        scan: the validated scan; its object guess only defines the object grid.
        model: the result of a training.
        config: its sections ``probe``, ``inference`` and ``refinement`` are used.
        observer: receives progress and previews, and may stop the run: the object so far is then returned.

    Returns:
        The reconstruction on the scan's own grid, with the losses of the training, and the object of the network
        before refinement.

    Raises:
        InputError: the model's probe was requested and does not fit the patterns.
        MemoryLimitError: memory ran out, with batches of a quarter of the size as well.
        ReconstructionError: the result is not finite.
        ConfigurationError: more steps were requested than the network of the model can take.
    """
    facts = ScanFacts(scan.mean_photons(), scan.probe, scan.pixel_m)
    for sentence in differences(ModelFacts(model.header, model.probe), facts):
        logger.warning('%s: %s', scan.name, sentence)
    return run_together(partial(_reconstruct_parts, model), scan, config, observer)


def refine(scan: RawScan, config: Config, observer: Observer | None = None) -> Reconstruction:
    """Reconstruct ``scan`` by refinement alone, from a transparent object, without a network.

    Arguments and return value as in :func:`reconstruct`; the losses are the deviances of the epochs.
    """
    return run_together(_refine_parts, scan, config, observer)


def _reconstruct_parts(model: TrainedModel, scan: RawScan, config: Config, observer: Observer) -> Reconstruction:
    """Reconstruct the scan, and its half scans where configured; a function that other processes can call, too."""

    def run(scan: RawScan, config: Config, observer: Observer) -> Reconstruction:
        return _reconstruct(scan, model, config, observer)

    return with_half_scans(run, scan, config, observer)


def _refine_parts(scan: RawScan, config: Config, observer: Observer) -> Reconstruction:
    """As :func:`_reconstruct_parts`, by refinement alone."""
    return with_half_scans(_refine, scan, config, observer)


def _reconstruct(scan: RawScan, model: TrainedModel, config: Config, observer: Observer) -> Reconstruction:
    tensors = _tensors(scan, config, observer)
    state = initial_state(tensors, _chosen_probe(scan, model, config), config.probe.scale)
    # Convolutions of channels-last arrays are up to twice as fast on a CPU.
    generator = model.build().to(tensors.device)
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's types
    steps = steps_of(generator, config.inference.steps)
    windows = windows_of(state, generator, model.config.data.group_size, config.inference)
    turns = turns_of(windows, generator)
    stages = plan_stages(
        config,
        len(state.probe),
        network_steps=turns * steps,
        turns=turns,
        width=model.config.model.width,
        verified_epochs=_verified_epochs(scan, config),
    )
    progress = ProgressReporter(observer, stages, scan.object_shape, config.inference.preview_interval)
    count = sum(len(batch.indices) for batch in windows)
    logger.info('Reconstructing %s (%d patterns) on the %s.', scan.name, scan.size, name_of(tensors.device))
    logger.debug(
        '%d steps of the network%s.',
        steps,
        '' if count == 1 else f' in each of {count} windows',
    )

    def predict(batch_size: int) -> ReconstructionState:
        inference = config.inference.model_copy(update={'batch_size': batch_size})
        windows = windows_of(state, generator, model.config.data.group_size, inference)
        return Predictor(tensors, state, generator, windows, steps, batch_size, progress).predict()

    predicted = refined = _in_batches(predict, tensors, config, progress, APPLYING_NETWORK)
    smoothing = Smoothing()
    if config.refinement.refine_epochs and not progress.should_stop():
        try:
            refined, _, smoothing = _solve(tensors, predicted, config, progress)
        except ReconstructionError as error:
            logger.warning('%s The result is the object of the network, not refined.', error)
    network_object = on_object_grid(predicted.object_array, predicted.origin, scan.object_shape)
    return _result(tensors, refined, scan, config, progress, model.losses, network_object, smoothing)


def _refine(scan: RawScan, config: Config, observer: Observer) -> Reconstruction:
    tensors = _tensors(scan, config, observer)
    stages = plan_stages(
        config,
        len(tensors.scan.probe),
        network_steps=0,
        turns=0,
        width=0,
        verified_epochs=_verified_epochs(scan, config),
    )
    progress = ProgressReporter(observer, stages, scan.object_shape, config.inference.preview_interval)
    start = initial_state(tensors, scale=config.probe.scale)
    if config.refinement.start == 'product':
        if scan.is_flat:
            logger.warning('%s: the object of the product is flat, so the refinement begins flat.', scan.name)
        start = with_given_object(tensors, start)
    state, losses, smoothing = _solve(tensors, start, config, progress)
    return _result(tensors, state, scan, config, progress, losses, None, smoothing)


def _tensors(scan: RawScan, config: Config, observer: Observer) -> ScanTensors:
    """Return the scan on its device, after the searches that are configured."""
    use_threads(config.inference.threads)
    device = select_device(config.inference.accelerator)
    kernels = config.execution.kernels
    logger.debug('Kernels: %s.', choose_kernels(kernels, device).description)
    scan = prepared(scan, config.probe).without_empty()
    if config.refinement.refine_geometry:
        logger.info(search_geometry(scan, config.refinement, device, observer.should_stop, kernels).sentence())
    if config.refinement.search_positions and not observer.should_stop():
        found = search_positions(scan, config.refinement, device, observer.should_stop, kernels)
        scan = replace(scan, positions=found)
    return ScanTensors(scan, device, kernels)


def _verified_epochs(scan: RawScan, config: Config) -> float:
    return verified_epochs(scan) if config.inference.verify and scan.lit.size >= LEAST_VERIFIED else 0.0


def _in_batches(
    work: Callable[[int], Result], tensors: ScanTensors, config: Config, progress: ProgressReporter, stage: str
) -> Result:
    """Run a stage; where memory runs out, run it again in smaller batches."""

    def attempt(batch_size: int) -> Result:
        progress.begin(stage)
        return work(batch_size)

    return with_smaller_batches(attempt, min(config.inference.batch_size, tensors.size), _IN_SENTENCES[stage])


def _solve(
    tensors: ScanTensors, state: ReconstructionState, config: Config, progress: ProgressReporter
) -> tuple[ReconstructionState, tuple[LossRecord, ...], Smoothing]:
    """Return the refined state, the deviances of the epochs, and how the object was smoothed.

    Raises:
        ReconstructionError: object, probe, positions or intensities are no longer finite.
    """
    most = config.refinement.refine_epochs

    def work(batch_size: int) -> tuple[ReconstructionState, list[LossRecord], Smoothing]:
        solver = Solver(tensors, state, config.refinement, batch_size)
        rule = StoppingRule(tensors, solver.state.object_shape, config.refinement)
        losses: list[LossRecord] = []

        def listen(epoch: int, deviance: float) -> bool:
            if not math.isfinite(deviance):
                raise _divergence(tensors.scan, epoch)
            losses.append(LossRecord(epoch, deviance, None))
            progress.losses(epoch, deviance)
            progress.advance()
            progress.preview(lambda: solver.state.object_array, solver.state.origin)
            if rule.is_done(deviance) and epoch < most:
                logger.info('Stopped after %d of %d epochs: the misfit no longer falls.', epoch, most)
                progress.reach(1.0)
                return True
            return progress.should_stop()

        with torch.inference_mode():
            return solver.run(listen), losses, solver.smoothing

    refined, losses, smoothing = _in_batches(work, tensors, config, progress, REFINING)
    parts = (refined.object_array, refined.probe, refined.positions, refined.intensities)
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise _divergence(tensors.scan, len(losses))
    if losses:
        logger.info(
            'Refined %d epochs: deviance per pixel %.3f to %.3f (1 is photon noise), smoothing: %s.',
            len(losses),
            losses[0].training,
            losses[-1].training,
            smoothing,
        )
    return refined, tuple(losses), smoothing


def _divergence(scan: RawScan, epoch: int) -> ReconstructionError:
    return ReconstructionError(
        f'The refinement of {scan.name} diverged in epoch {epoch}: the object, the probe or the positions are no '
        'longer finite. Check the probe and the bad-pixel mask, or switch off "Refine the probe" and "Refine the '
        'positions".'
    )


def _result(
    tensors: ScanTensors,
    state: ReconstructionState,
    scan: RawScan,
    config: Config,
    progress: ProgressReporter,
    losses: tuple[LossRecord, ...],
    network_object: npt.NDArray[np.complex64] | None,
    smoothing: Smoothing,
) -> Reconstruction:
    """Return the reconstruction of ``scan``, all of its positions included, with its metrics.

    Where memory runs out in the metrics, the reconstruction is returned without them.
    """

    def work(batch_size: int) -> ReconstructionMetrics:
        return measure(tensors, state, batch_size, smoothing)

    # Empty patterns took no part: their positions stay as given, and no photon of theirs was measured.
    positions, intensities = scan.positions.copy(), np.zeros(scan.size, dtype=np.float32)
    positions[scan.lit] = state.positions.cpu().numpy()
    intensities[scan.lit] = state.intensities.cpu().numpy()
    reconstruction = Reconstruction(
        object_array=on_object_grid(state.object_array, state.origin, scan.object_shape),
        coverage=np.zeros(scan.object_shape, dtype=np.bool_),
        probe=state.probe.cpu().numpy(),
        positions=positions,
        intensities=intensities,
        losses=losses,
        network_object=network_object,
    )
    refuse_non_finite(reconstruction, scan.name)
    metrics = None
    try:
        metrics = _in_batches(work, tensors, config, progress, METRICS)
        if config.inference.calibrate and losses and network_object is None and not progress.should_stop():
            metrics = _calibrated(metrics, tensors, state, config, progress, len(losses))
        progress.advance()
    except MemoryLimitError as error:
        logger.warning('%s The reconstruction is complete, without metrics.', error)
    if metrics is not None and config.inference.verify and not progress.should_stop():
        metrics = replace(metrics, credibility=_credibility(scan, reconstruction, tensors.device, progress))
    coverage = illuminated_pixels(tensors, state) if metrics is None else metrics.photons_map > 0
    share = 100 * float(coverage.mean(dtype=np.float64))
    logger.log(
        logging.INFO if metrics is None else logging.DEBUG,  # the verdict says it, too
        'The scan illuminates %.0f %% of the object grid; the object is 1 elsewhere.',
        share,
    )
    if not progress.should_stop():
        progress.finish()
    object_array = np.where(coverage, reconstruction.object_array, np.complex64(1.0))
    return replace(reconstruction, object_array=object_array, coverage=coverage, metrics=metrics)


def _calibrated(
    metrics: ReconstructionMetrics,
    tensors: ScanTensors,
    state: ReconstructionState,
    config: Config,
    progress: ProgressReporter,
    epochs: int,
) -> ReconstructionMetrics:
    """Return ``metrics`` with the uncertainty scaled by its calibration, which every process computes alone.

    Unchanged where patterns are too few, the run is stopped or memory is not enough; the log says the last.
    """
    if tensors.size < LEAST_CALIBRATED:
        return metrics
    refinement = config.refinement.model_copy(update={'refine_epochs': epochs})

    def work() -> float:
        kernels = config.execution.kernels
        return calibration_factor(tensors.scan, state, refinement, tensors.device, progress.should_stop, kernels)

    factor = _alone(work, 'The calibration', 'The uncertainty map is not calibrated.')
    if factor is None or not factor > 0:
        return metrics
    logger.debug('The uncertainty is multiplied by %.3g: patterns drawn from the result had this error.', factor)
    return replace(
        metrics,
        uncertainty=metrics.uncertainty * factor,
        uncertainty_map=(metrics.uncertainty_map * factor).astype(np.float32),
    )


def _credibility(
    scan: RawScan, reconstruction: Reconstruction, device: torch.device, progress: ProgressReporter
) -> Credibility | None:
    """Return the verdict by held-out patterns, which every process computes alone.

    None where patterns are too few or memory is not enough; the log says so.
    """
    if scan.lit.size < LEAST_VERIFIED:
        logger.info(
            '%s has %d patterns, too few to verify the result: %d are needed.', scan.name, scan.lit.size, LEAST_VERIFIED
        )
        return None

    def work() -> Credibility:
        probe, positions = reconstruction.probe, reconstruction.positions
        return verify(scan, probe, positions, device, progress.should_stop, progress.reach).credibility

    progress.begin(VERIFYING)
    return _alone(work, 'The verification', 'The reconstruction has no verdict.')


def _alone(work: Callable[[], Result], name: str, without: str) -> Result | None:
    """Return the result of ``work``, which every process does alone; None where memory is not enough: the log says it.

    Args:
        work: the work, on a part of the scan.
        name: what it is called in the log.
        without: what the result lacks without it, a sentence.
    """
    try:
        with working_as(Processes()):
            return work()
    except (MemoryError, MemoryLimitError, RuntimeError) as error:
        if not (isinstance(error, MemoryLimitError) or is_out_of_memory(error)):
            raise
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning('%s ran out of memory (%s). %s', name, words, without)
        return None


def _chosen_probe(scan: RawScan, model: TrainedModel, config: Config) -> npt.NDArray[np.complexfloating] | None:
    """Return the probe of the model, or None for that of the scan."""
    setting = config.inference.use_model_probe
    if setting == 'never' or (setting == 'auto' and config.probe != ProbeConfig()):
        return None  # a probe that was prepared by settings is the one to use
    if model.probe.shape[-2:] != scan.pattern_shape:
        if setting == 'auto':
            return None
        raise InputError(
            f'The probe of the model has {model.probe.shape[-2]} x {model.probe.shape[-1]} pixels and the patterns of '
            f'{scan.name} have {scan.pattern_shape[0]} x {scan.pattern_shape[1]}: set "Use the probe of the model" to '
            '"never" or "auto".'
        )
    if setting == 'always' or (not _is_same(scan.probe, model.probe) and _is_preferred(scan, model, config)):
        return model.probe
    return None


def _is_same(probe: npt.NDArray[np.complexfloating], other: npt.NDArray[np.complexfloating]) -> bool:
    """Return whether two probes differ by a factor at most."""
    if probe.shape != other.shape:
        return False
    product = abs(np.vdot(probe, other))
    return bool(product > (1 - 1e-6) * np.linalg.norm(probe) * np.linalg.norm(other))


def _is_preferred(scan: RawScan, model: TrainedModel, config: Config) -> bool:
    use_threads(config.inference.threads)
    device = select_device(config.inference.accelerator)
    return prefers(scan.without_empty(), model.probe, device, config.execution.kernels)
