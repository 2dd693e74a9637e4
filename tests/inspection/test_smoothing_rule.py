"""The smoothing against dose and overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptychopinn_torch_plugin.engines.smoothing_rule import mean_overlap, photons_per_lit_pixel, smoothing_for
from ptychopinn_torch_plugin.types import Smoothing


def test_strength_grows_with_the_dose_up_to_256_photons() -> None:
    assert smoothing_for(0.0, 10.0) == Smoothing()
    assert smoothing_for(100.0, 10.0).photons == pytest.approx(2.5)
    assert smoothing_for(256.0, 10.0).photons == pytest.approx(2 * smoothing_for(64.0, 10.0).photons)
    assert smoothing_for(1e6, 10.0).photons == smoothing_for(256.0, 1.0).photons == pytest.approx(4.0)


def test_cosine_blocks_take_half_of_faint_scans_and_nothing_of_bright_ones() -> None:
    assert [smoothing_for(dose, 3.0).cosine_share for dose in (1e-6, 30.0)] == pytest.approx([0.5, 0.5])
    assert smoothing_for(math.sqrt(30 * 350), 3.0).cosine_share == pytest.approx(0.25)
    assert smoothing_for(349.0, 3.0).threshold == 1.0
    assert smoothing_for(350.0, 3.0) == smoothing_for(1e7, 3.0) == Smoothing(4.0)


def test_little_overlap_takes_cosine_blocks_at_every_dose() -> None:
    assert smoothing_for(1e7, 2.9) == Smoothing(4.0, 2.0, 0.5)
    assert smoothing_for(16.0, 2.9) == Smoothing(1.0, 2.0, 0.5)


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
