"""A small scan from Ptychodus' own simulators, and the real one where it lies beside the repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptychodus.api.assemble import AssembledDiffractionData
from ptychodus.api.geometry import PixelGeometry
from ptychodus.api.object import Object, ObjectCenter, ObjectGeometry
from ptychodus.api.probe import ProbeGeometry, ProbeSequence
from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
from ptychodus.api.product import Product, ProductMetadata
from ptychodus.api.reconstruct import ReconstructInput, prepare_reconstruct_input
from ptychodus.api.simulate.diffraction import generate_diffraction_data
from ptychodus.api.simulate.object import generate_dead_leaves_object
from ptychodus.api.simulate.probe import generate_disk_probe

from ptychopinn_torch_plugin.data.scan import RawScan, make_raw_scan

REAL_SCAN = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'siemens-star'

ProductMaker = Callable[..., Product]
InputMaker = Callable[..., ReconstructInput]
ScanMaker = Callable[..., RawScan]


def make_product(
    *,
    shape: tuple[int, int] = (32, 32),
    positions: int = 6,
    modes: int = 1,
    pixel_m: tuple[float, float] = (25e-9, 25e-9),
    center_m: tuple[float, float] = (3e-7, -2e-7),
    seed: int = 0,
) -> Product:
    """A product with a dead-leaves object, random complex probe modes inside a disc, and subpixel positions.

    Every patch lies inside the object grid, whose centre is not the origin. All pairs are (y, x).
    """
    rng = np.random.default_rng(seed)
    height, width = shape[0] + 21, shape[1] + 30
    pixels = PixelGeometry(width_m=pixel_m[1], height_m=pixel_m[0])
    geometry = ObjectGeometry(width, height, pixel_m[1], pixel_m[0], center_m[1], center_m[0])
    leaves = generate_dead_leaves_object(
        rng,
        geometry,
        leaf_radius_lower_px=3,
        leaf_radius_upper_px=12,
        leaf_radius_power_law_exponent=3,
        leaf_amplitude_lower=0.6,
        leaf_amplitude_upper=1.0,
        leaf_phase_lower_tr=0.0,
        leaf_phase_upper_tr=0.2,
    )
    disc = generate_disk_probe(
        ProbeGeometry(shape[1], shape[0], pixel_m[1], pixel_m[0]), radius_m=0.3 * min(shape) * min(pixel_m)
    ).get_array()
    wave = rng.normal(size=(modes, *shape)) + 1j * rng.normal(size=(modes, *shape))
    lowest = (np.asarray(shape) - 1) / 2
    centres = lowest + rng.uniform(0.0, [height - shape[0], width - shape[1]], size=(positions, 2))
    offsets = (centres - (np.asarray([height, width]) - 1) / 2) * pixel_m + center_m
    points = [ProbePosition(index, float(x), float(y)) for index, (y, x) in enumerate(offsets)]
    return Product(
        metadata=ProductMetadata('leaves', 'simulated', 2.0, 8800.0, 1e4, 0.1, 0.0, 0.0),
        probe_positions=ProbePositionSequence(points),
        probes=ProbeSequence((disc * (1 + 0.3 * wave)).astype(np.complex128), None, pixels),
        object_=Object(leaves.get_layer(0), pixels.copy(), ObjectCenter(x_m=center_m[1], y_m=center_m[0])),
        losses=[],
    )


def with_patterns(product: Product) -> ReconstructInput:
    """Simulate the patterns of ``product`` (no noise) and pair them with its positions."""
    return prepare_reconstruct_input(generate_diffraction_data(product), product)


@pytest.fixture
def product_of() -> ProductMaker:
    return make_product


@pytest.fixture
def input_of() -> InputMaker:
    return lambda **options: with_patterns(make_product(**options))


def write_workflow_folder(folder: Path) -> None:
    """Write a workflow folder with 6 Poisson patterns of 32 x 32 pixels and one bad pixel."""
    from ptychodus.api.io import save_diffraction_data, save_product

    product = make_product()
    clean = generate_diffraction_data(product)
    patterns = clean.get_patterns()
    noisy = np.random.default_rng(1).poisson(patterns * (1e4 / patterns.sum(axis=(1, 2)).mean())).astype(np.uint16)
    bad_pixels = np.zeros((32, 32), dtype=np.bool_)
    bad_pixels[3, 5] = True
    data = AssembledDiffractionData(clean.get_indexes(), noisy, clean.get_pixel_geometry(), bad_pixels)
    save_diffraction_data(folder / 'diffraction.h5', data)
    save_product(folder / 'product.h5', product)


@pytest.fixture
def workflow_folder(tmp_path: Path) -> Path:
    """A workflow folder, see :func:`write_workflow_folder`."""
    write_workflow_folder(tmp_path)
    return tmp_path


@pytest.fixture
def real_scan_folder() -> Path:
    if not REAL_SCAN.is_dir():
        pytest.skip('the Siemens star scan does not lie beside the repository')
    return REAL_SCAN


@pytest.fixture
def scan_of() -> ScanMaker:
    """Make a scan of Poisson counts without files: 12 positions on a 3 x 4 raster with jitter."""

    def make(*, shape: tuple[int, int] = (18, 17), mean: float = 3.0, **options: object) -> RawScan:
        rng = np.random.default_rng(5)
        rows, columns = np.meshgrid(np.arange(3) * 4.0, np.arange(4) * 4.0, indexing='ij')
        raster = np.stack([rows.ravel(), columns.ravel()], axis=-1)
        positions = (np.asarray(shape) - 1) / 2 + 2 + raster + rng.uniform(0, 1, size=(12, 2))
        guess = rng.normal(size=(shape[0] + 14, shape[1] + 18)) + 1j
        settings: dict[str, Any] = {
            'counts': rng.poisson(mean, size=(12, *shape)).astype(np.uint16),
            'positions': positions,
            'probe': np.ones(shape, dtype=np.complex64),
            'object_guess': guess.astype(np.complex64),
        }
        settings.update(options)
        return make_raw_scan(**settings)

    return make
