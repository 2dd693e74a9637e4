"""The strength of total variation against the dose."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptychopinn_torch_plugin.engines.smoothing_rule import photons_per_lit_pixel, smoothing_for


def test_strength_grows_with_the_dose_up_to_256_photons() -> None:
    assert smoothing_for(0.0) == 0.0
    assert smoothing_for(100.0) == pytest.approx(2.5)
    assert smoothing_for(256.0) == pytest.approx(2 * smoothing_for(64.0))
    assert smoothing_for(1e6) == smoothing_for(256.0) == pytest.approx(4.0)


@pytest.mark.parametrize('wrong', [-1.0, math.nan, math.inf])
def test_a_dose_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match='photons_per_pixel'):
        smoothing_for(wrong)


def test_faint_tails_and_dark_pixels_do_not_count() -> None:
    photons = np.zeros((20, 20))
    photons[5:15, 5:15] = 50.0
    photons[0, :] = 0.01
    assert photons_per_lit_pixel(photons) == 50.0
    assert photons_per_lit_pixel(np.zeros((4, 4))) == 0.0
