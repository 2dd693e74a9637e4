"""Searches before the refinement: geometry that all positions share, and positions that are several pixels wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.config import RefinementConfig
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.engines.downsampling import coarse_scan
from ptychopinn_torch_plugin.engines.geometry_search import Geometry, search_geometry
from ptychopinn_torch_plugin.engines.position_search import search_positions
from tests.helpers.scans import make_scan

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def scan() -> RawScan:
    return make_scan((64, 64), rows=12, photons=1e6)[0]


def test_geometry_search_finds_scale_and_rotation(scan: RawScan) -> None:
    wrong = Geometry(scale=1 / 1.1, rotation=-0.04)
    centre = scan.positions.mean(axis=0)
    spoiled = replace(scan, positions=(scan.positions - centre) @ wrong.matrix().T + centre)
    found = search_geometry(spoiled, RefinementConfig(), CPU, lambda: False)
    assert found.scale == pytest.approx(1.1, abs=0.04)
    assert found.rotation == pytest.approx(0.04, abs=0.02)
    assert found.found_deviance < found.given_deviance
    assert f'scaled by {found.scale:.3f}' in found.sentence()
    assert 'The positions were not changed' in found.sentence()


def test_geometry_search_can_be_stopped(scan: RawScan) -> None:
    assert search_geometry(scan, RefinementConfig(), CPU, lambda: True).matrix() == pytest.approx(np.eye(2))


def test_position_search_finds_positions_three_pixels_away(scan: RawScan) -> None:
    rng = np.random.default_rng(3)
    spoiled = replace(scan, positions=scan.positions + rng.uniform(-3, 3, scan.positions.shape))
    found = search_positions(spoiled, RefinementConfig(search_positions=3.0), CPU, lambda: False)

    def errors(positions: np.ndarray) -> np.ndarray:
        error = positions - scan.positions
        common = np.c_[np.ones(len(error)), scan.positions - scan.positions.mean(axis=0)]
        error -= common @ np.linalg.lstsq(common, error, rcond=None)[0]
        lengths: np.ndarray = np.hypot(*error.T)
        return lengths

    assert np.median(errors(spoiled.positions)) > 2
    assert np.median(errors(found)) < 0.4
    assert (errors(found) > 1.5).mean() < 0.05


def test_coarse_scan_sees_the_middle_of_the_detector(scan: RawScan) -> None:
    coarse, factors = coarse_scan(scan)
    assert factors == pytest.approx([2.0, 2.0])
    assert np.array_equal(coarse.counts, scan.counts[:, 16:48, 16:48])
    assert coarse.positions == pytest.approx((scan.positions - scan.positions.mean(axis=0)) / 2)
    assert coarse.pattern_shape == coarse.probe.shape[-2:] == coarse.bad_pixels.shape == (32, 32)
