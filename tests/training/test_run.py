"""Training: it learns, it repeats, it stops, it refuses."""

from __future__ import annotations

import csv
import gc
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.engines.pipeline import reconstruct
from ptychopinn_torch_plugin.errors import ConfigurationError, InputError, OutputError, TrainingError
from ptychopinn_torch_plugin.models.base import Generator
from ptychopinn_torch_plugin.observer import SilentObserver
from ptychopinn_torch_plugin.physics.kernels.sums import Kernels
from ptychopinn_torch_plugin.signals import RUN_STOP_SIGNALS
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.training.batches import TrainingBatch
from ptychopinn_torch_plugin.training.losses import pinn_training_loss
from ptychopinn_torch_plugin.training.run import train
from tests.helpers.fault_report import FaultReport
from tests.helpers.scans import make_scan

from .runs import Recorder, small


@pytest.mark.parametrize(
    ('model_type', 'likelihood'), [('pinn', 'amplitude'), ('pinn', 'poisson'), ('supervised', 'amplitude')]
)
def test_training_lowers_the_loss_on_held_out_positions(model_type: str, likelihood: str, tmp_path: Path) -> None:
    scan, _ = make_scan(known_object=True)
    recorder = Recorder()
    config = small(
        model={'model_type': model_type}, training={'epochs': 12, 'likelihood': likelihood, 'learning_rate': 2e-2}
    )
    path = train([scan], config, tmp_path, recorder)
    validation = [loss for _, _, loss in recorder.losses if loss is not None]
    assert min(validation) < 0.95 * validation[0]
    assert recorder.progress[-1][0] == recorder.progress[-1][1] == 12 * 2
    model = load_model(path)
    assert [record.validation for record in model.losses] == validation
    assert reconstruct(scan, model, parse_config({'refinement': {'refine_epochs': 1}})).losses == model.losses


def test_memory_does_not_grow_with_the_epochs(tmp_path: Path) -> None:
    class Counter(SilentObserver):
        def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
            tensors = [one for one in gc.get_objects() if issubclass(type(one), Tensor)]
            counts.append(sum(one.is_complex() for one in tensors))  # waves and objects, not weights

    counts: list[int] = []
    scan, _ = make_scan()
    gc.disable()
    try:
        train([scan], small(), tmp_path, Counter())
    finally:
        gc.enable()
    assert counts[2] == counts[1], counts


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


def test_a_second_training_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    scan, _ = make_scan()

    class Second(Recorder):
        def on_progress(self, done: int, goal: int) -> None:
            if not self.progress:
                with pytest.raises(OutputError, match=r'is in use: process \d+ on .* began training there'):
                    train([scan], small(), tmp_path)
            super().on_progress(done, goal)

    observer = Second()
    train([scan], small(training={'epochs': 1}), tmp_path, observer)
    assert len(observer.progress) == 2
    train([scan], small(training={'epochs': 1}), tmp_path)


def test_the_log_holds_every_epoch(tmp_path: Path) -> None:
    scan, _ = make_scan()
    recorder = Recorder()
    train([scan], small(), tmp_path, recorder)
    with (tmp_path / 'training_log' / 'metrics.csv').open() as file:
        rows = [(int(row['epoch']), float(row['loss']), float(row['validation_loss'])) for row in csv.DictReader(file)]
    assert rows == recorder.losses


def test_held_out_patterns_are_never_trained_on(tmp_path: Path) -> None:
    """Spoil the held-out patterns: the training loss stays, the validation loss goes up."""
    from ptychopinn_torch_plugin.data.grouping import hold_out_positions

    scan, _ = make_scan()
    config = small(data={'validation_fraction': 0.2}, training={'epochs': 1})
    _, held_out = hold_out_positions(scan.size, 0.2, np.random.default_rng(config.training.seed))
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

    def spoiled(generator: Generator, batch: TrainingBatch, likelihood: str, kernels: Kernels) -> Tensor:
        calls.append(1)
        return pinn_training_loss(generator, batch, likelihood, kernels) * (float('nan') if len(calls) == 5 else 1.0)

    monkeypatch.setattr('ptychopinn_torch_plugin.training.module.pinn_training_loss', spoiled)
    scan, _ = make_scan()
    with pytest.raises(TrainingError, match='epoch 3, batch 1'):
        train([scan], small(), tmp_path)
    assert load_model(tmp_path / 'model.safetensors').build()


