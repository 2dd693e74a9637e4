"""Scores against a known object: Fourier ring correlation, its mean and its resolution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ptychodus.api.io import load_product
from ptychodus.api.object import Object
from ptychodus.api.product import Product

from ptychopinn_torch_plugin.demo.simulate import TRUTH_FILE, ScanPlan, simulate_scan
from ptychopinn_torch_plugin.metrics import compare_with_truth


@pytest.fixture(scope='module')
def truth(tmp_path_factory: pytest.TempPathFactory) -> Product:
    folder: Path = tmp_path_factory.mktemp('scan')
    simulate_scan(folder, ScanPlan(rows=9, columns=9, pattern_shape=(48, 48), noise=False))
    return load_product(folder / TRUTH_FILE)


def with_array(product: Product, array: np.ndarray) -> Product:
    old = product.object_
    return replace(product, object_=Object(array, old.get_pixel_geometry(), old.get_center()))


def test_the_known_object_itself_has_perfect_scores(truth: Product) -> None:
    scores = compare_with_truth(truth, truth).scores
    assert scores.amplitude_ssim == pytest.approx(1, abs=1e-6)
    assert scores.ring_area == pytest.approx(1, abs=1e-6)
    assert scores.ring_resolution_px == 2.0


def test_blur_lowers_the_resolution_and_noise_has_none(truth: Product) -> None:
    array = truth.object_.get_array()
    rng = np.random.default_rng(4)
    fy, fx = np.fft.fftfreq(array.shape[-2])[:, None], np.fft.fftfreq(array.shape[-1])
    noise = rng.normal(size=array.shape) + 1j * rng.normal(size=array.shape)
    blurred = np.where(np.hypot(fy, fx) < 0.2, np.fft.fft2(array), 0)
    scores = compare_with_truth(truth, with_array(truth, np.fft.ifft2(blurred) + 0.002 * noise)).scores
    assert 4.0 < scores.ring_resolution_px < 6.5
    assert 0.3 < scores.ring_area < 0.9
    nothing = compare_with_truth(truth, with_array(truth, 1 + 0.3 * noise)).scores
    assert nothing.ring_resolution_px > 10
    assert abs(nothing.ring_area) < 0.3
