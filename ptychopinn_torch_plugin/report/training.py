"""The report of a training: losses, probe before and after, and the object of the first scan by the network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..data.scan import RawScan
from ..errors import PtychoPINNError
from ..metrics.run import changed_settings, duration, mode_shares
from ..metrics.verdict import NEAR_NOISE, light_of
from ..storage.model_facts import ModelFacts, read_facts
from .advice import is_still_falling
from .facts import FORMAT_VERSION, Facts, metres, versions, when
from .page import Curve, data_text, environment, object_maps, probe_maps
from .plots import plot_losses

TITLE: Final = 'Training of a model'
ROSE: Final = 1.05
"""Loss of the last epoch over that of the best one from which on it has risen."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What a report says of a training beside its model."""

    scans: Sequence[RawScan]
    config: Config
    started: datetime
    """Time at which the run began, with its time zone."""
    seconds: float
    """Duration of the run."""
    model_file: Path
    warnings: tuple[str, ...] = ()
    """Warnings in the log of the run."""
    is_stopped: bool = False
    """Whether the run was stopped early; the object is then not drawn, because that takes time."""


def render_training(run: TrainingRun) -> str:
    """Return the report of a training as one HTML page that refers to nothing outside of itself.

    Raises:
        ImportError: matplotlib or Jinja is not installed or does not work here.
        ModelFileError: the model file cannot be read.
    """
    model = read_facts(run.model_file)
    facts = training_facts(run, model)
    best, pixel_m = model.header.best, run.scans[0].pixel_m
    has_held_out = best is not None and best.validation is not None
    best_loss = None if best is None else best.training if best.validation is None else best.validation
    object_array = None if run.is_stopped or best is None else _object_of(run)
    covered = None if object_array is None else object_array != 1
    return environment().get_template('training.html.jinja').render(
        facts=facts,
        data=data_text(facts),
        title=TITLE,
        rows=_rows(facts),
        best_loss=best_loss,
        best_of='on held-out positions' if has_held_out else 'of the training',
        loss_light=None if best_loss is None or run.config.model.model_type == 'supervised' else light_of(best_loss),
        curves=_curves(model, run.config),
        object_maps=[]
        if object_array is None or covered is None or not covered.any()
        else object_maps(object_array, covered, covered, pixel_m),
        object_note='Predicted from its first positions, with the probe of the model, without refinement.',
        given_probe=probe_maps(run.scans[0].probe, pixel_m, 'given'),
        found_probe=probe_maps(model.probe, pixel_m, 'found'),
    )  # fmt: skip


def training_facts(run: TrainingRun, model: ModelFacts) -> Facts:
    """Return what the report of a training says in numbers and words: ``specs/report.schema.json``."""
    first, header = run.scans[0], model.header
    facts: Facts = {
        'format_version': FORMAT_VERSION,
        'kind': 'train',
        'scan': ', '.join(scan.name for scan in run.scans),
        'scans': [
            {
                'name': scan.name,
                'patterns': scan.size,
                'pattern_shape': list(scan.pattern_shape),
                'object_pixel_m': scan.pixel_m and list(scan.pixel_m),
                'is_held_out': run.config.data.hold_out_scan and number == len(run.scans),
            }
            for number, scan in enumerate(run.scans, 1)
        ],
        'started': run.started.isoformat(timespec='seconds'),
        'seconds': round(run.seconds, 3),
        'is_stopped': run.is_stopped,
        'patterns': sum(scan.size for scan in run.scans),
        'pattern_shape': list(first.pattern_shape),
        'object_pixel_m': first.pixel_m and list(first.pixel_m),
        'photons_per_pattern': header.photons_per_frame,
        'probe_modes': len(model.probe),
        'probe_mode_shares': mode_shares(model.probe),
        'model_type': header.config.model.model_type,
        'generator': header.config.model.generator,
        'epochs': len(header.losses),
        'best_epoch': header.best and header.best.epoch,
        'losses': [[record.epoch, record.training, record.validation] for record in header.losses],
        'changed_settings': changed_settings(run.config),
        'model': str(run.model_file),
        'output': str(run.model_file),
        'warnings': list(run.warnings),
        'versions': versions(),
    }
    return facts | {'advice': _advice(facts, run.config)}


def _advice(facts: Facts, config: Config) -> list[str]:
    losses = {epoch: training if validation is None else validation for epoch, training, validation in facts['losses']}
    if not losses:
        return ['No epoch was finished: the model is not trained.']
    found = []
    best, last = losses[facts['best_epoch']], list(losses.values())[-1]
    if config.model.model_type == 'pinn' and best > NEAR_NOISE:
        found.append(
            'The patterns are not explained: errors other than photon noise dominate. Run "ptychopinn-torch inspect" '
            'on the scans, and refine after the network (refinement.refine_epochs).'
        )
    if last > ROSE * best:
        found.append(
            f'The loss was smallest in epoch {facts["best_epoch"]}, and is {last / best - 1:.0%} larger in the last '
            'one: fewer epochs (training.epochs) do, and more scans improve the model.'
        )
    elif is_still_falling(list(losses.values())):
        found.append(f'The loss was still falling after {len(losses)} epochs: more epochs (training.epochs) help.')
    if all(validation is None for _, _, validation in facts['losses']):
        found.append(
            'No position was held out, so nothing shows the loss on patterns that the network has not seen: set '
            'data.validation_fraction above 0.'
        )
    if len(facts['scans']) == 1:
        found.append('The model was trained on one scan: check its result on another scan before you rely on it there.')
    return found


def _rows(facts: Facts) -> list[tuple[str, str]]:
    height, width = facts['pattern_shape']
    pixel_m = facts['object_pixel_m']
    stopped = ', stopped early' if facts['is_stopped'] else ''
    return [
        ('Scans', f'{len(facts["scans"])}: {facts["patterns"]:,} patterns of {height} x {width} pixels'),
        ('Begun', when(facts)),
        ('Took', duration(facts['seconds']) + stopped),
        ('Network', f'{facts["generator"]}, {facts["model_type"]}'),
        ('Epochs', f'{facts["epochs"]}, the best one is {facts["best_epoch"] or "none"}'),
        ('Photons per pattern', f'{facts["photons_per_pattern"]:,.0f}'),
        ('Object pixel', 'not known' if pixel_m is None else ' x '.join(metres(side) for side in pixel_m)),
    ]


def _curves(model: ModelFacts, config: Config) -> list[Curve]:
    if not model.header.losses:
        return []
    note = (
        'At 1 (dotted), photon noise is the only difference where counts are many. The training loss is the mean over '
        'the steps of the network, the validation loss that of the last step: the two are not expected to be equal.'
    )
    if config.model.model_type == 'supervised':
        note = 'Squared error against the reference objects over their power; the smallest value is 0.'
    return [Curve('losses', 'Losses of the training', plot_losses(model.header.losses), note)]


def _object_of(run: TrainingRun) -> npt.NDArray[np.complex64] | None:
    """Return the object of the first scan by the network; None, with a warning, where it cannot be computed."""
    from ..training.preview import predicted_object

    try:
        return predicted_object(run.scans[0], run.model_file, run.config)
    except (MemoryError, RuntimeError, PtychoPINNError) as error:  # the report does without it
        logger.warning('The report shows no object: %s', str(error) or 'there is not enough memory.')
        return None
