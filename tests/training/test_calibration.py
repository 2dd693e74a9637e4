"""Probe, positions and photon scale learned while the network is trained, and a scan that is held out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines.network import Predictor
from ptychopinn_torch_plugin.errors import ConfigurationError
from ptychopinn_torch_plugin.models.registry import build_generator
from ptychopinn_torch_plugin.observer import FITTING_PROBE, TRAINING, SilentObserver
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.training.batches import TrainingScan
from ptychopinn_torch_plugin.training.calibration import Calibration, calibrate
from ptychopinn_torch_plugin.training.run import train
from ptychopinn_torch_plugin.types import ReconstructionState
from tests.helpers.scans import make_scan

CPU = torch.device('cpu')


def small(**training: object) -> Config:
    return parse_config(
        {
            'data': {'group_size': 12, 'neighbor_count': 15},
            'model': {'steps': 2, 'width': 4, 'levels': 2},
            'training': {'epochs': 2, 'batch_size': 2, 'accelerator': 'cpu', 'threads': 1}
            | {'probe_trainable': False, **training},
        }
    )


def in_training(scan: RawScan) -> TrainingScan:
    tensors = ScanTensors(scan, CPU)
    return TrainingScan(tensors, initial_state(tensors))


def overlap(a: npt.NDArray[np.complexfloating], b: npt.NDArray[np.complexfloating]) -> float:
    return float(abs(np.vdot(a, b)) / (np.linalg.norm(a) * np.linalg.norm(b)))


def curved(scan: RawScan, strength: float) -> RawScan:
    """The scan with a probe out of focus."""
    fy, fx = (np.fft.fftfreq(side) for side in scan.pattern_shape)
    blur = np.exp(1j * strength * (fy[:, None] ** 2 + fx**2))
    return replace(scan, probe=np.fft.ifft2(np.fft.fft2(scan.probe) * blur))


def test_a_wrong_probe_is_found_and_goes_into_the_model(tmp_path: Path) -> None:
    scan, _ = make_scan(rows=9)
    wrong = curved(scan, 150.0)
    before = overlap(wrong.probe, scan.probe)
    given = load_model(train([wrong], small(epochs=1), tmp_path / 'given'))
    learned = load_model(train([wrong], small(probe_trainable=True), tmp_path / 'learned'))
    assert before < 0.9
    assert overlap(given.probe, wrong.probe) == pytest.approx(1.0, abs=1e-5)
    assert overlap(learned.probe, scan.probe) > 0.97
    assert learned.losses[-1].training < 0.5 * given.losses[-1].training
    assert np.linalg.norm(learned.probe) == pytest.approx(np.linalg.norm(given.probe), rel=1e-3)


def test_wrong_positions_are_found_and_do_not_drift_together() -> None:
    scan, _ = make_scan(rows=9)
    errors = np.random.default_rng(3).uniform(-0.8, 0.8, scan.positions.shape)
    moved = in_training(replace(scan, positions=scan.positions + errors))
    state = calibrate(moved, None, small(positions_trainable=True), SilentObserver())
    found = state.positions.numpy()
    left = found - scan.positions
    before, after = (np.std(one - one.mean(axis=0)) for one in (errors, left))
    assert after < 0.4 * before
    displacement = found - scan.positions - errors
    assert np.abs(displacement.mean(axis=0)).max() < 1e-3


def test_a_later_calibration_starts_from_the_object_of_the_network() -> None:
    scan, _ = make_scan(rows=9)
    config = small(probe_trainable=True)
    torch.manual_seed(0)
    generator = build_generator(config.model)
    wrong = in_training(curved(scan, 150.0))
    overlaps = [overlap(wrong.state.probe.numpy(), scan.probe)]
    for _ in range(4):
        wrong.state = calibrate(wrong, generator, config, SilentObserver())
        overlaps.append(overlap(wrong.state.probe.numpy(), scan.probe))
    assert overlaps[-1] > 0.95
    assert overlaps[1] > overlaps[0]


def test_the_photon_scale_is_that_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, _ = make_scan()
    config = small(intensity_scale_trainable=True)
    torch.manual_seed(0)
    generator = build_generator(config.model.model_copy(update={'steps': 20}))
    tensors = ScanTensors(scan, CPU)
    right = initial_state(tensors)
    wrong = replace(right, probe=right.probe * 0.5)

    # The network returns an object of the right scale: half the probe then gives half the amplitudes.
    whole = Predictor.predict

    def predict(self: Predictor) -> ReconstructionState:
        self._state = right
        return replace(whole(self), probe=wrong.probe)

    monkeypatch.setattr(Predictor, 'predict', predict)
    found = calibrate(TrainingScan(tensors, wrong), generator, config, SilentObserver())
    assert float(found.probe.abs().square().sum() / right.probe.abs().square().sum()) == pytest.approx(1.0, abs=0.05)


def test_a_calibration_is_part_of_the_state_and_is_restored_with_it() -> None:
    scan, _ = make_scan()
    config = small(probe_trainable=True, positions_trainable=True)
    first, second = in_training(scan), in_training(scan)
    calibration = Calibration([first], config, SilentObserver())
    assert calibration.run(None)
    restored = Calibration([second], config, SilentObserver())
    restored.load_state_dict({name: tensor.clone() for name, tensor in calibration.state_dict().items()})
    restored.restore()
    assert not np.array_equal(second.state.positions.numpy(), scan.positions)
    assert torch.equal(second.state.probe, first.state.probe)
    assert torch.equal(second.state.positions, first.state.positions)
    assert np.array_equal(second.patch_origins, first.patch_origins)


class StopInCalibration(SilentObserver):
    """Stops in the middle of the calibration that follows so many finished epochs."""

    def __init__(self, epochs: int, questions: int) -> None:
        self._epochs = epochs
        self._questions = questions
        self.stages: list[str] = []

    def on_stage(self, stage: str) -> None:
        self.stages.append(stage)

    def should_stop(self) -> bool:
        self._questions -= self.stages[2 * self._epochs :] == [FITTING_PROBE]
        return self._questions < 0


class CopyAfterFirst(SilentObserver):
    """Copies the output folder when the first epoch has ended: what a kill would leave."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self._folder = folder
        self._copy = copy

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        if epoch == 1:
            # The lock of a killed run does not hold, that of this process does.
            shutil.copytree(self._folder, self._copy, ignore=shutil.ignore_patterns('.ptychopinn-lock*'))


