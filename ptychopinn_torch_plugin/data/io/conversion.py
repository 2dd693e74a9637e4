"""Convert between training files (NPZ, pixels) and Ptychodus' workflow folders (HDF5, metres).

A training file has lengths in pixels only. Files that this module writes hold the geometry as well, in keys that other
readers ignore (:data:`GEOMETRY_KEYS`); for all other files the caller gives it.

After a conversion and back, counts, probe (all incoherent modes), mask and object are identical in value; positions
agree to float64 rounding (below 1e-9 pixels). Lost are scan indices (numbered from 0), all coherent (OPR) probe modes
but the first with their weights, the loss history, and metadata other than energy and distance. Amplitude files give
counts back as float32 or float64.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...storage.atomic import write_atomically
from ..scan import RawScan
from .archive import read_arrays, read_headers
from .npz import write_training_npz
from .output import write_product
from .workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE, read_diffraction_header

if TYPE_CHECKING:
    from ptychodus.api.product import Product

Pair = tuple[float, float]

GEOMETRY_KEYS: Final = {
    'photon_energy_ev': (),
    'detector_distance_m': (),
    'detector_pixel_m': (2,),
    'object_pixel_m': (2,),
    'object_center_m': (2,),
}
"""Keys of a training file for its geometry, and the shapes of their arrays; pairs are (y, x)."""

NOMINAL_ENERGY_EV: Final = 1e4
NOMINAL_DISTANCE_M: Final = 1.0
NOMINAL_DETECTOR_PIXEL_M: Final = 1e-3
"""Nominal values, with a negligible quadratic phase (1e-4 rad at the edge of any pattern)."""

LARGEST_CONTRADICTION: Final = 1e-3
"""Relative difference of two pixel sizes above which they contradict each other."""


@dataclass(frozen=True)
class BeamGeometry:
    """Lengths and energy that relate pixels to metres; None where not known. Pairs are (y, x)."""

    photon_energy_ev: float | None = None
    detector_distance_m: float | None = None
    detector_pixel_m: Pair | None = None
    """Height and width of a detector pixel, after binning."""
    object_pixel_m: Pair | None = None
    """Height and width of a pixel of object and probe."""
    object_center_m: Pair | None = None
    """Position of the centre of the object grid."""

    def or_else(self, other: BeamGeometry) -> BeamGeometry:
        """Return this geometry, completed by the values of ``other``."""
        unknown = {item.name: getattr(other, item.name) for item in fields(self) if getattr(self, item.name) is None}
        return replace(self, **unknown)

    def known(self) -> dict[str, float | Pair]:
        """Return the values that are known, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def read_npz_geometry(path: Path) -> BeamGeometry:
    """Read the geometry in a training file, without its patterns; None for keys that it does not have.

    Raises:
        InputError: the file is no NPZ archive, or one of :data:`GEOMETRY_KEYS` is not a number or a pair of them.
    """
    headers = read_headers(path)
    arrays = read_arrays(path, [key for key in GEOMETRY_KEYS if key in headers])
    values: dict[str, float | Pair] = {}
    for key, array in arrays.items():
        if array.shape != GEOMETRY_KEYS[key] or array.dtype.kind not in 'uif' or not np.isfinite(array).all():
            raise InputError(f'{path} holds {key} = {array}: it must be finite, of shape {GEOMETRY_KEYS[key]}.')
        values[key] = float(array) if array.ndim == 0 else (float(array[0]), float(array[1]))
    return BeamGeometry(**values)  # type: ignore[arg-type]


def geometry_of_product(product: Product, diffraction_file: Path) -> BeamGeometry:
    """Return the geometry of a product and of its patterns.

    Raises:
        InputError: as :func:`~ptychopinn_torch_plugin.data.io.workflow_folder.read_diffraction_header`.
    """
    pixel, centre = product.object_.get_pixel_geometry(), product.object_.get_center()
    return BeamGeometry(
        photon_energy_ev=float(product.metadata.photon_energy_eV) or None,
        detector_distance_m=float(product.metadata.detector_distance_m) or None,
        detector_pixel_m=read_diffraction_header(diffraction_file).detector_pixel_m,
        object_pixel_m=(float(pixel.height_m), float(pixel.width_m)),
        object_center_m=(float(centre.y_m), float(centre.x_m)),
    )


