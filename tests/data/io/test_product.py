"""Ptychodus' inputs and products: geometry in and out, and the comparison with the host's forward model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptychodus.api.geometry import PixelGeometry
from ptychodus.api.io import load_product, save_product
from ptychodus.api.object import Object
from ptychodus.api.probe import ProbeSequence
from ptychodus.api.product import Product
from ptychodus.api.propagate import FresnelTransformPropagator, PropagatorParameters
from ptychodus.api.reconstruct import ReconstructInput

from ptychopinn_torch_plugin.data.io.product import (
    fresnel_numbers_of,
    product_from_reconstruction,
    scan_from_reconstruct_input,
    with_object,
)
from ptychopinn_torch_plugin.data.scan import patch_bounds
from ptychopinn_torch_plugin.errors import InputError
from ptychopinn_torch_plugin.types import LossRecord, Reconstruction

InputMaker = Callable[..., ReconstructInput]
ProductMaker = Callable[..., Product]

GEOMETRIES = [
    ((32, 32), (25e-9, 25e-9)),
    ((31, 31), (25e-9, 25e-9)),
    ((24, 33), (25e-9, 31e-9)),
    ((35, 22), (40e-9, 21e-9)),
]


def propagator_of(product: Product) -> FresnelTransformPropagator:
    geometry = product.probes.get_geometry()
    return FresnelTransformPropagator(
        PropagatorParameters(
            wavelength_m=product.metadata.photon_wavelength_m,
            width_px=geometry.width_px,
            height_px=geometry.height_px,
            pixel_width_m=geometry.pixel_width_m,
            pixel_height_m=geometry.pixel_height_m,
            propagation_distance_m=product.metadata.detector_distance_m,
        )
    )


def quadratic_phase(shape: tuple[int, int], fresnel: tuple[float, float]) -> np.ndarray:
    y, x = (np.arange(side) - side // 2 for side in shape)
    return np.exp(1j * np.pi * (fresnel[0] * y[:, np.newaxis] ** 2 + fresnel[1] * x**2))


@pytest.mark.parametrize('distance_m', [2.0, 1e-4])
@pytest.mark.parametrize(('shape', 'pixel_m'), GEOMETRIES)
def test_quadratic_phase_is_that_of_the_host(
    product_of: ProductMaker, shape: tuple[int, int], pixel_m: tuple[float, float], distance_m: float
) -> None:
    product = product_of(shape=shape, pixel_m=pixel_m)
    product = replace(product, metadata=replace(product.metadata, detector_distance_m=distance_m))
    expected = propagator_of(product)._B
    assert np.abs(quadratic_phase(shape, fresnel_numbers_of(product)) - expected).max() < 1e-12


@pytest.mark.parametrize('modes', [1, 2])
@pytest.mark.parametrize(('shape', 'pixel_m'), GEOMETRIES)
def test_the_scan_holds_all_the_host_simulates_with(
    input_of: InputMaker, shape: tuple[int, int], pixel_m: tuple[float, float], modes: int
) -> None:
    """The host's patterns follow from the scan alone, up to one scale: positions, frames, probe, object and phase."""
    scan = scan_from_reconstruct_input(input_of(shape=shape, pixel_m=pixel_m, modes=modes))
    patch_origins, subpixel_shifts = patch_bounds(scan.positions, shape)
    phase = quadratic_phase(shape, scan.fresnel_numbers)
    fy, fx = (np.fft.fftfreq(side) for side in shape)
    for index in range(scan.size):
        (top, left), (dy, dx) = patch_origins[index], subpixel_shifts[index]
        ramp = np.exp(-2j * np.pi * (fy[:, np.newaxis] * dy + fx * dx))
        probe = np.fft.ifft2(np.fft.fft2(scan.probe) * ramp)
        wave = probe * scan.object_guess[top : top + shape[0], left : left + shape[1]] * phase
        intensity = np.fft.fftshift(
            (np.abs(np.fft.fft2(np.fft.ifftshift(wave, axes=(1, 2)))) ** 2).sum(axis=0), axes=(0, 1)
        )
        factor = scan.fresnel_numbers[0] * scan.fresnel_numbers[1]
        assert np.abs(intensity * factor - scan.counts[index]).max() < 1e-10 * scan.counts[index].max()


