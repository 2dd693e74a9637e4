"""Training: it learns, it repeats, it stops, it refuses."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.errors import InputError, TrainingError
from ptychopinn_torch_plugin.model.generator import Generator
from ptychopinn_torch_plugin.observer import SilentObserver
from ptychopinn_torch_plugin.persistence import load_model
from ptychopinn_torch_plugin.reconstruction import reconstruct
from ptychopinn_torch_plugin.training.batches import Batch
from ptychopinn_torch_plugin.training.objective import pinn_training_loss
from ptychopinn_torch_plugin.training.run import train
from tests.scans import make_scan


class Recorder(SilentObserver):
    """Remembers everything; stops after ``stop_after`` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.progress: list[tuple[int, int]] = []
        self.losses: list[tuple[int, float, float | None]] = []
        self._stop_after = stop_after

    def on_progress(self, done: int, goal: int) -> None:
        self.progress.append((done, goal))

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        self.losses.append((epoch, training, validation))

    def should_stop(self) -> bool:
        return self._stop_after is not None and len(self.progress) >= self._stop_after


def small(**parts: dict[str, object]) -> Config:
    tree: dict[str, dict[str, object]] = {
        'data': {'group_size': 12, 'neighbor_count': 15},
        'model': {'steps': 2, 'width': 8, 'levels': 2},
        'training': {'epochs': 3, 'batch_size': 2, 'learning_rate': 3e-3, 'accelerator': 'cpu', 'threads': 1},
    }
    return parse_config({name: fields | parts.get(name, {}) for name, fields in tree.items()})


@pytest.mark.parametrize(
    ('model_type', 'likelihood'), [('pinn', 'amplitude'), ('pinn', 'poisson'), ('supervised', 'amplitude')]
)
def test_training_lowers_the_loss_on_held_out_positions(model_type: str, likelihood: str, tmp_path: Path) -> None:
    scan, _ = make_scan(known_object=True)
    recorder = Recorder()
    config = small(
        model={'model_type': model_type}, training={'epochs': 40, 'likelihood': likelihood, 'learning_rate': 5e-3}
    )
    path = train([scan], config, tmp_path, recorder)
    validation = [loss for _, _, loss in recorder.losses if loss is not None]
    assert min(validation) < 0.95 * validation[0]
    assert recorder.progress[-1][0] == recorder.progress[-1][1] == 40 * 2
    model = load_model(path)
    assert [record.validation for record in model.losses] == validation
    assert reconstruct(scan, model, parse_config({'refinement': {'refine_epochs': 1}})).losses == model.losses


def test_same_seed_same_model(tmp_path: Path) -> None:
    scan, _ = make_scan()
    files = [train([scan], small(), tmp_path / name).read_bytes() for name in ('a', 'b')]
    assert files[0] == files[1]
    other = train([scan], small(training={'seed': 1}), tmp_path / 'c')
    assert other.read_bytes() != files[0]


def test_stop_keeps_a_model_and_comes_at_once(tmp_path: Path) -> None:
    scan, _ = make_scan()
    recorder = Recorder(stop_after=1)
    path = train([scan], small(training={'epochs': 1000}), tmp_path, recorder)
    assert len(recorder.progress) == 1
    assert load_model(path).build()


def test_the_log_holds_every_epoch(tmp_path: Path) -> None:
    scan, _ = make_scan()
    recorder = Recorder()
    train([scan], small(), tmp_path, recorder)
    with (tmp_path / 'training_log' / 'metrics.csv').open() as file:
        rows = [row for row in csv.DictReader(file) if row['loss']]
    assert [float(row['loss']) for row in rows] == pytest.approx([loss for _, loss, _ in recorder.losses], rel=1e-5)