def complete_geometry(geometry: BeamGeometry, scan: RawScan, *, nominal: bool = False) -> BeamGeometry:
    """Complete a geometry by the far-field relation.

    ``object pixel = wavelength * distance / (N * detector pixel)`` per axis, and, where the scan has Fresnel numbers,
    ``object pixel = sqrt(F * wavelength * distance)``. Energy and distance are always needed; of the pixel sizes one.
    An object centre that is not known is (0, 0).

    Args:
        geometry: the known values.
        scan: its pattern shape and Fresnel numbers are used.
        nominal: use nominal values for the unknown ones (10 keV, 1 m, detector pixels of 1 mm): lengths in metres are
            then without meaning.

    Returns:
        A geometry without a None.

    Raises:
        InputError: a needed value is unknown, not positive, or contradicts the others; the message names the fields.
    """
    if nominal:
        geometry = geometry.or_else(
            BeamGeometry(photon_energy_ev=NOMINAL_ENERGY_EV, detector_distance_m=NOMINAL_DISTANCE_M)
        )
    energy, distance = geometry.photon_energy_ev, geometry.detector_distance_m
    missing = [name for name, value in (('photon_energy_ev', energy), ('detector_distance_m', distance)) if not value]
    has_fresnel = all(number > 0 for number in scan.fresnel_numbers)
    if not (geometry.object_pixel_m or geometry.detector_pixel_m or has_fresnel):
        if nominal:
            geometry = replace(geometry, detector_pixel_m=(NOMINAL_DETECTOR_PIXEL_M,) * 2)
        else:
            missing.append('detector_pixel_m (or object_pixel_m)')
    if missing or energy is None or distance is None:
        raise InputError(
            f'{scan.name} does not say {", ".join(missing)}, and a workflow folder needs it: give it, or ask for '
            'nominal values.'
        )
    _refuse_not_positive(geometry, scan.name)
    from ptychodus.api.constants import energy_eV_to_wavelength_m

    area_m2 = energy_eV_to_wavelength_m(energy) * distance
    object_pixel, detector_pixel = _pixels(geometry, scan, area_m2)
    return BeamGeometry(energy, distance, detector_pixel, object_pixel, geometry.object_center_m or (0.0, 0.0))


def _pixels(geometry: BeamGeometry, scan: RawScan, area_m2: float) -> tuple[Pair, Pair]:
    """Return the pixel sizes of object and detector, (y, x) in metres, from those that are known.

    ``area_m2`` is wavelength times distance.
    """
    sides = np.array(scan.pattern_shape)
    known: dict[str, npt.NDArray[np.float64]] = {}
    if geometry.object_pixel_m:
        known['object_pixel_m'] = np.array(geometry.object_pixel_m)
    if geometry.detector_pixel_m:
        known['detector_pixel_m'] = area_m2 / (sides * np.array(geometry.detector_pixel_m))
    if all(number > 0 for number in scan.fresnel_numbers):
        known['the Fresnel numbers of the file'] = np.sqrt(np.array(scan.fresnel_numbers) * area_m2)
    (source, first), *others = known.items()
    for name, pixel in others:
        if (np.abs(pixel / first - 1) > LARGEST_CONTRADICTION).any():
            raise InputError(
                f'{scan.name}: {source} and {name} contradict each other (object pixels of {_metres(first)} and '
                f'{_metres(pixel)} at this energy and distance): correct one of them.'
            )
    object_pixel = (float(first[0]), float(first[1]))
    derived = area_m2 / (sides * first)
    return object_pixel, geometry.detector_pixel_m or (float(derived[0]), float(derived[1]))


def _metres(pixel: npt.NDArray[np.float64]) -> str:
    return f'{pixel[0]:.6g} x {pixel[1]:.6g} m'


