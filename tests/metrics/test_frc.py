"""Rings, threshold and resolution are those of Ptychodus; alignment removes what no pattern determines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from ptychodus.api.metrics import FourierRingCorrelation, compute_fourier_ring_correlation
from scipy.ndimage import gaussian_filter

from ptychopinn_torch_plugin.metrics import aligned, ring_correlation, window_of
from ptychopinn_torch_plugin.metrics.frc import half_bit_threshold, resolution_of
from tests.helpers.scans import smooth_object


def noisy_pair(shape: tuple[int, int]) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128]]:
    """Return the same object twice, with noise stronger than the fine detail."""
    rng = np.random.default_rng(5)
    truth = smooth_object(shape, 3)
    first, second = (truth + 0.1 * (rng.normal(size=shape) + 1j * rng.normal(size=shape)) for _ in range(2))
    return first, second


def smooth_window(shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    photons = np.zeros(shape)
    photons[6:-5, 4:-9] = 100.0
    return window_of(photons)


@pytest.mark.parametrize('shape', [(64, 64), (61, 80), (90, 47)])
def test_correlation_equals_that_of_ptychodus(shape: tuple[int, int]) -> None:
    first, second = noisy_pair(shape)
    window = smooth_window(shape)
    ours = ring_correlation(first, second, window)
    theirs = compute_fourier_ring_correlation(first, second, 1.0, 1.0, window=window)
    np.testing.assert_allclose(ours.frequencies, theirs.spatial_frequency_per_m, atol=1e-12)
    np.testing.assert_allclose(ours.correlation, theirs.correlation, atol=1e-9)
    np.testing.assert_allclose(ours.threshold, theirs.get_bit_threshold_curve(), atol=1e-12)
    assert ours.resolution_px is not None
    assert 2.0 < ours.resolution_px < 12.0
    assert ours.resolution_px == pytest.approx(theirs.get_resolution_m_at_bit_threshold(), rel=1e-9)


def test_low_rings_below_the_threshold_are_skipped() -> None:
    pixels = np.array([0, 8, 12, 20, 30, 40])
    frequencies = np.arange(6) / 12
    correlation = np.array([np.nan, 0.2, 0.9, 0.95, 0.9, 0.1])
    threshold = half_bit_threshold(pixels)
    host = FourierRingCorrelation(frequencies, correlation, pixels)
    lost = host.get_resolution_m_at_bit_threshold()
    assert np.isnan(lost) or lost > 10
    resolution = resolution_of(frequencies, correlation, threshold)
    assert resolution is not None
    assert 12 / 5 < resolution < 12 / 4


def test_no_correlation_has_no_resolution_and_full_correlation_that_of_the_grid() -> None:
    frequencies, threshold = np.arange(6) / 12, np.full(6, 0.5)
    assert resolution_of(frequencies, np.array([np.nan, 0.1, 0.2, 0.0, 0.9, 0.9]), threshold) is None
    assert resolution_of(frequencies, np.ones(6), threshold) == 2.0


def test_alignment_removes_shift_ramp_and_factor() -> None:
    shape = (80, 96)
    fixed = smooth_object(shape, 7)
    window = smooth_window(shape)
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])
    y, x = np.indices(shape)
    moving = np.fft.ifft2(np.fft.fft2(fixed) * np.exp(2j * np.pi * (0.7 * fy - 1.3 * fx)))
    moving = 0.8 * moving * np.exp(1j * (0.4 + 0.031 * y - 0.047 * x))
    inside = window > 0.5
    assert np.abs(moving - fixed)[inside].max() > 0.5
    answer = aligned(moving, fixed, window)
    assert np.abs(answer - fixed)[inside].max() < 1e-3


def test_alignment_does_not_fit_noise() -> None:
    first, second = noisy_pair((64, 64))
    window = smooth_window((64, 64))
    answer = aligned(second, first, window)
    assert np.abs(answer - second)[window > 0].std() < 0.03


def test_window_is_smooth_and_inside_the_illumination() -> None:
    illumination = gaussian_filter(np.pad(np.ones((40, 40)), 20), 3.0)
    window = window_of(illumination)
    assert window[40, 40] == 1.0
    assert window.min() == 0.0
    assert (window[illumination < 0.5 * illumination[illumination > 0].mean()] == 0).all()
    assert np.abs(np.diff(window, axis=0)).max() < 0.25
    assert not window_of(np.zeros((8, 8))).any()
