"""Half scans: two independent reconstructions, and the resolution they agree on."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.errors import InputError
from ptychopinn_torch_plugin.metrics import half_scans as halves
from ptychopinn_torch_plugin.observer import Observer, SilentObserver
from ptychopinn_torch_plugin.types import Reconstruction
from tests.helpers.models import untrained_model
from tests.helpers.scans import make_scan

HALVES = parse_config(
    {
        'inference': {'threads': 1, 'half_scans': True, 'preview_interval': 5},
        'refinement': {'refine_epochs': 20, 'smoothing': 0},
    }
)


class Listener(SilentObserver):
    """Remembers what it is told, and stops after so many steps."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.progress: list[tuple[int, int]] = []
        self.previews = 0
        self._stop_after = stop_after

    def on_progress(self, done: int, goal: int) -> None:
        self.progress.append((done, goal))

    def on_preview(self, object_array: np.ndarray) -> None:
        self.previews += 1

    def should_stop(self) -> bool:
        return len(self.progress) >= self._stop_after


def resolution(result: Reconstruction) -> float:
    assert result.metrics is not None
    assert result.metrics.frc is not None
    assert result.metrics.frc.resolution_px is not None
    return result.metrics.frc.resolution_px


def test_more_photons_resolve_more() -> None:
    bright, faint = (refine(make_scan(rows=9, photons=photons)[0], HALVES) for photons in (1e6, 3e3))
    assert resolution(bright) < 0.7 * resolution(faint)


def test_the_halves_are_two_scans_of_every_other_position(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, _ = make_scan(rows=5)
    scan = replace(scan, empty=np.array([3, 8]))
    seen: list[RawScan] = []

    def run(part: RawScan, config: object, observer: Observer) -> Reconstruction:
        seen.append(part)
        return refine(make_scan(rows=3)[0], parse_config({'refinement': {'refine_epochs': 2}}))

    halves.with_half_scans(run, scan, HALVES, None)
    whole, odd, even = seen
    assert whole is scan
    np.testing.assert_array_equal(odd.positions, scan.positions[1::2])
    np.testing.assert_array_equal(even.counts, scan.counts[::2])
    assert np.shares_memory(even.counts, scan.counts)
    assert (list(odd.empty), list(even.empty)) == ([1], [4])
    assert 'odd' in odd.name
    assert 'even' in even.name


def test_the_whole_is_what_it_is_without_halves(caplog: pytest.LogCaptureFixture) -> None:
    scan, _ = make_scan()
    alone = HALVES.model_copy(update={'inference': HALVES.inference.model_copy(update={'half_scans': False})})
    with caplog.at_level(logging.INFO):
        with_halves, without = refine(scan, HALVES), refine(scan, alone)
    np.testing.assert_array_equal(with_halves.object_array, without.object_array)
    assert without.metrics is not None
    assert without.metrics.frc is None
    assert ['Misfit ' in message for message in caplog.messages].count(True) == 2
    assert 'half-bit' in caplog.text or 'pixel grid' in caplog.text


def test_progress_goes_once_from_end_to_end_and_previews_are_of_the_whole() -> None:
    listener = Listener()
    refine(make_scan(rows=5)[0], HALVES, listener)
    (goal,) = {goal for _, goal in listener.progress}
    done = [done for done, _ in listener.progress]
    assert done == sorted(done)
    assert done[-1] == goal
    assert done.index(goal // 2) < done.index(goal), 'the whole scan is half of the progress'
    assert listener.previews == 3


@pytest.mark.parametrize('stop_after', [5, 30])
def test_stopped_in_between_the_whole_is_kept(stop_after: int) -> None:
    result = refine(make_scan(rows=5)[0], HALVES, Listener(stop_after))
    assert result.metrics is not None
    assert result.metrics.frc is None


def test_the_network_reconstructs_the_halves_too() -> None:
    model = untrained_model(parse_config({'model': {'steps': 10, 'width': 4, 'levels': 2}}))
    config = HALVES.model_copy(update={'refinement': HALVES.refinement.model_copy(update={'refine_epochs': 0})})
    assert 2.0 <= resolution(reconstruct(make_scan()[0], model, config)) < 10


def test_too_few_patterns_are_refused() -> None:
    scan, _ = make_scan(rows=2)
    with pytest.raises(InputError, match=r'3 patterns with photons.*Compare half scans'):
        refine(replace(scan, empty=np.array([1])), HALVES)
