"""Application of accepted proposals: a new workflow folder; what was read is never changed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..config import RefinementConfig
from ..data.io.conversion import BeamGeometry, complete_geometry, write_workflow_folder
from ..data.io.output import write_product
from ..data.io.workflow_folder import PRODUCT_FILE, read_product
from ..data.scan import RawScan, make_raw_scan
from ..data.tensors import ScanTensors, initial_state
from ..engines.solver import Solver
from ..errors import ConfigurationError, InputError
from .aperture import aperture_of
from .inspect import Inspection
from .measurement import Measurement
from .search import on_grid, subset_of

logger = logging.getLogger(__name__)

ACCEPTABLE = ('mask', 'crop', 'orientation', 'probe', 'rotation', 'scale')
"""Every proposal there is."""
PROBE_EPOCHS = 100
"""Epochs in which the modes of a new probe are refined on the subset."""


def usual(inspection: Inspection) -> tuple[str, ...]:
    """Return the names of the proposals that are applied without being named."""
    return tuple(item.key for item in inspection.report.proposals if item.is_usual)


def accepted_scan(
    inspection: Inspection, accepted: Collection[str], device: torch.device
) -> tuple[RawScan, BeamGeometry]:
    """Return the scan with the ``accepted`` proposals applied, and its geometry.

    Raises:
        ConfigurationError: a name is none of the proposals of this inspection.
        InputError: the scan has no probe and none was accepted.
    """
    proposed = [item.key for item in inspection.report.proposals]
    unknown = [name for name in accepted if name not in proposed]
    if unknown:
        raise ConfigurationError(
            f'--accept {" ".join(unknown)}: this inspection proposes {", ".join(proposed) or "nothing"}.'
        )
    measurement = inspection.measurement
    if 'mask' in accepted:
        measurement = replace(measurement, bad_pixels=inspection.detector.bad_pixels)
    if 'crop' in accepted:
        measurement = measurement.cropped(inspection.side, inspection.centre)
    if 'orientation' in accepted:
        # The probe lies in the frame of the positions, which does not change.
        measurement = replace(measurement.oriented(inspection.orientation), probe=measurement.probe)
    measurement = replace(measurement, positions=_mapped(measurement.positions, inspection, accepted))
    probe = _probe(measurement, inspection, device) if 'probe' in accepted else measurement.probe
    if probe is None:
        raise InputError(
            f'{measurement.name} has no probe, and none was accepted: a workflow folder needs one. Accept "probe", or '
            'give a scan with a probe.'
        )
    return _scan_of(measurement, probe), measurement.geometry


def write_accepted(folder: Path, inspection: Inspection, accepted: Collection[str], device: torch.device) -> None:
    """Write a workflow folder with the ``accepted`` proposals applied; its metadata say which, and with what result.

    Raises:
        ConfigurationError, InputError: as :func:`accepted_scan`, or energy and distance are unknown.
        OutputError: a file cannot be written.
    """
    scan, geometry = accepted_scan(inspection, accepted, device)
    write_workflow_folder(folder, scan, complete_geometry(geometry, scan), name=inspection.measurement.name)
    product = read_product(folder / PRODUCT_FILE)
    comments = json.dumps({'inspection': _notes(inspection, accepted)})
    write_product(folder / PRODUCT_FILE, replace(product, metadata=replace(product.metadata, comments=comments)))


def _notes(inspection: Inspection, accepted: Collection[str]) -> dict[str, object]:
    report = inspection.report
    return {
        'applied': {item.key: item.text for item in report.proposals if item.key in accepted},
        'colour': report.colour,
        'findings': {item.key: item.text for item in report.findings},
    }


def _mapped(
    positions: npt.NDArray[np.float64], inspection: Inspection, accepted: Collection[str]
) -> npt.NDArray[np.float64]:
    found = inspection.found
    if found is None:
        return positions
    angle = found.rotation.value if 'rotation' in accepted else 0.0
    scale = found.scale.value if 'scale' in accepted else 1.0
    cosine, sine = math.cos(angle), math.sin(angle)
    middle = positions.mean(axis=0)
    matrix = scale * np.array([[cosine, -sine], [sine, cosine]])
    return np.asarray((positions - middle) @ matrix.T + middle)


def _probe(measurement: Measurement, inspection: Inspection, device: torch.device) -> npt.NDArray[np.complexfloating]:
    """Return the probe of the inspection on the grid of ``measurement``, its modes refined on a subset."""
    found, curvature = inspection.found, inspection.curvature
    if found is None or curvature is None:
        raise ValueError('The inspection found no probe.')
    if measurement.shape[0] != measurement.shape[1]:
        raise InputError(
            f'{measurement.name} has patterns of {measurement.shape[0]} x {measurement.shape[1]} pixels: a probe is '
            'made for square ones; accept "crop" as well.'
        )
    aperture = aperture_of(measurement.counts.mean(axis=0, dtype=np.float64), measurement.bad_pixels)
    probe = aperture.probe(curvature.value * (measurement.shape[0] / inspection.side) ** 2)
    part = subset_of(measurement)
    tensors = ScanTensors(_scan_of(part, probe), device)
    config = RefinementConfig(
        refine_epochs=PROBE_EPOCHS, refine_positions=False, probe_modes=found.modes, smoothing=0.0
    )
    with torch.inference_mode():
        state = Solver(tensors, initial_state(tensors), config, part.size).run(lambda _epoch, _deviance: False)
    modes: npt.NDArray[np.complex64] = state.probe.cpu().numpy()
    return modes


def _scan_of(measurement: Measurement, probe: npt.NDArray[np.complexfloating]) -> RawScan:
    positions, grid = on_grid(measurement)
    return make_raw_scan(
        measurement.counts,
        positions,
        probe,
        bad_pixels=measurement.bad_pixels,
        object_shape=grid,
        name=measurement.name,
    )