def test_a_run_that_was_killed_or_stopped_in_a_calibration_continues_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calibration before the second epoch is made again, from the network of the first."""
    monkeypatch.setattr('ptychopinn_torch_plugin.training.calibration.FIRST_EPOCHS', 14)
    scan, _ = make_scan()
    config = small(probe_trainable=True, positions_trainable=True)
    copy, stopped = tmp_path / 'copy', tmp_path / 'stopped'
    whole = load_model(train([scan], config, tmp_path / 'whole', CopyAfterFirst(tmp_path / 'whole', copy)))
    for epochs in (0, 1):  # in the first calibration, then in the second
        observer = StopInCalibration(epochs, 9)
        train([scan], config, stopped, observer)
        assert observer.stages == [FITTING_PROBE, TRAINING] * epochs + [FITTING_PROBE]
    for folder in (copy, stopped):
        resumed = load_model(train([scan], config, folder))
        assert np.array_equal(resumed.probe, whole.probe)
        assert all(np.array_equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def holding_out(fraction: float = 0.05) -> Config:
    tree = small().model_dump()
    tree['data'] |= {'hold_out_scan': True, 'validation_fraction': fraction}
    return parse_config(tree)


@pytest.mark.parametrize('fraction', [0.05, 0.0])
def test_a_held_out_scan_is_scored_and_not_trained_on(fraction: float, tmp_path: Path) -> None:
    trained, scored = make_scan()[0], replace(make_scan(seed=5)[0], name='scored')
    spoiled = replace(scored, counts=scored.counts[:, ::-1].copy())
    records = []
    for number, last in enumerate((scored, spoiled)):
        model = load_model(train([trained, last], holding_out(fraction), tmp_path / str(number)))
        assert model.header.scans == ('test scan',)
        records.append((model.losses[0].training, model.losses[0].validation))
    assert records[0][0] == records[1][0]
    assert records[0][1] is not None
    assert records[1][1] is not None
    assert records[1][1] > 1.5 * records[0][1]


def test_the_only_scan_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='one scan only'):
        train([make_scan()[0]], holding_out(), tmp_path)
