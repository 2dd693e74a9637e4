"""The steps that the searches consist of, each for itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.config import RefinementConfig
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines import geometry_search, position_search
from ptychopinn_torch_plugin.engines.downsampling import coarse_scan, compact_part
from ptychopinn_torch_plugin.engines.geometry_search import Geometry, search_geometry
from ptychopinn_torch_plugin.physics.forward import simulate
from ptychopinn_torch_plugin.types import ReconstructionState
from tests.helpers.scans import make_scan

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def truth() -> tuple[RawScan, ReconstructionState]:
    """A scan, and the state that it was simulated with."""
    scan, _ = make_scan((32, 34), rows=4, photons=1e6, margin=8, known_object=True)
    tensors = ScanTensors(scan, CPU)
    state = initial_state(tensors)
    object_array = torch.from_numpy(scan.object_guess).to(torch.complex64)
    return scan, replace(state, object_array=object_array, origin=(0, 0))


# The geometry


def test_the_linear_map_of_a_geometry() -> None:
    y, x = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert Geometry().matrix() == pytest.approx(np.eye(2))
    assert Geometry(scale=1.5).matrix() == pytest.approx(1.5 * np.eye(2))
    quarter = Geometry(rotation=math.pi / 2).matrix()
    assert quarter @ y == pytest.approx(x)
    assert quarter @ x == pytest.approx(-y)
    assert Geometry(aspect=0.2).matrix() == pytest.approx(np.diag([1.1, 0.9]))
    assert Geometry(shear=0.2).matrix() == pytest.approx(np.array([[1.0, 0.1], [0.1, 1.0]]))
    together = Geometry(scale=2.0, rotation=math.pi / 2, aspect=0.2).matrix()
    assert together @ y == pytest.approx(2 * 1.1 * x)


def test_the_sentence_of_a_geometry_gives_degrees_and_per_cent() -> None:
    found = Geometry(1.1, math.radians(2), 0.05, math.radians(-3), given_deviance=7.5, found_deviance=2.25)
    for part in ('scaled by 1.100', 'by 2.00 degrees', 'by 5.0 %', 'by -3.00 degrees', 'from 7.50 to 2.25'):
        assert part in found.sentence()


def test_the_scale_is_the_minimum_within_its_bounds() -> None:
    asked: list[float] = []

    def deviance(geometry: Geometry) -> float:
        asked.append(geometry.scale)
        return 2.0 + 50 * math.log(geometry.scale / 1.17) ** 2

    best, found = geometry_search._best_scale(deviance, 3.0)
    assert best.scale == pytest.approx(1.17, abs=0.003)
    assert found == pytest.approx(2.0, abs=1e-3)
    assert all(0.7 <= scale <= 1.4 for scale in asked)
    assert len(asked) <= 12
    assert geometry_search._best_scale(deviance, 2.0) == (Geometry(), 2.0)
    assert geometry_search._best_scale(lambda _geometry: math.nan, 2.0) == (Geometry(), 2.0)
    for end in (0.7, 1.4):
        best, _ = geometry_search._best_scale(lambda one, end=end: abs(math.log(one.scale / end)), 3.0)  # type: ignore[misc]
        assert best.scale == pytest.approx(end, rel=0.02)


def test_the_vertex_of_a_parabola_is_taken_where_it_is_better() -> None:
    start = Geometry(scale=1.2)

    def deviance(geometry: Geometry) -> float:
        return 1.0 + 30 * (geometry.rotation - 0.03) ** 2

    best, found = geometry_search._best_along(deviance, start, deviance(start), 'rotation', 0.02)
    assert best.rotation == pytest.approx(0.03)
    assert replace(best, rotation=0.0) == start
    assert found == pytest.approx(1.0)
    # Not farther than twice the distance of the outer points, on either side.
    for sign in (-1.0, 1.0):
        best, _ = geometry_search._best_along(
            lambda one, sign=sign: 30 * (one.rotation - sign * 0.3) ** 2,  # type: ignore[misc]
            start,
            30 * 0.3**2,
            'rotation',
            0.02,
        )
        assert best.rotation == pytest.approx(sign * 0.04)
    # No minimum, no value, or no improvement: as before.
    for function in (
        lambda one: 1.0 - 30 * (one.rotation - 0.03) ** 2,
        lambda _one: math.inf,
        lambda one: 30 * one.rotation**2 + (0.0 if one.rotation in (0.02, -0.02) else 5.0),
        lambda one: one.rotation,
    ):
        given = 0.0 if function(Geometry()) == math.inf else min(function(Geometry()), 0.0)
        assert geometry_search._best_along(function, start, given, 'rotation', 0.02) == (start, given)


def test_the_search_reports_both_deviances() -> None:
    scan, _ = make_scan((64, 64), rows=6, photons=1e6)
    found = search_geometry(scan, RefinementConfig(), CPU, lambda: False)
    assert found.scale == pytest.approx(1.0, abs=0.05)
    assert math.isfinite(found.given_deviance)
    assert found.found_deviance <= found.given_deviance


# Smaller scans


def test_the_coarse_scan_keeps_probe_and_curvature() -> None:
    scan, _ = make_scan((72, 100), rows=3, photons=1e6)
    scan = replace(scan, fresnel_numbers=(1e-3, 2e-3))
    coarse, factors = coarse_scan(scan)
    assert factors.tolist() == [2.0, 2.0]
    assert coarse.pattern_shape == (36, 50)
    assert np.array_equal(coarse.counts, scan.counts[:, 18:54, 25:75])
    assert coarse.fresnel_numbers == pytest.approx((4e-3, 8e-3))
    assert coarse.object_guess.shape == (1, 1)
    assert coarse.object_guess[0, 0] == 1
    # A smooth probe on half the pixels: every second value, with the amplitude of the larger transform.
    middle = scan.probe[:, ::2, ::2]
    overlap = np.vdot(coarse.probe, middle) / np.linalg.norm(coarse.probe) / np.linalg.norm(middle)
    assert abs(overlap) > 0.98
    lopsided = scan.probe.copy()
    lopsided[:, 40:] = 0
    half, _ = coarse_scan(replace(scan, probe=lopsided))
    power = np.abs(half.probe[0]) ** 2
    assert power[:20].sum() > 20 * power[22:34].sum()


@pytest.mark.parametrize(
    ('side', 'coarse_side'), [(63, 32), (65, 32), (67, 33), (40, 32), (32, 32), (16, 16), (17, 17)]
)
def test_a_coarse_pattern_has_32_pixels_at_least(side: int, coarse_side: int) -> None:
    scan, _ = make_scan((side, 70), rows=2)
    mask = np.zeros((side, 70), dtype=bool)
    mask[side // 2, 35] = mask[side // 2 + 1, 37] = True
    coarse, factors = coarse_scan(replace(scan, bad_pixels=mask))
    assert coarse.pattern_shape == (coarse_side, 35)
    assert factors == pytest.approx([side / coarse_side, 2.0])
    # The zero frequency stays in the middle.
    assert np.argwhere(coarse.bad_pixels).tolist() == [[coarse_side // 2, 17], [coarse_side // 2 + 1, 19]]
    assert np.abs(coarse.positions.mean(axis=0)).max() < 1e-9
    assert np.ptp(coarse.positions, axis=0) == pytest.approx(np.ptp(scan.positions, axis=0) / factors)


def test_a_compact_part_lies_in_the_middle() -> None:
    scan, _ = make_scan((16, 16), rows=9)
    assert compact_part(scan, 81) is scan
    part = compact_part(scan, 9)
    assert part.size == 9
    centre = scan.positions.mean(axis=0)
    assert np.abs(part.positions.mean(axis=0) - centre).max() < 0.3 * np.ptp(scan.positions, axis=0).max()
    assert np.ptp(part.positions, axis=0).max() < 0.6 * np.ptp(scan.positions, axis=0).max()
    numbers = [int(np.flatnonzero((scan.positions == one).all(axis=1))[0]) for one in part.positions]
    assert numbers == sorted(numbers)
    assert np.array_equal(part.counts, scan.counts[numbers])


# The positions


def test_the_deviance_of_each_pattern(truth: tuple[RawScan, ReconstructionState]) -> None:
    scan, state = truth
    mask = np.zeros(scan.pattern_shape, dtype=bool)
    mask[:10] = True
    scan = replace(scan, bad_pixels=mask)
    found = position_search._deviances(state, scan, state.positions)
    tensors = ScanTensors(scan, CPU)
    batch = tensors.batch(state, np.arange(scan.size))
    model = simulate(state.object_array[None], batch.probes, batch.patch_origins).amplitudes[0]
    expected = 4 * ((model - batch.amplitudes[0]).square() * batch.good_pixels).sum(dim=(1, 2)) / (22 * 34)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    # One pattern at many positions, more than are simulated at a time.
    places = state.positions[3].repeat(70, 1)
    places[69, 0] += 1
    found = position_search._deviances(state, scan.select(np.array([3])), places)
    np.testing.assert_allclose(found[:69], float(expected[3]), rtol=1e-3)
    assert found[69] > 1.2 * found[0]


@pytest.mark.parametrize('step', [(0, 0), (3, -2), (-3, 3), (4, 0)], ids=str)
def test_the_best_position_lies_within_reach(step: tuple[int, int], truth: tuple[RawScan, ReconstructionState]) -> None:
    """The given position is wrong by ``step``, the present one by half a pixel; the true one is on the grid."""
    scan, state = truth
    true = scan.positions[5]
    wrong = replace(scan, positions=scan.positions + step).select(np.array([5]))
    present = true + np.array([0.0, 0.5])
    found = position_search._best_position(state, wrong, present, 3)
    within = max(np.abs(step)) <= 3
    assert found == pytest.approx(true if within else present, abs=1e-3)
    assert position_search._best_position(state, wrong, true, 3) is true


def test_candidates_stay_inside_the_object_array(
    truth: tuple[RawScan, ReconstructionState], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, state = truth
    small = replace(state, object_array=state.object_array[:40, :44], origin=(2, 3))
    seen: list[np.ndarray] = []

    def recorded(_state: ReconstructionState, _scan: RawScan, positions: torch.Tensor) -> np.ndarray:
        seen.append(positions.numpy())
        return np.arange(len(positions), 0, -1.0)

    monkeypatch.setattr(position_search, '_deviances', recorded)
    single = replace(scan, positions=np.full_like(scan.positions, 20.0)).select(np.array([0]))
    found = position_search._best_position(small, single, np.array([500.0, -500.0]), 12)
    (candidates,) = seen
    first, last = np.array([2 + 15.5, 3 + 16.5]), np.array([2 + 40 - 16.5, 3 + 44 - 17.5]) - 1e-3
    assert len(candidates) == 1 + 25**2
    assert candidates.min(axis=0) == pytest.approx(first)
    assert candidates.max(axis=0) == pytest.approx(last)
    assert candidates[0] == pytest.approx([last[0], first[1]])
    assert found == pytest.approx(last)
    inside = np.unique(candidates[1:, 0])
    assert set(np.arange(18.0, 25.0)) <= set(inside)


def test_suspects_differ_from_their_neighbours_by_a_fifth() -> None:
    y, x = np.mgrid[:20, :20]
    positions = np.stack([y.ravel(), x.ravel()], axis=1).astype(float)
    deviances = np.linspace(0.999, 1.001, 400)
    deviances[200:] *= 10  # other neighbours, another median
    deviances[[45, 300]] *= 1.3
    deviances[[90, 350]] /= 1.3
    deviances[[10, 390]] *= 1.18
    deviances[[17, 380]] /= 1.18
    found = position_search._suspects(deviances, positions)
    assert {45, 300, 90, 350} <= set(found)
    assert {10, 390} <= set(found)  # among the largest 7 per cent
    assert not {17, 380} & set(found)
    rows = {int(number) // 20 for number in found} - {9, 10}  # the median changes within two rows of the edge
    assert len(found) == pytest.approx(0.07 * 400 + 2, abs=12)
    assert rows
    few = position_search._suspects(np.array([1.0, 1.0, 5.0]), positions[:3])
    assert few.tolist() == [2]


def test_the_refinements_of_the_position_search(
    truth: tuple[RawScan, ReconstructionState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One coarse refinement, then two rounds of two; positions only, with the likelihood that was configured."""
    scan, state = truth
    configs: list[RefinementConfig] = []
    sizes: list[int] = []

    def recorded(
        scan: RawScan, config: RefinementConfig, _device: torch.device, _should_stop: object, _kernels: object
    ) -> ReconstructionState:
        configs.append(config)
        sizes.append(scan.size)
        return replace(state, positions=torch.from_numpy(scan.positions))

    monkeypatch.setattr(position_search, '_refined', recorded)
    given = RefinementConfig(
        search_positions=1.5, likelihood='poisson', smoothing=3.0, refine_intensity=True, refine_positions=False
    )
    found = position_search.search_positions(scan, given, CPU, lambda: False)
    assert found.shape == scan.positions.shape
    assert [config.refine_epochs for config in configs] == [120, 30, 30, 30, 30]
    assert [config.positions_start for config in configs] == [3, 5, 5, 5, 5]
    for config in configs:
        assert (config.smoothing, config.refine_intensity, config.refine_geometry) == (0.0, False, False)
        assert (config.refine_positions, config.likelihood) == (True, 'poisson')
    assert sizes[0] == sizes[1] == sizes[3] == scan.size
    assert max(sizes[2], sizes[4]) < scan.size
    configs.clear()
    stopped = position_search.search_positions(scan, given, CPU, lambda: True)
    assert len(configs) == 1
    np.testing.assert_allclose(stopped, scan.positions)