def test_held_out_patterns_are_never_trained_on(tmp_path: Path) -> None:
    """Spoil the held-out patterns: the training loss stays, the validation loss goes up."""
    from ptychopinn_torch_plugin.data.grouping import split_positions

    scan, _ = make_scan()
    config = small(data={'validation_fraction': 0.2}, training={'epochs': 1})
    _, held_out = split_positions(scan.size, 0.2, np.random.default_rng(config.training.seed))
    counts = scan.counts.copy()
    counts[held_out] = counts[held_out][:, ::-1]
    records: list[tuple[float, float]] = []
    for number, patterns in enumerate((scan.counts, counts)):
        recorder = Recorder()
        train([replace(scan, counts=patterns)], config, tmp_path / str(number), recorder)
        _, training, validation = recorder.losses[0]
        assert validation is not None
        records.append((training, validation))
    assert records[0][0] == pytest.approx(records[1][0], rel=1e-6)
    assert records[1][1] > 2 * records[0][1]


def test_one_position_per_group_and_no_validation(tmp_path: Path) -> None:
    scan, _ = make_scan(rows=3)
    config = small(data={'group_size': 1, 'neighbor_count': 0, 'validation_fraction': 0.0}, training={'epochs': 1})
    recorder = Recorder()
    train([scan], config, tmp_path, recorder)
    assert recorder.losses[0][2] is None


def test_several_scans_of_different_sizes_teach_one_model(tmp_path: Path) -> None:
    scans = [make_scan((32, 32))[0], make_scan((33, 40), modes=2, seed=5)[0]]
    path = train(scans, small(), tmp_path)
    assert load_model(path).header.scans == ('test scan', 'test scan')


def test_a_scan_smaller_than_a_group_is_used_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan, _ = make_scan(rows=3)
    train([scan], small(data={'group_size': 64, 'neighbor_count': 80}, training={'epochs': 1}), tmp_path)
    assert 'has 9 positions' in caplog.text


def test_supervised_refuses_a_flat_reference(tmp_path: Path) -> None:
    scan, _ = make_scan()
    with pytest.raises(InputError, match='flat.*Supervised.*PINN'):
        train([scan], small(model={'model_type': 'supervised'}), tmp_path)


def test_a_loss_that_is_not_finite_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def spoiled(generator: Generator, batch: Batch, likelihood: str) -> Tensor:
        calls.append(1)
        return pinn_training_loss(generator, batch, likelihood) * (float('nan') if len(calls) == 5 else 1.0)

    monkeypatch.setattr('ptychopinn_torch_plugin.training.module.pinn_training_loss', spoiled)
    scan, _ = make_scan()
    with pytest.raises(TrainingError, match='epoch 3, batch 1'):
        train([scan], small(), tmp_path)
    assert load_model(tmp_path / 'model.safetensors').build()


def test_the_best_weights_are_kept_with_the_whole_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation is made to get worse after the second epoch: the file holds that epoch's weights, and all losses."""
    epoch_losses = iter([3.0, 1.0, 2.0, 5.0])

    def judged(generator: Generator, batch: Batch, likelihood: str) -> Tensor:
        return torch.tensor(losses[0])

    losses = [0.0]

    class Follower(Recorder):
        def on_progress(self, done: int, goal: int) -> None:
            super().on_progress(done, goal)
            if done % 2 == 0:  # the last batch of an epoch: its validation comes next
                losses[0] = next(epoch_losses)

    monkeypatch.setattr('ptychopinn_torch_plugin.training.module.pinn_validation_loss', judged)
    scan, _ = make_scan()
    models = []
    for name, epochs in (('short', 2), ('long', 4)):
        epoch_losses = iter([3.0, 1.0, 2.0, 5.0])
        config = small(training={'epochs': epochs})
        monkeypatch.setattr('torch.optim.lr_scheduler.OneCycleLR.get_lr', lambda self: [1e-3])
        models.append(load_model(train([scan], config, tmp_path / name, Follower())))
    short, long = models
    assert [record.validation for record in long.losses] == [3.0, 1.0, 2.0, 5.0]
    assert all(np.array_equal(long.weights[key], short.weights[key]) for key in short.weights)
