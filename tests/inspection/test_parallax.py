"""The shift of the shadow, on patterns that are nothing but magnified shadows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from ptychopinn_torch_plugin.inspection.measurement import DISTINCT, Orientation
from ptychopinn_torch_plugin.inspection.parallax import find_parallax

SIDE = 48


def shadows(orientation: Orientation, factor: float, step: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Patterns whose structure moves by ``factor`` times the step of the sample, in the axes of ``orientation``."""
    rng = np.random.default_rng(5)
    texture = gaussian_filter(rng.standard_normal((400, 400)), 2.0)
    texture = 1 + 0.4 * texture / texture.std()
    rows, columns = np.meshgrid(np.arange(6), np.arange(6), indexing='ij')
    positions = np.stack([rows.ravel(), columns.ravel()], axis=1) * step + rng.uniform(-1, 1, (36, 2))
    y, x = np.indices((SIDE, SIDE)) - SIDE // 2
    aperture = np.exp(-((np.hypot(y, x) / 16) ** 4))
    frames = []
    for position in positions:
        shift = factor * position
        frame = map_coordinates(texture, [y + 200 - shift[0], x + 200 - shift[1]], order=1)
        frames.append(rng.poisson(np.clip(frame, 0, None) * aperture * 100))
    inverse = next(item for item in ALL if np.allclose(item.matrix() @ orientation.matrix(), np.eye(2)))
    return inverse.apply(np.stack(frames)), positions


ALL = [Orientation(t, r, c) for t in (False, True) for r in (False, True) for c in (False, True)]


@pytest.mark.parametrize('orientation', ALL, ids=lambda item: item.name)
def test_orientation_sign_and_factor_are_found(orientation: Orientation) -> None:
    counts, positions = shadows(orientation, 0.9)
    found = find_parallax(counts, positions, counts.mean(axis=0), np.zeros((SIDE, SIDE), dtype=np.bool_))
    assert found is not None and found.is_significant
    sign = 1 if orientation in DISTINCT else -1
    assert found.orientation == (orientation if sign == 1 else orientation.partner)
    # The array has no pixel in its middle, so a flip moves the pattern by one pixel, which shifts do not feel.
    assert found.factor == pytest.approx(sign * 0.9, abs=3 * found.factor_error)


def test_patterns_without_a_shadow_give_no_certain_shift() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(50.0, (36, SIDE, SIDE))
    positions = rng.uniform(0, 30, (36, 2))
    found = find_parallax(counts, positions, counts.mean(axis=0), np.zeros((SIDE, SIDE), dtype=np.bool_))
    assert found is not None and not found.is_significant


def test_eight_orientations_are_eight_maps_and_partners_are_rotations_by_180_degrees() -> None:
    assert len({tuple(item.matrix().ravel()) for item in ALL}) == 8
    for item in ALL:
        np.testing.assert_array_equal(item.partner.matrix(), -item.matrix())
    pattern = np.arange(9).reshape(3, 3)
    for item in ALL:
        point = item.matrix() @ [-1.0, 0.0]  # the pixel above the middle
        assert item.apply(pattern)[int(point[0]) + 1, int(point[1]) + 1] == pattern[0, 1]
