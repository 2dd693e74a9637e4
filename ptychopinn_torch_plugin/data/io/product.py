"""Convert Ptychodus' ``ReconstructInput`` to a scan, and a reconstruction to a ``Product``."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..finite_check import refuse_non_finite
from ..scan import RawScan, make_raw_scan

if TYPE_CHECKING:
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.object import Object
    from ptychodus.api.probe_positions import ProbePositionSequence
    from ptychodus.api.product import Product
    from ptychodus.api.reconstruct import ReconstructInput

    from ...types import Reconstruction

logger = logging.getLogger(__name__)

PIXEL_SIZE_TOLERANCE = 1e-4
"""Largest relative difference of the pixel sizes of object and probe: below 0.1 pixels over 1000 pixels."""


def scan_from_reconstruct_input(parameters: ReconstructInput) -> RawScan:
    """Convert the input of a reconstructor to a validated scan. The patterns are not copied.

    The product's ``ObjectGeometry`` maps positions to patch centres in pixels of its object grid. The probe is the
    first coherent mode with all its incoherent modes; OPR weights are not used. Without a bad-pixel mask, every pixel
    was measured.

    Raises:
        InputError: a near-field product, an object of several layers, no object or pixel size, object and probe pixels
            of different size, or a reason of :func:`~ptychopinn_torch_plugin.data.scan.make_raw_scan`.
    """
    product = parameters.product
    name = product.metadata.name or 'scan'
    if not product.metadata.far_field:
        raise InputError(
            f'The product "{name}" is near field (far_field is False): only far-field scans are supported.'
        )
    if product.object_.num_layers != 1:
        raise InputError(
            f'The object of the product "{name}" has {product.object_.num_layers} layers: only one is supported; '
            'flatten the object to one layer first.'
        )
    _check_pixel_sizes(product, name)
    if product.probes.num_coherent_modes > 1:
        logger.info('%s: of %d coherent probe modes the first is used.', name, product.probes.num_coherent_modes)
    pixel = product.object_.get_pixel_geometry()
    return make_raw_scan(
        parameters.diffraction_patterns,
        _positions_of(product),
        product.probes.get_probe_no_opr().get_array(),
        bad_pixels=parameters.bad_pixels,
        object_guess=product.object_.get_layer(0),
        fresnel_numbers=fresnel_numbers_of(product),
        name=name,
    ).with_pixel((pixel.height_m, pixel.width_m))


def fresnel_numbers_of(product: Product) -> tuple[float, float]:
    """Return the pixel Fresnel numbers of the probe's grid along (y, x), dimensionless.

    Ptychodus' ``FresnelTransformPropagator`` multiplies the exit wave by ``exp(i pi (Fr_y Y**2 + Fr_x X**2))`` before
    its Fourier transform, with ``Fr = pixel**2 / (wavelength * distance)`` per axis and ``Y``, ``X`` the pixel index
    minus ``H // 2``, ``W // 2``: the centre of its quadratic phase is that of the discrete Fourier transform, not the
    middle ``(N - 1) / 2`` of the array. (It writes ``Fr_y`` as ``Fr_x / ar**2`` with the aspect ratio ``ar`` = pixel
    width / height.)

    A product without photon energy or detector distance gives (0, 0) and a warning: the phase is then part of the
    probe.
    """
    metadata = product.metadata
    wavelength_m, distance_m = metadata.photon_wavelength_m, metadata.detector_distance_m
    area_m2 = wavelength_m * distance_m
    if area_m2 == 0.0 or not np.isfinite(area_m2):
        logger.warning(
            '%s: photon_energy_eV is %g and detector_distance_m is %g, so the quadratic phase of the far field is part '
            'of the probe.', metadata.name, metadata.photon_energy_eV, distance_m,
        )  # fmt: skip
        return 0.0, 0.0
    pixel = product.probes.get_pixel_geometry()
    return float(pixel.height_m**2 / area_m2), float(pixel.width_m**2 / area_m2)


def with_object(product: Product, object_array: npt.NDArray[np.complexfloating]) -> Product:
    """Return ``product`` with another object on the same grid; everything else is kept.

    Args:
        product: has grid, pixel size and centre.
        object_array: transmission ``(h, w)``, complex, of the product's own object shape.

    Raises:
        InputError: the array has another shape than the product's object.
    """
    return replace(product, object_=_object_like(product.object_, object_array))


def product_from_reconstruction(parameters: ReconstructInput, reconstruction: Reconstruction) -> Product:
    """Make the product of a reconstruction from the product of its input.

    The object lies on the product's own grid with its pixel size and centre. The probe of the reconstruction, in the
    unitary convention (sum of ``|P|**2`` = photons per frame), replaces the old one and its OPR weights. The losses are
    the training losses of the model, one per epoch, or the deviances of a refinement. Refined positions replace the old
    ones, and refined intensities become the photon counts of the positions. Metadata are kept as they are:
    ``probe_photon_count`` of the product is the user's value and may differ from the photons in the new probe.

    Raises:
        InputError: object, probe or positions of the reconstruction do not fit the grids of the product.
        ReconstructionError: the reconstruction is not finite.
    """
    from ptychodus.api.probe import ProbeSequence
    from ptychodus.api.product import LossValue

    product = parameters.product
    refuse_non_finite(reconstruction, product.metadata.name or 'the scan')
    probe = np.asarray(reconstruction.probe)
    expected = (product.probes.height_px, product.probes.width_px)
    if probe.ndim != 3 or probe.shape[1:] != expected:
        raise InputError(f'The reconstructed probe has shape {probe.shape} but the product needs (modes, *{expected}).')
    return replace(
        product,
        probe_positions=_positions_of_product(product, reconstruction),
        object_=_object_like(product.object_, reconstruction.object_array),
        probes=ProbeSequence(probe[np.newaxis], None, product.probes.get_pixel_geometry().copy()),
        losses=[LossValue(int(record.epoch), float(record.training)) for record in reconstruction.losses],
    )


def _positions_of_product(product: Product, reconstruction: Reconstruction) -> ProbePositionSequence:
    """Return the reconstructed positions, with the photons of each pattern where the intensities were refined."""
    from ptychodus.api.probe_positions import ProbePositionSequence

    positions = _positions_at(product, reconstruction.positions)
    intensities = np.asarray(reconstruction.intensities, dtype=np.float64)
    if np.isin(intensities, (0.0, 1.0)).all():  # not refined; 0 is an empty pattern
        return positions
    photons = intensities * float(np.sum(np.abs(reconstruction.probe) ** 2))
    return ProbePositionSequence(
        [replace(point, probe_photon_count=float(count)) for point, count in zip(positions, photons, strict=True)]
    )


def _positions_at(product: Product, positions: npt.NDArray[np.float64]) -> ProbePositionSequence:
    """Return the product's positions at ``positions`` ``(n, 2)``, (y, x) in object pixels; its own if none moved."""
    from ptychodus.api.object import ObjectPosition
    from ptychodus.api.probe_positions import ProbePositionSequence

    given = product.probe_positions
    if positions.shape != (len(given), 2):
        raise InputError(f'The reconstructed positions have shape {positions.shape}, the product has {len(given)}.')
    geometry = product.object_.get_geometry()
    if np.array_equal(positions, _positions_of(product)):
        return given
    moved = [
        geometry.map_coordinates_object_to_probe(ObjectPosition(point.index, x_px=float(x), y_px=float(y)))
        for point, (y, x) in zip(given, positions, strict=True)
    ]
    return ProbePositionSequence(
        [replace(point, x_m=new.x_m, y_m=new.y_m) for point, new in zip(given, moved, strict=True)]
    )


