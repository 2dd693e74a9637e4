"""The smoothing against dose and overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptychopinn_torch_plugin.engines.smoothing_rule import mean_overlap, photons_per_lit_pixel, smoothing_for
from ptychopinn_torch_plugin.types import Smoothing


def test_faint_scans_take_cosine_blocks_and_bright_ones_total_variation() -> None:
    assert smoothing_for(0.0, 10.0) == Smoothing()
    assert smoothing_for(1e-6, 10.0).threshold == 0.5
    assert smoothing_for(10.0, 10.0).threshold == pytest.approx(0.9)
    assert smoothing_for(100.0, 10.0).threshold == pytest.approx(1.1)
    assert smoothing_for(999.0, 10.0).photons == 0
    assert smoothing_for(1000.0, 10.0) == smoothing_for(1e7, 3.0) == Smoothing(photons=4.0)


def test_little_overlap_takes_cosine_blocks_at_every_dose() -> None:
    assert smoothing_for(1.0, 2.9) == smoothing_for(1e7, 2.9) == Smoothing(threshold=1.5)


@pytest.mark.parametrize('wrong', [-1.0, math.nan, math.inf])
def test_a_dose_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match='photons_per_pixel'):
        smoothing_for(wrong, 1.0)
    with pytest.raises(ValueError, match='overlap'):
        smoothing_for(1.0, wrong)


def test_the_overlap_is_the_number_of_positions_on_a_pixel() -> None:
    probe = np.full((4, 4), 7.0)
    photons = np.zeros((20, 20))
    photons[:4, :4] = 3 * probe
    assert mean_overlap(photons, probe, 3) == pytest.approx(3.0)
    apart = np.zeros((20, 20))
    apart[:4, :4] = apart[8:12, 8:12] = probe
    assert mean_overlap(apart, probe, 2) == pytest.approx(1.0)
    assert mean_overlap(photons, 0 * probe, 3) == 0.0


def test_faint_tails_and_dark_pixels_do_not_count() -> None:
    photons = np.zeros((20, 20))
    photons[5:15, 5:15] = 50.0
    photons[0, :] = 0.01
    assert photons_per_lit_pixel(photons) == 50.0
    assert photons_per_lit_pixel(np.zeros((4, 4))) == 0.0
