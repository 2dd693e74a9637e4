"""A refinement ends when its misfit no longer falls, and not before its last quantity has settled."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.config import RefinementConfig
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.engines.solver import Solver
from ptychopinn_torch_plugin.engines.stopping_rule import LEAST_PROGRESS, WINDOW, StoppingRule
from ptychopinn_torch_plugin.observer import SilentObserver
from tests.engines.test_solver import ramp_free_error, settings
from tests.helpers.scans import make_scan

FIXED: dict[str, object] = {'refine_probe': False, 'refine_positions': False}


@pytest.fixture(scope='module')
def tensors() -> ScanTensors:
    return ScanTensors(make_scan()[0], torch.device('cpu'))


def epochs_of(tensors: ScanTensors, deviances: list[float], **refinement: object) -> int | None:
    """Return the epoch after which the refinement is done; None if it is not."""
    pixels = tensors.size * int((~tensors.scan.bad_pixels).sum())
    rule = StoppingRule(tensors, (pixels // 50, 1), RefinementConfig.model_validate(FIXED | refinement))
    return next((epoch for epoch, deviance in enumerate(deviances, 1) if rule.is_done(deviance)), None)


def test_it_ends_when_the_deviance_is_flat(tensors: ScanTensors) -> None:
    falling = list(np.geomspace(8.0, 1.0, 40))
    assert epochs_of(tensors, falling) is None
    assert epochs_of(tensors, falling + 30 * [1.0]) == 40 + WINDOW
    assert epochs_of(tensors, falling + 30 * [1.0], stop_when_done=False) is None


def test_the_unit_is_the_photon_noise_of_a_pixel(tensors: ScanTensors) -> None:
    """With 50 measured values for each object pixel, and in proportion to a misfit above 1."""
    for level in (0.3, 1.0, 6.0):
        unit = LEAST_PROGRESS * max(level, 1.0) / 50
        for factor, expected in ((0.8, 3 * WINDOW), (1.2, None)):
            falls = [level - factor * unit * epoch / WINDOW for epoch in range(60)]
            assert epochs_of(tensors, falls) == expected


def test_restarts_of_the_momentum_do_not_end_it(tensors: ScanTensors) -> None:
    falling = np.geomspace(8.0, 1.0, 60)
    falling[25:31] *= 1.2
    assert epochs_of(tensors, list(falling)) is None


def test_what_joins_last_is_refined_for_three_windows(tensors: ScanTensors) -> None:
    flat = 100 * [1.0]
    assert epochs_of(tensors, flat) == 3 * WINDOW
    assert epochs_of(tensors, flat, refine_probe=True, probe_start=7) == 7 + 3 * WINDOW
    both = {'refine_probe': True, 'refine_positions': True, 'positions_start': 31}
    assert epochs_of(tensors, flat, **both) == 31 + 3 * WINDOW
    assert epochs_of(tensors, flat, refine_intensity=True, intensity_start=40, positions_start=50) == 40 + 3 * WINDOW


def test_a_refinement_ends_early_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Listener(SilentObserver):
        def __init__(self) -> None:
            self.progress: list[tuple[int, int]] = []

        def on_progress(self, done: int, goal: int) -> None:
            self.progress.append((done, goal))

    scan, truth = make_scan(rows=9)
    listener = Listener()
    with caplog.at_level(logging.INFO):
        early = refine(scan, settings(refine_epochs=80), listener)
    [line] = [record.message for record in caplog.records if record.message.startswith('Stopped after')]
    found = re.fullmatch(r'Stopped after (\d+) of 80 epochs: the misfit no longer falls\.', line)
    assert found
    assert int(found[1]) == len(early.losses) < 60
    refined = [done for done, _ in listener.progress][: len(early.losses) + 1]
    assert refined == [*range(1, len(early.losses) + 1), 80], 'the epochs that are left out count as done'
    assert listener.progress[-1][0] == listener.progress[-1][1] > 80
    whole = refine(scan, settings(refine_epochs=80, stop_when_done=False))
    assert len(whole.losses) == 80
    assert ramp_free_error(early, truth) < ramp_free_error(whole, truth) + 0.005


def test_the_solver_itself_runs_all_epochs(tensors: ScanTensors) -> None:
    """A training calibrates with it: a resumed run must repeat its numbers."""
    epochs = []

    def listen(epoch: int, _deviance: float) -> bool:
        epochs.append(epoch)
        return False

    with torch.inference_mode():
        Solver(tensors, initial_state(tensors), RefinementConfig(refine_epochs=60), 64).run(listen)
    assert epochs == list(range(1, 61))
