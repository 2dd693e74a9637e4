"""Reconstruction: network, refinement, or one after the other, and the result on the scan's own object grid."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .config import Config
from .data.scan import RawScan
from .devices import select_device, use_threads
from .errors import InputError
from .inference import Predictor, windows_of
from .observer import Observer, SilentObserver
from .persistence import TrainedModel
from .refinement.solver import Solver
from .report import Report, on_grid
from .stitching import Stitched
from .tensors import ScanTensors
from .types import LossRecord, Reconstruction

logger = logging.getLogger(__name__)

DEFAULT_STEPS_FACTOR = 2
"""More steps than in training still improve the picture: the network was trained to help at every one of them."""


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
    """
    tensors = _tensors(scan, config, probe=_chosen_probe(scan, model, config))
    steps = config.inference.steps or DEFAULT_STEPS_FACTOR * model.config.model.steps
    windows = len(windows_of(tensors, config.inference.window_size))
    report = _report(scan, config, observer, network_steps=windows * steps)
    logger.info(
        'Reconstructing %s (%d positions) with %s: %d steps on %s.',
        scan.name,
        scan.size,
        tensors.device,
        steps,
        'one canvas' if windows == 1 else f'each of {windows} windows',
    )
    generator = model.build().to(tensors.device)
    stitched = Predictor(tensors, generator, steps, config.inference, report).predict()
    origin, _ = tensors.extent(np.arange(scan.size))
    answer = _Answer(stitched, origin, tensors.probe, scan.positions)
    if config.refinement.refine_epochs and not report.should_stop():
        answer, _ = _refine(tensors, config, report, start=answer)
    return _reconstruction(scan, answer, model.losses)


def refine(scan: RawScan, config: Config, observer: Observer | None = None) -> Reconstruction:
    """Reconstruct ``scan`` by refinement alone, from a flat object: an iterative engine, no network.

    Arguments and return value as in :func:`reconstruct`; the losses are the deviances of the epochs.
    """
    tensors = _tensors(scan, config, probe=None)
    report = _report(scan, config, observer, network_steps=0)
    answer, losses = _refine(tensors, config, report, start=None)
    return _reconstruction(scan, answer, losses)


class _Answer(NamedTuple):
    """What a stage hands on."""

    stitched: Stitched
    origin: npt.NDArray[np.integer]
    probe: Tensor
    positions: npt.NDArray[np.float64]


def _tensors(scan: RawScan, config: Config, probe: npt.NDArray[np.complexfloating] | None) -> ScanTensors:
    use_threads(config.inference.threads)
    return ScanTensors(scan, select_device(config.inference.accelerator), probe=probe)


def _report(scan: RawScan, config: Config, observer: Observer | None, *, network_steps: int) -> Report:
    goal = network_steps + config.refinement.refine_epochs
    return Report(observer or SilentObserver(), goal, scan.object_shape, config.inference.preview_interval)


def _refine(
    tensors: ScanTensors, config: Config, report: Report, *, start: _Answer | None
) -> tuple[_Answer, tuple[LossRecord, ...]]:
    solver = Solver(tensors, config.refinement, config.inference.batch_size)
    if start is not None:
        solver.start_from(start.stitched.canvas, start.origin)
    losses: list[LossRecord] = []

    def listen(epoch: int, deviance: float) -> bool:
        losses.append(LossRecord(epoch, deviance, None))
        report.advance()
        report.preview(solver.stitched, solver.origin)
        return report.should_stop()

    with torch.inference_mode():
        unknowns = solver.run(listen)
        stitched = solver.stitched()
    positions = tensors.scan.positions + solver.displacements.cpu().numpy().astype(np.float64)
    if losses:
        logger.info(
            'Refined %d epochs: deviance per pixel %.3f to %.3f (1 is photon noise).',
            len(losses),
            losses[0].training,
            losses[-1].training,
        )
    return _Answer(stitched, solver.origin, unknowns.probe, positions), tuple(losses)


def _reconstruction(scan: RawScan, answer: _Answer, losses: tuple[LossRecord, ...]) -> Reconstruction:
    object_array, coverage = on_grid(answer.stitched, answer.origin, scan.object_shape)
    logger.info(
        'The scan lights %.0f %% of the object grid; the rest stays 1.', 100 * float(coverage.mean(dtype=np.float64))
    )
    return Reconstruction(
        object_array=object_array,
        coverage=coverage,
        probe=answer.probe.cpu().numpy(),
        positions=answer.positions,
        losses=losses,
    )


def _chosen_probe(scan: RawScan, model: TrainedModel, config: Config) -> npt.NDArray[np.complexfloating] | None:
    if not config.inference.use_model_probe:
        return None
    if model.probe.shape[-2:] != scan.pattern_shape:
        raise InputError(
            f'The probe of the model has {model.probe.shape[-2]} x {model.probe.shape[-1]} pixels and the patterns of '
            f'{scan.name} have {scan.pattern_shape[0]} x {scan.pattern_shape[1]}: switch off "Use the probe '
            'of the model".'
        )
    return model.probe
