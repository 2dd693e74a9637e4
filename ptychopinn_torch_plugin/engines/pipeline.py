"""Reconstruction: network, refinement, or one after the other, and the result on the scan's own object grid."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import Config, ProbeConfig
from ..data.finite_check import refuse_non_finite
from ..data.probe_preparation import prepared
from ..data.scan import RawScan
from ..data.tensors import ScanTensors
from ..errors import InputError, ReconstructionError
from ..metrics.half_scans import judged
from ..metrics.residuals import judge
from ..observer import Observer, SilentObserver
from ..storage.model_file import TrainedModel
from ..types import LossRecord, Reconstruction, ReconstructionMetrics
from .devices import select_device, use_threads
from .geometry_search import search_geometry
from .memory import with_smaller_batches
from .network import Predictor, rounds_of, steps_of
from .position_search import search_positions
from .probe_selection import prefers
from .progress import Report, on_grid
from .solver import Solver
from .stitching import Stitched

logger = logging.getLogger(__name__)

Result = TypeVar('Result')


def reconstruct(scan: RawScan, model: TrainedModel, config: Config, observer: Observer | None = None) -> Reconstruction:
    """Reconstruct ``scan`` with ``model``, then refine the result as far as the configuration asks for it.

    Args:
        scan: the validated scan; its object guess only says which grid the object is wanted on.
        model: what training wrote.
        config: its sections ``inference`` and ``refinement`` are used.
        observer: hears of progress and previews, and may ask to stop: the object so far is then returned.

    Returns:
        Object on the scan's own grid, coverage, probe in the unitary convention, positions, and the losses of the
        training.

    Raises:
        InputError: the model's probe was asked for and does not fit the patterns.
        MemoryLimitError: memory runs out, with batches of a quarter of the size as well.
        ReconstructionError: the result is not finite.
        ConfigurationError: more steps are asked for than the network of the model can take.
    """

    def run(scan: RawScan, config: Config, observer: Observer) -> Reconstruction:
        return _reconstruct(scan, model, config, observer)

    return judged(run, scan, config, observer)


def _reconstruct(scan: RawScan, model: TrainedModel, config: Config, observer: Observer) -> Reconstruction:
    tensors = _tensors(scan, config, observer, probe=_chosen_probe(scan, model, config))
    generator = model.build().to(tensors.device)
    steps = steps_of(generator, config.inference.steps)
    rounds = rounds_of(tensors, generator, model.config.data.group_size, config.inference)
    windows = sum(len(together.indices) for together in rounds)
    report = _report(scan, config, observer, network_steps=len(rounds) * steps)
    logger.info(
        'Reconstructing %s (%d positions) with %s: %d steps on %s.',
        scan.name,
        scan.size,
        tensors.device,
        steps,
        'one canvas' if windows == 1 else f'each of {windows} windows',
    )

    def predict(config: Config) -> Stitched:
        rounds = rounds_of(tensors, generator, model.config.data.group_size, config.inference)
        return Predictor(tensors, generator, rounds, steps, config.inference, report).predict()

    stitched = _in_batches(predict, config, tensors, report, 'The network')
    origin, _ = tensors.extent(np.arange(tensors.scan.size))
    answer = _Answer(stitched, origin, tensors.probe, tensors.scan.positions)
    if config.refinement.refine_epochs and not report.should_stop():
        answer = _refined(tensors, config, report, answer)
    found = _reconstruction(scan, answer, model.losses)
    return replace(found, judgement=_judge(tensors, config, report, answer))


def refine(scan: RawScan, config: Config, observer: Observer | None = None) -> Reconstruction:
    """Reconstruct ``scan`` by refinement alone, from a flat object: an iterative engine, no network.

    Arguments and return value as in :func:`reconstruct`; the losses are the deviances of the epochs.
    """
    return judged(_refine_scan, scan, config, observer)


def _refine_scan(scan: RawScan, config: Config, observer: Observer) -> Reconstruction:
    tensors = _tensors(scan, config, observer, probe=None)
    report = _report(scan, config, observer, network_steps=0)
    answer, losses = _refine_in_batches(tensors, config, report, start=None)
    found = _reconstruction(scan, answer, losses)
    return replace(found, judgement=_judge(tensors, config, report, answer))


class _Answer(NamedTuple):
    """What a stage hands on."""

    stitched: Stitched
    origin: npt.NDArray[np.integer]
    probe: Tensor
    positions: npt.NDArray[np.float64]


def _tensors(
    scan: RawScan, config: Config, observer: Observer, probe: npt.NDArray[np.complexfloating] | None
) -> ScanTensors:
    """The scan on its device, with its positions found anew where the configuration asks for a search."""
    use_threads(config.inference.threads)
    device = select_device(config.inference.accelerator)
    scan = prepared(scan, config.probe).without_empty()
    if config.refinement.refine_geometry:
        logger.info(search_geometry(scan, config.refinement, device, observer.should_stop).sentence())
    if config.refinement.search_positions and not observer.should_stop():
        found = search_positions(scan, config.refinement, device, observer.should_stop)
        scan = replace(scan, positions=found)
    return ScanTensors(scan, device, probe=probe, scale=config.probe.scale)


def _report(scan: RawScan, config: Config, observer: Observer | None, *, network_steps: int) -> Report:
    goal = network_steps + config.refinement.refine_epochs
    return Report(observer or SilentObserver(), goal, scan.object_shape, config.inference.preview_interval)


def _in_batches(
    work: Callable[[Config], Result], config: Config, tensors: ScanTensors, report: Report, what: str
) -> Result:
    """Run a stage of a reconstruction; where memory runs out, run it again in smaller batches."""
    done = report.done

    def attempt(batch_size: int) -> Result:
        report.rewind(done)
        inference = config.inference.model_copy(update={'batch_size': batch_size})
        return work(config.model_copy(update={'inference': inference}))

    return with_smaller_batches(attempt, min(config.inference.batch_size, tensors.scan.size), what)


def _refined(tensors: ScanTensors, config: Config, report: Report, answer: _Answer) -> _Answer:
    """The answer of the network after refinement; the very same, with a warning, where refinement diverges."""
    try:
        return _refine_in_batches(tensors, config, report, start=answer)[0]
    except ReconstructionError as error:
        logger.warning('%s The object of the network is handed over as it is.', error)
        return answer


def _refine_in_batches(
    tensors: ScanTensors, config: Config, report: Report, *, start: _Answer | None
) -> tuple[_Answer, tuple[LossRecord, ...]]:
    def work(config: Config) -> tuple[_Answer, tuple[LossRecord, ...]]:
        return _refine(tensors, config, report, start=start)

    return _in_batches(work, config, tensors, report, 'The refinement')


def _refine(
    tensors: ScanTensors, config: Config, report: Report, *, start: _Answer | None
) -> tuple[_Answer, tuple[LossRecord, ...]]:
    solver = Solver(tensors, config.refinement, config.inference.batch_size)
    if start is not None:
        solver.start_from(start.stitched.canvas, start.origin)
    losses: list[LossRecord] = []

    def listen(epoch: int, deviance: float) -> bool:
        if not math.isfinite(deviance):
            raise _divergence(tensors.scan, epoch)
        losses.append(LossRecord(epoch, deviance, None))
        report.advance()
        report.preview(solver.stitched, solver.origin)
        return report.should_stop()

    with torch.inference_mode():
        unknowns = solver.run(listen)
        stitched = solver.stitched()
    positions = tensors.scan.positions + solver.displacements.cpu().numpy().astype(np.float64)
    if not (_is_finite(stitched.canvas) and _is_finite(unknowns.probe) and np.isfinite(positions).all()):
        raise _divergence(tensors.scan, len(losses))
    if losses:
        logger.info(
            'Refined %d epochs: deviance per pixel %.3f to %.3f (1 is photon noise).',
            len(losses),
            losses[0].training,
            losses[-1].training,
        )
    return _Answer(stitched, solver.origin, unknowns.probe, positions), tuple(losses)


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _divergence(scan: RawScan, epoch: int) -> ReconstructionError:
    return ReconstructionError(
        f'The refinement of {scan.name} diverged in epoch {epoch}: the object, the probe or the positions are no '
        'longer finite. Check the probe and the bad-pixel mask, or switch off "Refine the probe" and "Refine the '
        'positions".'
    )


def _judge(tensors: ScanTensors, config: Config, report: Report, answer: _Answer) -> ReconstructionMetrics:
    def work(config: Config) -> ReconstructionMetrics:
        return judge(tensors, *answer, batch_size=config.inference.batch_size)

    return _in_batches(work, config, tensors, report, 'The judgement')


def _reconstruction(scan: RawScan, answer: _Answer, losses: tuple[LossRecord, ...]) -> Reconstruction:
    object_array, coverage = on_grid(answer.stitched, answer.origin, scan.object_shape)
    positions = scan.positions.copy()
    positions[scan.lit] = answer.positions  # empty patterns were skipped; their positions keep number and place
    logger.info(
        'The scan lights %.0f %% of the object grid; the rest stays 1.', 100 * float(coverage.mean(dtype=np.float64))
    )
    reconstruction = Reconstruction(
        object_array=object_array,
        coverage=coverage,
        probe=answer.probe.cpu().numpy(),
        positions=positions,
        losses=losses,
    )
    refuse_non_finite(reconstruction, scan.name)
    return reconstruction


def _chosen_probe(scan: RawScan, model: TrainedModel, config: Config) -> npt.NDArray[np.complexfloating] | None:
    """The probe of the model, or None for that of the scan."""
    wish = config.inference.use_model_probe
    if wish == 'never' or (wish == 'auto' and config.probe != ProbeConfig()):
        return None  # who prepares a probe wants it used
    if model.probe.shape[-2:] != scan.pattern_shape:
        if wish == 'auto':
            return None
        raise InputError(
            f'The probe of the model has {model.probe.shape[-2]} x {model.probe.shape[-1]} pixels and the patterns of '
            f'{scan.name} have {scan.pattern_shape[0]} x {scan.pattern_shape[1]}: set "Use the probe of the model" to '
            '"never" or "auto".'
        )
    if wish == 'always' or (not _is_same(scan.probe, model.probe) and _is_preferred(scan, model, config)):
        return model.probe
    return None


def _is_same(probe: npt.NDArray[np.complexfloating], other: npt.NDArray[np.complexfloating]) -> bool:
    """Whether two probes differ by a factor at most."""
    if probe.shape != other.shape:
        return False
    product = abs(np.vdot(probe, other))
    return bool(product > (1 - 1e-6) * np.linalg.norm(probe) * np.linalg.norm(other))


def _is_preferred(scan: RawScan, model: TrainedModel, config: Config) -> bool:
    use_threads(config.inference.threads)
    return prefers(scan.without_empty(), model.probe, select_device(config.inference.accelerator))
