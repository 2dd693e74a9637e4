"""Application of accepted proposals: a new workflow folder; what was read is never changed.

:class:`Changes` holds all that the proposals of an inspection change, as plain values: the process that inspected may
have ended when they are accepted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..config import RefinementConfig
from ..data.io.conversion import BeamGeometry, complete_geometry, write_workflow_folder
from ..data.io.output import write_product
from ..data.io.workflow_folder import PRODUCT_FILE, read_product
from ..data.positions import mapped, rotation_matrix
from ..data.scan import RawScan, make_raw_scan
from ..data.tensors import ScanTensors, initial_state
from ..engines.aperture import aperture_of
from ..engines.solver import Solver
from ..errors import ConfigurationError, InputError
from .inspect import Inspection
from .measurement import Measurement, Orientation
from .search import on_grid, subset_of

logger = logging.getLogger(__name__)

ACCEPTABLE = ('mask', 'crop', 'orientation', 'probe', 'rotation', 'scale')
"""Every proposal there is."""
PROBE_EPOCHS = 100
"""Epochs in which the modes of a new probe are refined on the subset."""


@dataclass(frozen=True)
class Changes:
    """What the proposals of an inspection change, in plain values: the fields are those of a JSON document."""

    proposals: Mapping[str, str]
    """Text of every proposal by its name."""
    usual: tuple[str, ...]
    """Names of the proposals that are applied without being named."""
    more_bad_pixels: tuple[tuple[int, int], ...]
    """Pixels (row, column) of the patterns as given that "mask" adds."""
    centre: tuple[int, int]
    """Pixel (y, x) of the patterns as given about which "crop" cuts."""
    side: int
    """Side after "crop", pixels."""
    orientation: tuple[bool, bool, bool]
    """Fields of the :class:`~.measurement.Orientation` of "orientation"."""
    curvature: float | None
    """Curvature of the new probe on the grid of ``side``, square object pixels; None where none was found."""
    modes: int
    """Incoherent modes of the new probe."""
    rotation: float
    """Radians of "rotation", from y towards x."""
    scale: float
    """Factor of "scale"."""
    notes: Mapping[str, Any]
    """Colour and findings, for the metadata of the product."""

    @classmethod
    def of(cls, inspection: Inspection) -> Changes:
        """Return the changes that ``inspection`` proposes."""
        report, found = inspection.report, inspection.found
        more = inspection.detector.bad_pixels & ~inspection.measurement.bad_pixels
        turned = inspection.orientation
        return cls(
            proposals={item.key: item.text for item in report.proposals},
            usual=usual(inspection),
            more_bad_pixels=tuple((int(row), int(column)) for row, column in np.argwhere(more)),
            centre=inspection.centre,
            side=inspection.side,
            orientation=(turned.transposed, turned.rows_flipped, turned.columns_flipped),
            curvature=None if inspection.curvature is None else inspection.curvature.value,
            modes=1 if found is None else found.modes,
            rotation=0.0 if found is None else found.rotation.value,
            scale=1.0 if found is None else found.scale.value,
            notes={'colour': report.colour, 'findings': {item.key: item.text for item in report.findings}},
        )

    def document(self) -> dict[str, Any]:
        """Return the changes as a JSON document."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Changes:
        """Return the changes of a document that :meth:`document` made and that may have been JSON in between."""
        row, column = document['centre']
        transposed, rows_flipped, columns_flipped = document['orientation']
        plain = {
            'usual': tuple(document['usual']),
            'more_bad_pixels': tuple((int(y), int(x)) for y, x in document['more_bad_pixels']),
            'centre': (row, column),
            'orientation': (transposed, rows_flipped, columns_flipped),
        }
        return cls(**{**document, **plain})


def usual(inspection: Inspection) -> tuple[str, ...]:
    """Return the names of the proposals that are applied without being named."""
    return tuple(item.key for item in inspection.report.proposals if item.is_usual)