def _refuse_not_positive(geometry: BeamGeometry, name: str) -> None:
    for field_name, value in geometry.known().items():
        if field_name != 'object_center_m' and not np.all(np.asarray(value) > 0):
            raise InputError(f'{name}: {field_name} = {value} is not positive: give it in electronvolts or metres.')


def write_npz(
    path: Path, scan: RawScan, geometry: BeamGeometry, *, quantity: Literal['counts', 'amplitude'] = 'counts'
) -> None:
    """Write ``scan`` to a training file, with the known values of ``geometry``.

    Raises:
        OutputError: the file cannot be written; the old one is still there.
    """
    extra: Mapping[str, npt.ArrayLike] = {name: np.asarray(value) for name, value in geometry.known().items()}
    write_training_npz(path, scan, quantity=quantity, extra=extra)


def write_workflow_folder(folder: Path, scan: RawScan, geometry: BeamGeometry, *, name: str) -> None:
    """Write ``scan`` as ``diffraction.h5`` and ``product.h5`` of Ptychodus into ``folder``, which is made if absent.

    Args:
        folder: the folder; files of these names are replaced.
        scan: its positions are numbered from 0.
        geometry: a complete one, see :func:`complete_geometry`.
        name: name of the product.

    Raises:
        OutputError: a file cannot be written; the old one is still there.
        ValueError: the geometry is not complete.
    """
    from ptychodus.api.assemble import AssembledDiffractionData
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.io import save_diffraction_data

    if geometry.detector_pixel_m is None:
        raise ValueError('The geometry is not complete.')
    height_m, width_m = geometry.detector_pixel_m
    counts: npt.NDArray[Any] = scan.counts
    data = AssembledDiffractionData(
        np.arange(scan.size), counts, PixelGeometry(width_m=width_m, height_m=height_m), scan.bad_pixels
    )
    # In memory first, because the HDF5 library cannot close its file on a full disk.
    buffer = io.BytesIO()
    save_diffraction_data(cast(Path, buffer), data)  # h5py takes either
    write_atomically(folder / DIFFRACTION_FILE, buffer.getbuffer())
    write_product(folder / PRODUCT_FILE, _product(scan, geometry, name))


def _product(scan: RawScan, geometry: BeamGeometry, name: str) -> Product:
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.object import Object, ObjectCenter, ObjectPosition
    from ptychodus.api.probe import ProbeSequence
    from ptychodus.api.probe_positions import ProbePositionSequence
    from ptychodus.api.product import Product, ProductMetadata

    if geometry.object_pixel_m is None or geometry.object_center_m is None:
        raise ValueError('The geometry is not complete.')
    pixel = PixelGeometry(height_m=geometry.object_pixel_m[0], width_m=geometry.object_pixel_m[1])
    centre = ObjectCenter(y_m=geometry.object_center_m[0], x_m=geometry.object_center_m[1])
    object_ = Object(scan.object_guess[np.newaxis], pixel, centre)
    grid = object_.get_geometry()
    points = [
        grid.map_coordinates_object_to_probe(ObjectPosition(index, x_px=float(x), y_px=float(y)))
        for index, (y, x) in enumerate(scan.positions)
    ]
    metadata = ProductMetadata(
        name=name,
        comments='',
        detector_distance_m=float(geometry.detector_distance_m or 0.0),
        photon_energy_eV=float(geometry.photon_energy_ev or 0.0),
        probe_photon_count=_photons_per_frame(scan),
        exposure_time_s=0.0,
        mass_attenuation_m2_per_kg=0.0,
        tomography_angle_deg=0.0,
    )
    return Product(metadata, ProbePositionSequence(points), ProbeSequence(scan.probe, None, pixel), object_, [])


def _photons_per_frame(scan: RawScan) -> float:
    """Return the mean number of photons per pattern on the good pixels."""
    total = np.asarray(np.sum(scan.counts, axis=0, dtype=np.float64))
    return float(total[~scan.bad_pixels].sum() / scan.size)
