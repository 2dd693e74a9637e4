"""Reading of raw data: workflow folders, training files, NPZ archives of patterns and positions, and CXI files."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np
import numpy.typing as npt

from ..data.io.archive import ArrayHeader, read_arrays, read_headers
from ..data.io.conversion import BeamGeometry, geometry_of_product, read_npz_geometry
from ..data.io.npz import read_training_npz
from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE, load_workflow_folder
from ..data.validation import check_bad_pixels, check_count_values, check_pattern_stack, check_positions
from ..errors import InputError
from ..limits import physical_memory
from .measurement import HC_EV_M, Measurement

logger = logging.getLogger(__name__)

PositionUnit = Literal['auto', 'm', 'px']

CXI_SUFFIXES: Final = ('.cxi', '.h5', '.hdf5')
TRAINING_KEYS: Final = ('diff3d', 'xcoords', 'ycoords', 'probeGuess')
ELECTRONVOLT_J: Final = 1.602176634e-19
LARGEST_METRES: Final = 1e-2
"""Positions that all lie within this extent are metres: in pixels, a scan would be smaller than one pixel."""
HELP: Final = (
    f'a workflow folder ({DIFFRACTION_FILE} and {PRODUCT_FILE}), a training file (.npz), an archive (.npz) of patterns '
    '(n, H, W) and positions (n, 2), or a CXI file (.cxi)'
)


def read_measurement(
    path: Path, given: BeamGeometry | None = None, unit: PositionUnit = 'auto', name: str = ''
) -> Measurement:
    """Read raw data.

    Args:
        path: see ``HELP``.
        given: energy, distance and pixel sizes that win over those of the file.
        unit: unit of the positions of an archive; 'auto' decides by their extent, and the log says so.
        name: name in messages; that of the file or folder if empty.

    Raises:
        InputError: there is no such file, it holds no patterns or positions, they cannot be used, or positions are in
            metres and the size of an object pixel is unknown.
    """
    title, geometry = name or path.stem, given or BeamGeometry()
    if path.is_dir():
        return _from_folder(path, geometry, title)
    if not path.is_file():
        raise InputError(f'{path} does not exist: give {HELP}.')
    if path.suffix == '.npz':
        headers = read_headers(path)
        if all(key in headers for key in TRAINING_KEYS):
            return _from_training_file(path, geometry, title)
        return _from_archive(path, headers, geometry, unit, title)
    if path.suffix in CXI_SUFFIXES:
        return _from_cxi(path, geometry, title)
    raise InputError(f'{path} is no scan: give {HELP}.')


def _from_folder(folder: Path, given: BeamGeometry, name: str) -> Measurement:
    parameters = load_workflow_folder(folder)
    product = parameters.product
    geometry = given.or_else(geometry_of_product(product, folder / DIFFRACTION_FILE))
    grid = product.object_.get_geometry()
    positions = np.stack(
        [
            grid.map_probe_positions_to_object_y_px(product.probe_positions),
            grid.map_probe_positions_to_object_x_px(product.probe_positions),
        ],
        axis=-1,
    )
    probe = product.probes.get_probe_no_opr().get_array() if product.probes.height_px else None
    return _measurement(
        parameters.diffraction_patterns,
        positions,
        parameters.bad_pixels,
        geometry,
        name,
        probe=None if probe is None else np.asarray(probe).reshape(-1, *probe.shape[-2:]),
        says_near_field=not product.metadata.far_field,
    )


def _from_training_file(path: Path, given: BeamGeometry, name: str) -> Measurement:
    scan = read_training_npz(path)
    geometry = given.or_else(read_npz_geometry(path))
    return _measurement(scan.counts, scan.positions, scan.bad_pixels, geometry, name, probe=scan.probe)


def _from_archive(
    path: Path, headers: dict[str, ArrayHeader], given: BeamGeometry, unit: PositionUnit, name: str
) -> Measurement:
    patterns = [key for key, header in headers.items() if len(header.shape) == 3 and header.dtype.kind in 'uif']
    if len(patterns) != 1:
        raise InputError(
            f'{path} holds {len(patterns)} arrays of three axes ({", ".join(patterns) or "none"}): an archive to '
            'inspect holds one, the patterns (n, H, W).'
        )
    count = headers[patterns[0]].shape[0]
    positions = [key for key, header in headers.items() if header.shape == (count, 2) and header.dtype.kind in 'uif']
    if len(positions) != 1:
        raise InputError(
            f'{path} holds {len(positions)} arrays of shape ({count}, 2) ({", ".join(positions) or "none"}): an '
            'archive to inspect holds one, the positions (y, x).'
        )
    masks = [key for key in ('bad_pixels', 'mask') if key in headers]
    arrays = read_arrays(path, [patterns[0], positions[0], *masks])
    return _measurement(
        arrays[patterns[0]],
        arrays[positions[0]],
        arrays[masks[0]] if masks else None,
        given.or_else(read_npz_geometry(path)),
        name,
        unit=unit,
    )


def _from_cxi(path: Path, given: BeamGeometry, name: str) -> Measurement:
    try:
        with h5py.File(path, 'r') as file:
            entry = file['entry_1']
            detector, source = entry['instrument_1/detector_1'], entry.get('instrument_1/source_1', {})
            stack = detector['data']
            if stack.size * stack.dtype.itemsize > physical_memory():
                raise InputError(f'{path} holds more patterns than fit into memory: cut or bin them.')
            counts = stack[()]
            translation = np.asarray(entry['sample_1/geometry_1/translation'][()], dtype=np.float64)
            mask = detector['mask'][()] != 0 if 'mask' in detector else None
            distance, energy = _scalar(detector, 'distance'), _energy_ev(source)
            sides = [_scalar(detector, key) for key in ('y_pixel_size', 'x_pixel_size')]
    except (KeyError, OSError, TypeError, ValueError, RuntimeError) as error:
        reason = ' '.join(str(error).split())
        raise InputError(
            f'{path} cannot be read as a CXI file ({reason}): it needs entry_1/instrument_1/detector_1/data and '
            'entry_1/sample_1/geometry_1/translation.'
        ) from error
    pixel = None if sides[0] is None or sides[1] is None else (sides[0], sides[1])
    geometry = given.or_else(BeamGeometry(energy, distance, pixel))
    return _measurement(counts, translation[:, 1::-1], mask, geometry, name, unit='m')


def _energy_ev(source: Any) -> float | None:  # noqa: ANN401 - an HDF5 group or a dictionary
    energy, wavelength = _scalar(source, 'energy'), _scalar(source, 'wavelength')
    if energy:
        return energy / ELECTRONVOLT_J
    return HC_EV_M / wavelength if wavelength else None


def _scalar(group: Any, key: str) -> float | None:  # noqa: ANN401 - an HDF5 group or a dictionary
    return float(np.ravel(group[key][()])[0]) if key in group else None


def _measurement(
    counts: npt.ArrayLike,
    positions: npt.ArrayLike,
    bad_pixels: npt.ArrayLike | None,
    geometry: BeamGeometry,
    name: str,
    *,
    unit: PositionUnit = 'px',
    probe: npt.NDArray[np.complexfloating] | None = None,
    says_near_field: bool = False,
) -> Measurement:
    stack = check_pattern_stack(counts)
    shape = (int(stack.shape[1]), int(stack.shape[2]))
    mask = check_bad_pixels(bad_pixels, shape)
    places = check_positions(positions, stack.shape[0], name)
    check_count_values(stack, mask, name)
    geometry = _with_object_pixel(geometry, shape)
    if unit == 'auto':
        unit = 'm' if float(np.ptp(places, axis=0).max()) < LARGEST_METRES else 'px'
        logger.info('%s: the positions are taken as %s, by their extent.', name, 'metres' if unit == 'm' else 'pixels')
    if unit == 'm':
        if geometry.object_pixel_m is None:
            raise InputError(
                f'{name}: the positions are in metres, and the size of an object pixel is unknown: give it, or give '
                'photon energy, detector distance and detector pixel.'
            )
        places = places / np.array(geometry.object_pixel_m)
    usable = probe is not None and probe.shape[-2:] == shape and bool(np.isfinite(probe).all()) and bool(probe.any())
    return Measurement(stack, places, mask, name, geometry, probe if usable else None, says_near_field=says_near_field)


def _with_object_pixel(geometry: BeamGeometry, shape: tuple[int, int]) -> BeamGeometry:
    """Return ``geometry`` with the object pixel of the far field, where what it follows from is known."""
    energy, distance, pixel = geometry.photon_energy_ev, geometry.detector_distance_m, geometry.detector_pixel_m
    if geometry.object_pixel_m is not None or not (energy and distance and pixel):
        return geometry
    area = HC_EV_M / energy * distance
    sizes = [area / (side * length) for side, length in zip(shape, pixel, strict=True)]
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return geometry
    return replace(geometry, object_pixel_m=(sizes[0], sizes[1]))