def test_the_best_weights_are_kept_with_the_whole_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation is made to get worse after the second epoch: the file holds that epoch's weights, and all losses."""
    epoch_losses = iter([3.0, 1.0, 2.0, 5.0])

    def next_loss(generator: Generator, batch: TrainingBatch, likelihood: str, kernels: Kernels) -> Tensor:
        return torch.tensor(losses[0])

    losses = [0.0]

    class Follower(Recorder):
        def on_progress(self, done: int, goal: int) -> None:
            super().on_progress(done, goal)
            if done % 2 == 0:  # the last batch of an epoch: its validation comes next
                losses[0] = next(epoch_losses)

    monkeypatch.setattr('ptychopinn_torch_plugin.training.module.pinn_validation_loss', next_loss)
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


def test_loader_processes_make_the_same_model(tmp_path: Path) -> None:
    scan, _ = make_scan()
    files = []
    for workers, keep in ((0, False), (2, False), (2, True)):
        execution: dict[str, object] = {
            'workers': workers,
            'persistent_workers': keep,
            'prefetch_factor': 1,
            'pin_memory': True,
        }
        config = small(execution=execution, training={'batch_size': 1})
        model = load_model(train([scan], config, tmp_path / f'{workers}{keep}'))
        files.append((model.losses, {name: array.tobytes() for name, array in model.weights.items()}))
    assert files[0] == files[1] == files[2]
    assert not multiprocessing.active_children()


def test_a_loader_process_that_is_killed_is_named(tmp_path: Path, fault_report: FaultReport) -> None:
    class Killer(Recorder):
        def on_progress(self, done: int, goal: int) -> None:
            super().on_progress(done, goal)
            if done == 3:
                for process in multiprocessing.active_children():
                    process.kill()

    recorder = Killer()
    config = small(execution={'workers': 1, 'prefetch_factor': 1}, training={'batch_size': 1, 'epochs': 50})
    with pytest.raises(TrainingError, match='loader process died.*execution.workers to 0') as caught:
        train([make_scan()[0]], config, tmp_path, recorder)
    assert len(recorder.progress) < 10
    sentence = re.sub(r'\(.*?\):', '(…):', str(caught.value))  # torch's own words differ with the moment
    fault_report.record('A loader process is killed', sentence, 'the best model so far', group='The worker dies')


def test_stop_signals_do_not_end_the_loader_processes(tmp_path: Path) -> None:
    """A cluster sends them to all processes of a job; the training process decides what they do."""

    class Sender(Recorder):
        def on_progress(self, done: int, goal: int) -> None:
            super().on_progress(done, goal)
            for process in multiprocessing.active_children() if done == 2 else ():
                assert process.pid is not None
                for number in RUN_STOP_SIGNALS - {signal.SIGTERM}:
                    os.kill(process.pid, number)

    recorder = Sender()
    config = small(execution={'workers': 1, 'prefetch_factor': 1}, training={'batch_size': 1, 'epochs': 1})
    train([make_scan()[0]], config, tmp_path, recorder)
    assert len(recorder.losses) == 1


def test_batches_may_be_accumulated(tmp_path: Path) -> None:
    """One step on the gradient of two batches of one group is a step on one batch of two groups."""
    scan, _ = make_scan((32, 32), rows=6)
    weights = []
    for batch_size, accumulate in ((2, 1), (1, 2)):
        # Every group is then the whole scan in the same object array, and no augmentation differs.
        config = small(
            data={'group_size': 36, 'neighbor_count': 35, 'groups_per_epoch': 2, 'validation_fraction': 0.0},
            training={'batch_size': batch_size, 'accumulate': accumulate, 'epochs': 1, 'scheduler': 'constant'},
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                'ptychopinn_torch_plugin.models.augmentation.Augmentation.random', classmethod(lambda cls: cls())
            )
            weights.append(load_model(train([scan], config, tmp_path / str(accumulate))).weights)
    assert all(np.allclose(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6) for name in weights[0])