def _positions_of(product: Product) -> npt.NDArray[np.float64]:
    """Return the positions of a product in pixels of its object grid, ``(n, 2)`` as (y, x)."""
    geometry = product.object_.get_geometry()
    points = product.probe_positions
    return np.stack(
        [geometry.map_probe_positions_to_object_y_px(points), geometry.map_probe_positions_to_object_x_px(points)],
        axis=-1,
    ).astype(np.float64)


def _object_like(old: Object, array: npt.NDArray[np.complexfloating]) -> Object:
    """Return a one-layer object of ``array`` ``(h, w)`` with pixel size and centre of ``old``."""
    from ptychodus.api.object import Object

    expected = (old.height_px, old.width_px)
    if array.shape != expected:
        raise InputError(f'The new object has shape {array.shape} but the grid of the product has {expected} pixels.')
    return Object(np.asarray(array)[np.newaxis], old.get_pixel_geometry().copy(), old.get_center().copy())


def _check_pixel_sizes(product: Product, name: str) -> None:
    """Raise if object or probe have no pixels or no pixel size, or if the sizes differ."""
    if 0 in (product.object_.height_px, product.object_.width_px):
        raise InputError(f'The product "{name}" has no object: initialise one in Ptychodus; a flat one is sufficient.')
    if 0 in (product.probes.height_px, product.probes.width_px):
        raise InputError(f'The product "{name}" has no probe: initialise one in Ptychodus.')
    sizes = [_pixel_size(part, label, name) for part, label in ((product.object_, 'object'), (product.probes, 'probe'))]
    for axis, (of_object, of_probe) in zip(('height', 'width'), zip(*sizes, strict=True), strict=True):
        if abs(of_object / of_probe - 1) > PIXEL_SIZE_TOLERANCE:
            raise InputError(
                f'The product "{name}" has object pixels of {axis} {of_object:.6g} m but probe pixels of '
                f'{of_probe:.6g} m: resample one of them so that both agree.'
            )


def _pixel_size(part: Any, label: str, name: str) -> tuple[float, float]:  # noqa: ANN401 - Object or ProbeSequence
    """Return pixel height and width of an object or probe in metres, both positive."""
    try:
        geometry: PixelGeometry = part.get_pixel_geometry()
        if label == 'object':
            part.get_center()
    except ValueError as error:
        raise InputError(
            f'The {label} of the product "{name}" lacks its geometry ({error}): initialise it again.'
        ) from error
    size = float(geometry.height_m), float(geometry.width_m)
    if not all(np.isfinite(side) and side > 0 for side in size):
        raise InputError(
            f'The {label} of the product "{name}" has pixels of {size[0]:g} x {size[1]:g} m: set detector distance, '
            'pixel size and photon energy, then initialise it again.'
        )
    return size