def test_parts_of_the_input_are_taken_over(input_of: InputMaker) -> None:
    parameters = input_of(shape=(24, 33))
    scan = scan_from_reconstruct_input(parameters)
    assert scan.counts is parameters.diffraction_patterns
    assert scan.name == 'leaves'
    assert scan.object_shape == (24 + 21, 33 + 30)
    absent: Any = None
    assert not scan_from_reconstruct_input(replace(parameters, bad_pixels=absent)).bad_pixels.any()


def test_an_object_off_the_origin_moves_the_positions_with_it(product_of: ProductMaker, input_of: InputMaker) -> None:
    a, b = input_of(), input_of(center_m=(0.0, 1e-5))
    assert np.allclose(
        scan_from_reconstruct_input(a).positions, scan_from_reconstruct_input(b).positions, rtol=0, atol=1e-9
    )


def test_the_first_coherent_mode_is_taken(input_of: InputMaker) -> None:
    parameters = input_of(modes=2)
    first = parameters.product.probes.get_array()
    both = ProbeSequence(
        np.concatenate([first, 5 * first]), np.ones((6, 2)), parameters.product.probes.get_pixel_geometry()
    )
    changed = replace(parameters, product=replace(parameters.product, probes=both))
    assert np.array_equal(scan_from_reconstruct_input(changed).probe, first[0])


def _near_field(product: Product) -> Product:
    return replace(product, metadata=replace(product.metadata, far_field=False))


def _two_layers(product: Product) -> Product:
    array = np.concatenate([product.object_.get_array()] * 2)
    object_ = Object(array, product.object_.get_pixel_geometry(), product.object_.get_center(), [1e-6])
    return replace(product, object_=object_)


def _object_pixels(height_m: float, width_m: float) -> Callable[[Product], Product]:
    def change(product: Product) -> Product:
        pixels = PixelGeometry(width_m=width_m, height_m=height_m)
        return replace(product, object_=Object(product.object_.get_array(), pixels, product.object_.get_center()))

    return change


def _no_object(product: Product) -> Product:
    return replace(product, object_=Object(None, product.object_.get_pixel_geometry(), product.object_.get_center()))


def _no_probe(product: Product) -> Product:
    return replace(product, probes=ProbeSequence(None, None, product.probes.get_pixel_geometry()))


def _no_centre(product: Product) -> Product:
    return replace(product, object_=Object(product.object_.get_array(), product.object_.get_pixel_geometry(), None))


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (_near_field, r'"leaves" is near field \(far_field is False\): only far-field'),
        (_two_layers, 'object of the product "leaves" has 2 layers: only one is supported'),
        (_object_pixels(26e-9, 25e-9), 'object pixels of height 2.6e-08 m but probe pixels of 2.5e-08 m: resample'),
        (_object_pixels(25e-9, 25.01e-9), 'object pixels of width 2.501e-08 m'),
        (
            _object_pixels(0.0, 25e-9),
            'object of the product "leaves" has pixels of 0 x 2.5e-08 m: set detector distance',
        ),
        (_no_object, 'has no object: initialise one'),
        (_no_probe, 'has no probe: initialise one'),
        (_no_centre, r'object of the product "leaves" lacks its geometry \(Missing object center!\)'),
    ],
)
def test_every_unsupported_product_is_refused_by_name(
    input_of: InputMaker, change: Callable[[Product], Product], sentence: str
) -> None:
    parameters = input_of()
    with pytest.raises(InputError, match=sentence):
        scan_from_reconstruct_input(replace(parameters, product=change(parameters.product)))


def test_a_product_without_a_beam_has_no_quadratic_phase_and_says_so(
    product_of: ProductMaker, caplog: pytest.LogCaptureFixture
) -> None:
    product = product_of()
    product = replace(product, metadata=replace(product.metadata, photon_energy_eV=0.0))
    with caplog.at_level(logging.WARNING):
        assert fresnel_numbers_of(product) == (0.0, 0.0)
    assert 'photon_energy_eV is 0' in caplog.text