@pytest.mark.parametrize('precision', ['bf16', '16'])
def test_lower_precision_is_for_the_convolutions_only(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, torch.dtype]] = set()
    convolve: Any = torch.nn.functional.conv2d
    transform: Any = torch.fft.fft2

    def watched_convolution(x: Tensor, *rest: object, **options: object) -> Tensor:
        answer: Tensor = convolve(x, *rest, **options)
        seen.add(('convolution', answer.dtype))
        return answer

    def watched_transform(x: Tensor, *rest: object, **options: object) -> Tensor:
        seen.add(('transform', x.dtype))
        answer: Tensor = transform(x, *rest, **options)
        return answer

    monkeypatch.setattr('torch.nn.functional.conv2d', watched_convolution)
    monkeypatch.setattr('torch.fft.fft2', watched_transform)
    scan, _ = make_scan()
    losses = []
    for name in ('32', precision):
        seen.clear()
        recorder = Recorder()
        path = train([scan], small(training={'precision': name}), tmp_path / name, recorder)
        losses.append([loss for _, *both in recorder.losses for loss in both])
        assert all(array.dtype == np.float32 for array in load_model(path).weights.values())
    half = {'bf16': torch.bfloat16, '16': torch.float16}[precision]
    assert {dtype for what, dtype in seen if what == 'transform'} <= {torch.complex64, torch.float32}
    assert {dtype for what, dtype in seen if what == 'convolution'} == {half}
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_patience_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coming = iter([3.0, 1.0, 2.0, 1.5, 0.5])
    monkeypatch.setattr(
        'ptychopinn_torch_plugin.training.module.pinn_validation_loss', lambda *rest: torch.tensor(next(coming))
    )
    recorder = Recorder()
    config = small(training={'epochs': 5, 'early_stop_patience': 2}, data={'validation_fraction': 0.02})
    train([make_scan()[0]], config, tmp_path, recorder)
    assert [loss for _, _, loss in recorder.losses] == [3.0, 1.0, 2.0, 1.5]
    assert not (tmp_path / 'resume.safetensors').exists()


@pytest.mark.parametrize(
    ('execution', 'kept', 'best'),
    [
        ({'checkpoint_top_k': 2}, [2, 4], 2),
        ({'checkpoint_top_k': 2, 'checkpoint_mode': 'max'}, [1, 3], 1),
        ({'checkpoint_top_k': 1, 'checkpoint_monitor': 'loss'}, [1], 1),
        ({}, [], 2),
    ],
)
def test_the_best_epochs_are_kept(
    execution: dict[str, object], kept: list[int], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation is best in epoch 2, worst in 1; the training loss is made to grow."""
    coming, calls = iter([4.0, 1.0, 3.0, 2.0]), iter(range(1, 100))
    monkeypatch.setattr(
        'ptychopinn_torch_plugin.training.module.pinn_validation_loss', lambda *rest: torch.tensor(next(coming))
    )
    monkeypatch.setattr(
        'ptychopinn_torch_plugin.training.module.pinn_training_loss',
        lambda generator, *rest: sum(one.sum() for one in generator.parameters()) * 0 + next(calls),
    )
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / 'epoch-000099.safetensors').write_bytes(b'of an earlier run')
    config = small(training={'epochs': 4}, data={'validation_fraction': 0.02}, execution=execution)
    path = train([make_scan()[0]], config, tmp_path, Recorder())
    files = {int(file.stem.removeprefix('epoch-')): file for file in (tmp_path / 'checkpoints').glob('epoch-*')}
    if kept:
        assert sorted(files) == kept
        for epoch, file in files.items():
            assert [record.epoch for record in load_model(file).losses] == list(range(1, epoch + 1))
    if best in kept:
        weights = [load_model(file).weights for file in (path, files[best])]
        assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_loss_that_is_absent_cannot_be_monitored(tmp_path: Path) -> None:
    config = small(data={'validation_fraction': 0.0}, execution={'checkpoint_monitor': 'validation_loss'})
    with pytest.raises(ConfigurationError, match="checkpoint_monitor = 'validation_loss'.*no position is held out"):
        train([make_scan()[0]], config, tmp_path)


@pytest.mark.parametrize('deterministic', [True, False])
def test_determinism_is_asked_for_while_training_only(deterministic: bool, tmp_path: Path) -> None:
    asked: list[bool] = []

    class Looker(Recorder):
        def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
            asked.append(torch.are_deterministic_algorithms_enabled())

    train([make_scan()[0]], small(execution={'deterministic': deterministic}), tmp_path, Looker())
    assert set(asked) == {deterministic}
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_progress_bar_is_shown_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (False, True):
        train([make_scan()[0]], small(execution={'progress_bar': shown}, training={'epochs': 1}), tmp_path / str(shown))
        assert ('Epoch 0' in capsys.readouterr().out) is shown


def test_loader_processes_and_a_learned_probe_do_not_go_together(tmp_path: Path) -> None:
    config = small(execution={'workers': 1}, training={'probe_trainable': True})
    with pytest.raises(ConfigurationError, match='execution.workers = 1.*set it to 0'):
        train([make_scan()[0]], config, tmp_path)
