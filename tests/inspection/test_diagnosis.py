"""Injected faults and the causes that are named; and the R-factor, which a wrong sign of the defocus fools."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.geometry.faults import faulty_scan
from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.engines.verification import reversed_defocus
from ptychopinn_torch_plugin.inspection.diagnosis import ADVICE, dead_pixels, diagnose
from ptychopinn_torch_plugin.metrics import verdict
from tests.helpers.scans import make_scan

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def scan() -> RawScan:
    return make_scan(rows=7, photons=1e5)[0]


def test_a_dead_block_is_found_as_a_whole_and_named_first(scan: RawScan) -> None:
    assert not dead_pixels(scan).any()
    counts = np.asarray(scan.counts).copy()
    middle = counts.shape[-1] // 2
    block = np.zeros(scan.bad_pixels.shape, dtype=bool)
    block[middle + 1 : middle + 8, middle - 4 : middle + 3] = True
    counts[:, block] = 0
    faulty = replace(scan, counts=counts)
    assert (dead_pixels(faulty) & block).sum() > 0.9 * block.sum()
    cause = diagnose(faulty, CPU).causes[0]
    assert cause.key == 'dead_pixels'
    assert 'detector_r_map' in cause.sentence and ADVICE['dead_pixels'].setting in cause.sentence


def test_a_reversed_defocus_is_named_and_a_healthy_scan_is_not_blamed(scan: RawScan) -> None:
    reverse = replace(scan, probe=reversed_defocus(scan.probe))
    assert 'reversed' in [cause.key for cause in diagnose(reverse, CPU).causes][:2]
    healthy = diagnose(scan, CPU)
    assert [cause.key for cause in healthy.causes] == [], healthy.numbers


def test_a_drift_that_the_positions_follow_in_part_only_is_named() -> None:
    found = diagnose(faulty_scan('drift', 8100), CPU)
    assert found.numbers['drift_px'] < 0.3, 'the injected drift is 2 pixels'
    assert found.causes[0].key == 'drift'


def test_at_low_dose_the_r_factor_is_that_of_noise_for_the_wrong_sign_and_the_verdict_is_red() -> None:
    faint = make_scan(rows=9, photons=500)[0]
    config = parse_config({'refinement': {'refine_epochs': 30}, 'inference': {'threads': 1}})
    found = refine(replace(faint, probe=reversed_defocus(faint.probe)), config).metrics
    assert found is not None and found.credibility is not None
    assert found.r_factor < 1.1 * found.noise_r_factor, 'the R-factor alone calls it explained'
    assert found.credibility.colour == 'red'
    assert found.credibility.cause == 'reversed'
    assert verdict(found).startswith('Red. Wrong: the defocus of the probe has the wrong sign')