def test_with_object_keeps_the_grid(product_of: ProductMaker) -> None:
    product = product_of(shape=(24, 33))
    array = np.full((45, 63), 0.5j, dtype=np.complex64)
    changed = with_object(product, array)
    assert changed.object_.get_geometry() == product.object_.get_geometry()
    assert np.array_equal(changed.object_.get_layer(0), array)
    assert changed.probes is product.probes
    with pytest.raises(InputError, match=r'shape \(63, 45\) but the grid of the product has \(45, 63\)'):
        with_object(product, array.T)


def test_a_reconstruction_becomes_a_product_that_can_be_saved(input_of: InputMaker, tmp_path: Path) -> None:
    parameters = input_of(shape=(24, 33))
    result = Reconstruction(
        object_array=np.full((45, 63), 0.5j, dtype=np.complex64),
        coverage=np.ones((45, 63), dtype=np.bool_),
        probe=np.full((3, 24, 33), 2 + 1j, dtype=np.complex64),
        positions=scan_from_reconstruct_input(parameters).positions,
        intensities=np.ones(len(parameters.product.probe_positions), dtype=np.float32),
        losses=(LossRecord(1, 0.5, None), LossRecord(2, 0.25, 0.3)),
    )
    save_product(tmp_path / 'p.h5', product_from_reconstruction(parameters, result))
    product = load_product(tmp_path / 'p.h5')
    before = parameters.product
    assert np.array_equal(product.object_.get_layer(0), result.object_array)
    assert product.object_.get_geometry() == before.object_.get_geometry()
    assert np.array_equal(product.probes.get_array()[0], result.probe)
    assert product.probes.get_pixel_geometry() == before.probes.get_pixel_geometry()
    assert product.probes.get_opr_weights_or_none() is None
    assert [(loss.epoch, loss.value) for loss in product.losses] == [(1, 0.5), (2, 0.25)]
    assert product.metadata == before.metadata
    assert np.array_equal(product.probe_positions.get_coordinates_x_m(), before.probe_positions.get_coordinates_x_m())
    with pytest.raises(InputError, match='reconstructed probe has shape'):
        product_from_reconstruction(parameters, replace(result, probe=result.probe[0]))
    with pytest.raises(InputError, match='reconstructed positions'):
        product_from_reconstruction(parameters, replace(result, positions=result.positions[1:]))


def test_refined_intensities_become_photon_counts_of_the_positions(input_of: InputMaker, tmp_path: Path) -> None:
    parameters = input_of(shape=(24, 33))
    scan = scan_from_reconstruct_input(parameters)
    intensities = np.linspace(0.5, 1.5, scan.size, dtype=np.float32)
    result = Reconstruction(
        object_array=np.ones(scan.object_shape, dtype=np.complex64),
        coverage=np.ones(scan.object_shape, dtype=np.bool_),
        probe=np.ones((2, 24, 33), dtype=np.complex64),
        positions=scan.positions,
        intensities=intensities,
        losses=(),
    )
    save_product(tmp_path / 'p.h5', product_from_reconstruction(parameters, result))
    counts = load_product(tmp_path / 'p.h5').probe_positions.get_probe_photon_counts()
    assert counts is not None
    np.testing.assert_allclose(counts, intensities * 2 * 24 * 33, rtol=1e-6)
    fixed = replace(result, intensities=np.ones(scan.size, dtype=np.float32))
    kept = product_from_reconstruction(parameters, fixed).probe_positions
    assert kept is parameters.product.probe_positions


def test_refined_positions_go_into_the_product(input_of: InputMaker) -> None:
    parameters = input_of(shape=(24, 33))
    scan = scan_from_reconstruct_input(parameters)
    moved = scan.positions + np.random.default_rng(3).normal(size=scan.positions.shape)
    result = Reconstruction(
        object_array=np.ones(scan.object_shape, dtype=np.complex64),
        coverage=np.ones(scan.object_shape, dtype=np.bool_),
        probe=np.ones((1, 24, 33), dtype=np.complex64),
        positions=moved,
        intensities=np.ones(scan.size, dtype=np.float32),
        losses=(),
    )
    product = product_from_reconstruction(parameters, result)
    again = scan_from_reconstruct_input(replace(parameters, product=product))
    np.testing.assert_allclose(again.positions, moved, atol=1e-9)
    assert product.probe_positions.get_indexes().tolist() == parameters.product.probe_positions.get_indexes().tolist()
