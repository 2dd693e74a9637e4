"""Stop and resume. A stopped run goes on as if it had never been stopped, or says why it starts anew."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.errors import ConfigurationError, TrainingError
from ptychopinn_torch_plugin.models.base import Generator
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.training.batches import TrainingBatch
from ptychopinn_torch_plugin.training.losses import pinn_training_loss
from ptychopinn_torch_plugin.training.resume import FORMAT_VERSION, HEADER_KEY, RESUME_FILE
from ptychopinn_torch_plugin.training.run import train
from tests.helpers.fault_report import Ledger
from tests.helpers.scans import make_scan

from .runs import Recorder, small

EPOCHS = 3
BATCHES = 4
"""Of one epoch."""


def config_of(**training: object) -> Config:
    """One group per batch: four batches an epoch."""
    execution = training.pop('execution', {})
    assert isinstance(execution, dict)
    return small(
        data={'group_size': 12, 'neighbor_count': 15, 'validation_fraction': 0.1},
        training={'epochs': EPOCHS, 'batch_size': 1} | training,
        execution=execution,
    )


class ValidationStopper(Recorder):
    """Stops in the validation of the second epoch: after a batch it is asked once, then the validation asks."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0

    def should_stop(self) -> bool:
        self._asked += len(self.progress) == 2 * BATCHES
        return self._asked > 1


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[tuple[int, float, float | None]]]:
    """Model file and losses of a run that was not stopped."""
    folder, recorder = tmp_path_factory.mktemp('whole'), Recorder()
    path = train([make_scan()[0]], config_of(), folder, recorder)
    assert not (folder / RESUME_FILE).exists()
    assert recorder.progress[-1] == (EPOCHS * BATCHES, EPOCHS * BATCHES)
    return path.read_bytes(), recorder.losses


@pytest.mark.parametrize(
    ('where', 'first'),
    [
        ('in the middle of the first epoch', Recorder(stop_after=1)),
        ('in the middle of an epoch', Recorder(stop_after=BATCHES + 2)),
        ('after the last batch of an epoch', Recorder(stop_after=2 * BATCHES)),
        ('after the first batch of an epoch', Recorder(stop_after=BATCHES + 1)),
        ('in the validation', ValidationStopper()),
    ],
)
def test_resumed_equals_uninterrupted(
    where: str,
    first: Recorder,
    whole: tuple[bytes, list[tuple[int, float, float | None]]],
    tmp_path: Path,
    ledger: Ledger,
) -> None:
    scan, _ = make_scan()
    stopped = train([scan], config_of(), tmp_path, first)
    assert load_model(stopped).build()
    assert len(first.progress) < EPOCHS * BATCHES
    torch.manual_seed(99)  # whatever else the process has drawn
    np.random.seed(99)
    second = Recorder()
    model = train([scan], config_of(), tmp_path, second)
    content, losses = whole
    assert second.losses == losses
    assert model.read_bytes() == content
    assert second.progress[0][0] in {len(first.progress) + 1, len(first.progress)}
    assert len(first.progress) + len(second.progress) == EPOCHS * BATCHES
    assert not (tmp_path / RESUME_FILE).exists()
    ledger.record(f'Stop {where}', 'Going on after epoch …, batch …, where the run was stopped.', 'model, state')


