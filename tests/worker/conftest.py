"""A scan that no default would produce, a result of it, and jobs with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.types import LossRecord, Reconstruction
from ptychopinn_torch_plugin.worker.job import Job, open_job


def make_scan(dtype: str = 'uint16') -> RawScan:
    """Seven odd, non-square patterns, two probe modes, a few bad pixels."""
    rng = np.random.default_rng(7)
    probe = rng.normal(size=(2, 17, 20)) + 1j * rng.normal(size=(2, 17, 20))
    return RawScan(
        counts=rng.integers(0, 60_000, size=(7, 17, 20)).astype(dtype),
        positions=rng.uniform(10, 30, size=(7, 2)),
        probe=probe,
        bad_pixels=rng.random((17, 20)) < 0.1,
        object_guess=np.exp(1j * rng.random((50, 61))),
        fresnel_numbers=(0.25, -0.5),
        name='sample 3, scan 0017',
    )


def make_reconstruction(scan: RawScan) -> Reconstruction:
    """Return a result of the right shapes that depends on the counts of ``scan``."""
    object_array = np.full(scan.object_shape, scan.counts.sum(), dtype=np.complex64)
    return Reconstruction(
        object_array=object_array,
        coverage=object_array.real > 0,
        probe=scan.probe.astype(np.complex64),
        positions=scan.positions,
        intensities=np.ones(len(scan.counts), dtype=np.float32),
        losses=(LossRecord(1, 0.5, None), LossRecord(2, 0.25, 0.75)),
    )


@pytest.fixture
def scan() -> RawScan:
    return make_scan()


@pytest.fixture
def job(scan: RawScan, tmp_path: Path) -> Iterator[Job]:
    with open_job('train', [scan], Config(), output_folder=tmp_path) as opened:
        yield opened