def changed_scan(
    measurement: Measurement, changes: Changes, accepted: Collection[str], device: torch.device
) -> tuple[RawScan, BeamGeometry]:
    """Return the scan with the ``accepted`` changes applied, and its geometry.

    Raises:
        ConfigurationError: a name is none of the proposals.
        InputError: the scan has no probe and none was accepted.
    """
    unknown = [name for name in accepted if name not in changes.proposals]
    if unknown:
        raise ConfigurationError(
            f'--accept {" ".join(unknown)}: this inspection proposes {", ".join(changes.proposals) or "nothing"}.'
        )
    if 'mask' in accepted:
        bad_pixels = measurement.bad_pixels.copy()
        bad_pixels[tuple(np.array(changes.more_bad_pixels).T)] = True
        measurement = replace(measurement, bad_pixels=bad_pixels)
    if 'crop' in accepted:
        measurement = measurement.cropped(changes.side, changes.centre)
    if 'orientation' in accepted:
        # The probe lies in the frame of the positions, which does not change.
        measurement = replace(measurement.oriented(Orientation(*changes.orientation)), probe=measurement.probe)
    measurement = replace(measurement, positions=_mapped(measurement.positions, changes, accepted))
    probe = _probe(measurement, changes, device) if 'probe' in accepted else measurement.probe
    if probe is None:
        raise InputError(
            f'{measurement.name} has no probe, and none was accepted: a workflow folder needs one. Accept "probe", or '
            'give a scan with a probe.'
        )
    return _scan_of(measurement, probe), measurement.geometry


def write_accepted(folder: Path, inspection: Inspection, accepted: Collection[str], device: torch.device) -> None:
    """Write a workflow folder with the ``accepted`` proposals applied, as :func:`write_changed`."""
    write_changed(folder, inspection.measurement, Changes.of(inspection), accepted, device)


def write_changed(
    folder: Path, measurement: Measurement, changes: Changes, accepted: Collection[str], device: torch.device
) -> None:
    """Write a workflow folder with the ``accepted`` changes applied; its metadata say which, and with what result.

    Raises:
        ConfigurationError, InputError: as :func:`changed_scan`, or energy and distance are unknown.
        OutputError: a file cannot be written.
    """
    scan, geometry = changed_scan(measurement, changes, accepted, device)
    write_workflow_folder(folder, scan, complete_geometry(geometry, scan), name=measurement.name)
    product = read_product(folder / PRODUCT_FILE)
    applied = {name: text for name, text in changes.proposals.items() if name in accepted}
    comments = json.dumps({'inspection': {'applied': applied, **changes.notes}})
    write_product(folder / PRODUCT_FILE, replace(product, metadata=replace(product.metadata, comments=comments)))


def _mapped(positions: npt.NDArray[np.float64], changes: Changes, accepted: Collection[str]) -> npt.NDArray[np.float64]:
    angle = changes.rotation if 'rotation' in accepted else 0.0
    scale = changes.scale if 'scale' in accepted else 1.0
    return mapped(positions, scale * rotation_matrix(angle))


def _probe(measurement: Measurement, changes: Changes, device: torch.device) -> npt.NDArray[np.complexfloating]:
    """Return the probe of the inspection on the grid of ``measurement``, its modes refined on a subset."""
    if changes.curvature is None:
        raise ValueError('The inspection found no probe.')
    if measurement.shape[0] != measurement.shape[1]:
        raise InputError(
            f'{measurement.name} has patterns of {measurement.shape[0]} x {measurement.shape[1]} pixels: a probe is '
            'made for square ones; accept "crop" as well.'
        )
    aperture = aperture_of(measurement.counts.mean(axis=0, dtype=np.float64), measurement.bad_pixels)
    probe = aperture.probe(changes.curvature * (measurement.shape[0] / changes.side) ** 2)
    part = subset_of(measurement)
    tensors = ScanTensors(_scan_of(part, probe), device)
    config = RefinementConfig(
        refine_epochs=PROBE_EPOCHS, refine_positions=False, probe_modes=changes.modes, smoothing=0.0
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
