"""A scan in the host's own terms, and the host itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ptychodus.api.assemble import AssembledDiffractionData
from ptychodus.api.geometry import PixelGeometry
from ptychodus.api.io import save_diffraction_data, save_product
from ptychodus.api.object import Object, ObjectCenter
from ptychodus.api.probe import ProbeSequence
from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
from ptychodus.api.product import Product, ProductMetadata
from ptychodus.api.reconstruct import ReconstructInput
from ptychodus.model import ModelCore

POSITIONS = 6
PATTERN_SHAPE = (17, 20)
OBJECT_SHAPE = (40, 46)
PIXEL = PixelGeometry(width_m=1e-8, height_m=1e-8)


def make_reconstruct_input() -> ReconstructInput:
    """Six odd, non-square patterns of noise around a probe; enough for everything but physics."""
    rng = np.random.default_rng(3)
    probe = rng.normal(size=(1, 1, *PATTERN_SHAPE)) + 1j * rng.normal(size=(1, 1, *PATTERN_SHAPE))
    offsets = rng.uniform(-8, 8, size=(POSITIONS, 2)) * PIXEL.width_m
    product = Product(
        metadata=ProductMetadata('sample', '', 2.0, 8000.0, 1e5, 0.1, 0.0, 0.0),
        probe_positions=ProbePositionSequence(
            [ProbePosition(index, float(x_m), float(y_m)) for index, (y_m, x_m) in enumerate(offsets)]
        ),
        probes=ProbeSequence(probe, None, PIXEL),
        object_=Object(np.ones((1, *OBJECT_SHAPE), dtype=complex), PIXEL, ObjectCenter(0.0, 0.0)),
        losses=[],
    )
    counts = rng.poisson(40.0, size=(POSITIONS, *PATTERN_SHAPE)).astype(np.uint16)
    return ReconstructInput(counts, np.zeros(PATTERN_SHAPE, dtype=bool), product)


@pytest.fixture
def reconstruct_input() -> ReconstructInput:
    return make_reconstruct_input()


@pytest.fixture
def workflow_folder(tmp_path: Path, reconstruct_input: ReconstructInput) -> Path:
    """A folder with the host's diffraction.h5 and product.h5."""
    folder = tmp_path / 'workflow'
    folder.mkdir()
    data = AssembledDiffractionData(
        np.arange(POSITIONS),
        reconstruct_input.diffraction_patterns,
        PixelGeometry(width_m=7.5e-5, height_m=7.5e-5),
        np.zeros(PATTERN_SHAPE, dtype=bool),
    )
    save_diffraction_data(folder / 'diffraction.h5', data)
    save_product(folder / 'product.h5', reconstruct_input.product)
    return folder


@pytest.fixture
def host_model() -> Iterator[ModelCore]:
    """The real host with its task thread running; our libraries come in through the installed hooks."""
    with ModelCore() as model:
        yield model
