"""What the patterns show without a reconstruction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ptychopinn_torch_plugin.engines.aperture import aperture_of
from ptychopinn_torch_plugin.inspection.detector import inspect_detector

Counts = npt.NDArray[np.int64]

FRAMES = 30
SIDE = 64
CENTRE = (30.0, 34.0)


def annulus(stop: float = 6.0, edge: float = 16.0) -> npt.NDArray[np.float64]:
    y, x = np.indices((SIDE, SIDE))
    radius = np.hypot(y - CENTRE[0], x - CENTRE[1])
    return np.where((radius >= stop) & (radius <= edge), 200.0, 0.05)


@pytest.fixture
def counts() -> Counts:
    """Patterns of an annulus with a speckle that differs from frame to frame within 24 pixels of the centre."""
    rng = np.random.default_rng(3)
    y, x = np.indices((SIDE, SIDE))
    inside = np.maximum(np.abs(y - CENTRE[0]), np.abs(x - CENTRE[1])) < 24
    speckle = np.where(inside, rng.exponential(2.0, (FRAMES, SIDE, SIDE)), 0.0)
    return rng.poisson(annulus() + speckle)


NO_MASK = np.zeros((SIDE, SIDE), dtype=np.bool_)


def test_a_clean_detector_has_no_fault(counts: Counts) -> None:
    report = inspect_detector(counts, NO_MASK)
    assert (report.dead, report.hot, report.saturated) == (0, 0, 0)
    assert report.limit is None
    assert not report.empty_patterns.size and not report.faint_patterns.size and not report.bright_patterns.size
    assert report.flicker < 0.02


def test_dead_hot_and_saturated_pixels_are_found_where_they_are(counts: Counts) -> None:
    counts[:, 30, 24] = 0  # in the annulus
    counts[:, 5, 5] = 3000
    counts[3, 20:22, 30:32] = 65535
    report = inspect_detector(counts, NO_MASK)
    assert (report.dead, report.hot, report.saturated) == (1, 1, 4)
    assert report.limit == 65535
    assert report.bad_pixels[30, 24] and report.bad_pixels[5, 5] and report.bad_pixels[20:22, 30:32].all()


def test_masked_pixels_are_no_news(counts: Counts) -> None:
    counts[:, 5, 5] = 3000
    mask = NO_MASK.copy()
    mask[5, 5] = True
    assert inspect_detector(counts, mask).hot == 0


def test_unusual_patterns_are_named(counts: Counts) -> None:
    counts[4] = 0
    counts[7] //= 50
    counts[9] *= 5
    report = inspect_detector(counts, NO_MASK)
    assert report.empty_patterns.tolist() == [4]
    assert report.faint_patterns.tolist() == [7]
    assert report.bright_patterns.tolist() == [9]


def test_the_centre_is_that_of_the_aperture_although_pixels_are_dead(counts: Counts) -> None:
    counts[:, 20, 30:34] = 0
    report = inspect_detector(counts, NO_MASK)
    assert np.abs(np.array(report.centre) - CENTRE).max() < 3 * report.centre_error < 1.0


def test_the_useful_side_ends_where_patterns_differ_by_photon_noise_only(counts: Counts) -> None:
    assert inspect_detector(counts, NO_MASK).useful_side == 48


def test_the_aperture_is_an_annulus_with_its_bad_pixels_filled() -> None:
    mean = annulus()
    bad = NO_MASK.copy()
    bad[30, 24] = True
    mean[30, 24] = 1e6
    aperture = aperture_of(mean, bad)
    assert aperture.intensity[30, 24] == pytest.approx(200.0)
    assert aperture.edge_px == pytest.approx(15.7, abs=0.5)
    assert aperture.stop_px == pytest.approx(6.0, abs=1.0)
    probe = aperture.probe(aperture.curvature_of_waves(2.0))
    power = np.abs(np.fft.fftshift(np.fft.fft2(probe[0]))) ** 2
    np.testing.assert_allclose(power / power.sum(), aperture.intensity / aperture.intensity.sum(), atol=1e-6)