@pytest.mark.parametrize(
    'training',
    [
        {'accumulate': 3},
        {'scheduler': 'constant'},
        {'scheduler': 'exponential'},
        {'scheduler': 'warmup-cosine'},
        {'scheduler': 'plateau'},
        {'precision': '16', 'epochs': 2},
        {'execution': {'workers': 2, 'persistent_workers': True, 'checkpoint_top_k': 2}, 'epochs': 2},
    ],
    ids=lambda training: '-'.join(str(value) for value in training.values() if not isinstance(value, dict)),
)
def test_every_moving_part_is_in_the_state(
    training: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('ptychopinn_torch_plugin.training.schedules.PLATEAU_PATIENCE', 0)
    scan, _ = make_scan()
    config = config_of(**training)
    whole, parts = Recorder(), Recorder(stop_after=BATCHES + 2)
    expected = train([scan], config, tmp_path / 'whole', whole)
    train([scan], config, tmp_path / 'parts', parts)
    resumed = Recorder()
    model = train([scan], config, tmp_path / 'parts', resumed)
    assert resumed.losses == whole.losses
    assert model.read_bytes() == expected.read_bytes()
    for path in (tmp_path / 'whole').rglob('epoch-*'):
        assert (tmp_path / 'parts' / 'checkpoints' / path.name).read_bytes() == path.read_bytes()


def start(folder: Path, pause_s: float) -> subprocess.Popen[str]:
    """Train in a process of its own."""
    command = [sys.executable, '-m', 'tests.training.train_here', str(folder), str(pause_s)]
    root = Path(__file__).parents[2]
    environment = os.environ | {'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)


def lines_until(process: subprocess.Popen[str], last: str) -> Iterator[str]:
    """What the process says, up to the line ``last``."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line.strip()
        if line.strip() == last:
            return


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_batch_and_keeps_all(
    number: signal.Signals,
    whole: tuple[bytes, list[tuple[int, float, float | None]]],
    tmp_path: Path,
    ledger: Ledger,
) -> None:
    """With a handler that asks the run to stop, as the command line and the worker set one."""
    asked: list[float] = []

    class Signalled(Recorder):
        def on_progress(self, done: int, goal: int) -> None:
            super().on_progress(done, goal)
            if done == BATCHES + 2:
                os.kill(os.getpid(), number)

        def should_stop(self) -> bool:
            return bool(asked)

    scan, _ = make_scan()
    before = signal.signal(number, lambda _number, _frame: asked.append(time.monotonic()))
    try:
        model = train([scan], config_of(), tmp_path, Signalled())
    finally:
        signal.signal(number, before)
    took = time.monotonic() - asked[0]
    assert took < 10
    assert [record.epoch for record in load_model(model).losses] == [1]
    second = Recorder()
    assert train([scan], config_of(), tmp_path, second).read_bytes() == whole[0]
    assert second.progress[0][0] == BATCHES + 3
    ledger.record(
        f'{number.name} in training', 'The model is in ….', 'the best model, and the state to go on from', took
    )


def test_a_kill_loses_the_epoch_under_way_at_most(
    whole: tuple[bytes, list[tuple[int, float, float | None]]], tmp_path: Path, ledger: Ledger
) -> None:
    process = start(tmp_path, pause_s=0.2)
    list(lines_until(process, f'batch {BATCHES + 2}'))
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert load_model(tmp_path / 'model.safetensors').build()
    second = Recorder()
    model = train([make_scan()[0]], config_of(), tmp_path, second)
    assert second.losses == whole[1]
    assert second.progress[0][0] == BATCHES + 1
    assert model.read_bytes() == whole[0]
    ledger.record('SIGKILL in training', '(nothing)', 'the best model, and the state of the last epoch')


def test_two_fresh_processes_make_the_same_bits(
    whole: tuple[bytes, list[tuple[int, float, float | None]]], tmp_path: Path
) -> None:
    processes = [start(tmp_path / name, pause_s=0.0) for name in ('a', 'b')]
    said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert said[0] == said[1]
    assert said[0][-1].startswith('object ') and said[0][-2].startswith('model ')
    assert (tmp_path / 'a' / 'model.safetensors').read_bytes() == whole[0]


def test_must_resume_says_what_is_wrong(tmp_path: Path, ledger: Ledger) -> None:
    scan, _ = make_scan()
    with pytest.raises(ConfigurationError, match=r"resume = 'must'.*there is no resume.safetensors.*'auto'") as caught:
        train([scan], config_of(resume='must'), tmp_path, Recorder())
    ledger.record('Resume = must, and no state', str(caught.value), 'nothing was there')
    train([scan], config_of(), tmp_path, Recorder(stop_after=1))
    assert (tmp_path / RESUME_FILE).is_file()
    with pytest.raises(ConfigurationError, match='training.learning_rate was 0.003 and is 0.001'):
        train([scan], config_of(resume='must', learning_rate=1e-3), tmp_path, Recorder())
    with pytest.raises(ConfigurationError, match='belongs to other scans'):
        train([replace(scan, positions=scan.positions + 0.5)], config_of(resume='must'), tmp_path, Recorder())
    recorder = Recorder()
    train([scan], config_of(resume='must'), tmp_path, recorder)
    assert recorder.progress[0][0] == 2


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        ({'learning_rate': 1e-3}, 'training.learning_rate was 0.003 and is 0.001'),
        ({'epochs': 2}, 'training.epochs was 3 and is 2'),
        ({'resume': 'never'}, ''),
    ],
)
def test_what_does_not_fit_starts_anew(
    change: dict[str, object], why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan, _ = make_scan()
    train([scan], config_of(), tmp_path / 'stopped', Recorder(stop_after=BATCHES + 1))
    recorder = Recorder()
    model = train([scan], config_of(**change), tmp_path / 'stopped', recorder)
    assert recorder.progress[0][0] == 1
    assert why in caplog.text
    assert model.read_bytes() == train([scan], config_of(**change), tmp_path / 'fresh').read_bytes()


def test_more_epochs_go_on_where_the_schedule_allows(tmp_path: Path) -> None:
    scan, _ = make_scan()
    train([scan], config_of(scheduler='constant'), tmp_path, Recorder(stop_after=BATCHES + 1))
    recorder = Recorder()
    train([scan], config_of(scheduler='constant', epochs=4), tmp_path, recorder)
    assert [epoch for epoch, _, _ in recorder.losses] == [1, 2, 3, 4]
    assert recorder.progress[0] == (BATCHES + 2, 4 * BATCHES)
    train([scan], config_of(scheduler='constant'), tmp_path, Recorder(stop_after=2 * BATCHES + 1))
    with pytest.raises(ConfigurationError, match='its 2 epochs are finished, training.epochs = 2'):
        train([scan], config_of(scheduler='constant', epochs=2, resume='must'), tmp_path, Recorder())


def spoilt(path: Path) -> Iterator[tuple[str, bytes]]:
    """The state in ``path``, broken in every way that somebody might think of."""
    content = path.read_bytes()
    yield 'empty', b''
    yield 'cut in the header', content[:500]
    yield 'cut in the tensors', content[:-100]
    yield 'a pickle', pickle.dumps({'epoch': 1})
    yield 'a header of 1 EB', (2**60).to_bytes(8, 'little') + content[8:]
    with safe_open(path, framework='pt') as file:
        header = json.loads(file.metadata()[HEADER_KEY])
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith('module.generator'))
    whole = json.dumps(header)
    for fault, changed, text in (
        ('no header', tensors, None),
        ('a header that is no JSON', tensors, '{'),
        ('a deeply nested header', tensors, '[' * 100_000),
        ('another version', tensors, json.dumps(header | {'format_version': FORMAT_VERSION + 1})),
        ('an unknown field', tensors, json.dumps(header | {'run': 'rm -rf'})),
        ('a negative epoch', tensors, json.dumps(header | {'epoch': -1})),
        ('a missing tensor', {key: value for key, value in tensors.items() if key != name}, whole),
        ('a tensor of another network', tensors | {'module.other': torch.zeros(3)}, whole),
        ('a tensor of another shape', tensors | {name: torch.zeros(3)}, whole),
        ('a tensor that is not finite', tensors | {name: tensors[name] * torch.nan}, whole),
    ):
        other = path.with_name('other')
        save_file(changed, other, metadata={} if text is None else {HEADER_KEY: text})
        yield fault, other.read_bytes()
        other.unlink()


def test_a_state_that_is_damaged_or_hostile_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ledger: Ledger
) -> None:
    scan, _ = make_scan()
    train([scan], config_of(), tmp_path / 'good', Recorder(stop_after=BATCHES + 1))
    tried = 0
    for fault, content in spoilt(tmp_path / 'good' / RESUME_FILE):
        folder = tmp_path / str(tried)
        folder.mkdir()
        (folder / RESUME_FILE).write_bytes(content)
        caplog.clear()
        recorder = Recorder(stop_after=1)
        train([scan], config_of(), folder, recorder)
        assert recorder.progress[0][0] == 1, fault
        (said,) = (record.message for record in caplog.records if 'starts anew' in record.message)
        assert RESUME_FILE in said, fault
        tried += 1
        if fault in ('cut in the tensors', 'a pickle'):
            ledger.record(f'A resume state: {fault}', said, 'training starts anew')
    ledger.count(tried, 'resume states')


def test_a_link_to_another_state_is_not_followed(tmp_path: Path) -> None:
    scan, _ = make_scan()
    train([scan], config_of(), tmp_path / 'other', Recorder(stop_after=1))
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / RESUME_FILE).symlink_to(tmp_path / 'other' / RESUME_FILE)
    recorder = Recorder(stop_after=1)
    train([scan], config_of(), tmp_path / 'own', recorder)
    assert recorder.progress[0][0] == 1


def test_a_schedule_of_another_kind_is_refused_late_but_clearly(tmp_path: Path) -> None:
    scan, _ = make_scan()
    train([scan], config_of(), tmp_path, Recorder(stop_after=1))
    path = tmp_path / RESUME_FILE
    with safe_open(path, framework='pt') as file:
        header = json.loads(file.metadata()[HEADER_KEY])
    save_file(load_file(path), path, metadata={HEADER_KEY: json.dumps(header | {'schedule': {'step': 1}})})
    with pytest.raises(ConfigurationError, match='damaged.*schedule.*remove the file'):
        train([scan], config_of(), tmp_path, Recorder())


@pytest.mark.parametrize('what', ['loss', 'gradient'])
def test_numbers_that_go_wrong_leave_the_last_good_model(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    calls: list[int] = []

    def spoiled(generator: Generator, batch: TrainingBatch, *rest: object) -> Tensor:
        calls.append(1)
        loss: Tensor = pinn_training_loss(generator, batch, *rest)  # type: ignore[arg-type]
        if len(calls) < BATCHES + 3:
            return loss
        # The slope of a square root at zero is infinite, its value is not.
        zero = sum((parameter.sum() * 0 for parameter in generator.parameters()), torch.zeros(()))
        return loss * torch.nan if what == 'loss' else loss + zero.sqrt()

    monkeypatch.setattr('ptychopinn_torch_plugin.training.module.pinn_training_loss', spoiled)
    recorder = Recorder()
    with pytest.raises(TrainingError, match=f'{what}.* is not finite in epoch 2, batch 3.*lower the learn') as caught:
        train([make_scan()[0]], config_of(), tmp_path, recorder)
    model = load_model(tmp_path / 'model.safetensors')
    assert [record.epoch for record in model.losses] == [epoch for epoch, _, _ in recorder.losses] == [1]
    assert all(np.isfinite(array).all() for array in model.weights.values())
    ledger.record(f'A {what} that is not finite', str(caught.value), 'the best model, and the state after its epoch')
