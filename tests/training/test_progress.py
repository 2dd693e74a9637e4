"""Progress of a training: every phase counts, also in a run that is resumed; and the object on the way."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.observer import FITTING_PROBE, TRAINING
from ptychopinn_torch_plugin.training.calibration import FIRST_EPOCHS, LATER_EPOCHS
from ptychopinn_torch_plugin.training.run import train
from tests.helpers.scans import make_scan

from .runs import Recorder, small

LEARNED = small(training={'epochs': 3, 'probe_trainable': True})


def test_calibrations_count_and_the_progress_ends_at_the_goal(tmp_path: Path) -> None:
    recorder = Recorder()
    train([make_scan()[0]], LEARNED, tmp_path, recorder)
    assert recorder.stages == [FITTING_PROBE, TRAINING] * 3
    # 40 epochs of the solver, then twice a prediction and 10 epochs, and two batches in each of three epochs.
    assert len(recorder.progress) == FIRST_EPOCHS + 2 * (1 + LATER_EPOCHS) + 3 * 2
    goals = {goal for _, goal in recorder.progress}
    assert goals == {recorder.progress[-1][0]}
    assert all(before[0] < after[0] for before, after in pairwise(recorder.progress))


def test_a_resumed_run_begins_at_the_fraction_it_had_reached(tmp_path: Path) -> None:
    scan, _ = make_scan()
    whole, first, second = Recorder(), Recorder(stop_after=FIRST_EPOCHS + 2 + 5), Recorder()
    train([scan], LEARNED, tmp_path / 'whole', whole)
    train([scan], LEARNED, tmp_path / 'parts', first)
    assert len(first.losses) == 1
    train([scan], LEARNED, tmp_path / 'parts', second)
    assert second.progress == whole.progress[FIRST_EPOCHS + 2 :]


@pytest.mark.parametrize('probe_trainable', [True, False])
def test_the_object_of_the_network_is_shown_before_later_epochs(probe_trainable: bool, tmp_path: Path) -> None:
    scan, truth = make_scan()
    config = small(training={'probe_trainable': probe_trainable})
    shown, hidden = Recorder(), Recorder()
    path = train([scan], config, tmp_path / 'shown', shown)
    assert [preview.shape for preview in shown.previews] == [truth.shape] * 2
    assert not np.allclose(shown.previews[0], shown.previews[1])
    without = config.model_copy(update={'inference': config.inference.model_copy(update={'preview_interval': 0})})
    assert train([scan], without, tmp_path / 'hidden', hidden).read_bytes() != b''
    assert not hidden.previews
    assert shown.losses == hidden.losses
    assert path.is_file()
