"""Stop and resume: a stopped run continues to the same bits, or says why it starts anew."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.errors import ConfigurationError, TrainingError
from ptychopinn_torch_plugin.models.base import Generator
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.storage.training_output import RESUME_FILE
from ptychopinn_torch_plugin.training.batches import TrainingBatch
from ptychopinn_torch_plugin.training.losses import pinn_training_loss
from ptychopinn_torch_plugin.training.resume import FORMAT_VERSION, HEADER_KEY
from ptychopinn_torch_plugin.training.run import train
from tests.helpers.fault_report import FaultReport
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
    ('where', 'first', 'finished'),
    [
        ('in the middle of the first epoch', Recorder(stop_after=1), 0),
        ('in the middle of an epoch', Recorder(stop_after=BATCHES + 2), 1),
        ('in the validation', ValidationStopper(), 1),
    ],
)
def test_resumed_equals_uninterrupted(
    where: str,
    first: Recorder,
    finished: int,
    whole: tuple[bytes, list[tuple[int, float, float | None]]],
    tmp_path: Path,
    fault_report: FaultReport,
) -> None:
    scan, _ = make_scan()
    stopped = train([scan], config_of(), tmp_path, first)
    assert load_model(stopped).build()
    assert len(first.losses) == finished
    assert (tmp_path / RESUME_FILE).exists() == (finished > 0)
    torch.manual_seed(99)  # whatever else the process has drawn
    second = Recorder()
    model = train([scan], config_of(), tmp_path, second)
    content, losses = whole
    assert second.losses == losses
    assert model.read_bytes() == content
    assert second.progress[0] == (finished * BATCHES + 1, EPOCHS * BATCHES)
    assert not (tmp_path / RESUME_FILE).exists()
    fault_report.record(
        f'Stop {where}', 'Resuming after epoch …, the last one that the stopped run finished.', 'model, state'
    )


@pytest.mark.parametrize(
    'training',
    [
        {'accumulate': 3, 'scheduler': 'exponential'},
        {'scheduler': 'plateau', 'early_stop_patience': 2},
        {'precision': '16', 'scheduler': 'warmup-cosine'},
        {'execution': {'workers': 2, 'persistent_workers': True, 'checkpoint_top_k': 2}, 'scheduler': 'constant'},
    ],
    ids=lambda training: '-'.join(str(value) for value in training.values() if not isinstance(value, dict)),
)
def test_a_resumed_run_repeats_every_setting(
    training: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation loss of this short run does not always improve: the plateau halves its rate."""
    monkeypatch.setattr('ptychopinn_torch_plugin.training.schedules.PLATEAU_PATIENCE', 0)
    scan, _ = make_scan()
    config = config_of(**training, learning_rate=0.02)
    whole, parts = Recorder(), Recorder(stop_after=2 * BATCHES + 1)
    expected = train([scan], config, tmp_path / 'whole', whole)
    train([scan], config, tmp_path / 'parts', parts)
    resumed = Recorder()
    model = train([scan], config, tmp_path / 'parts', resumed)
    assert resumed.losses == whole.losses
    assert model.read_bytes() == expected.read_bytes()
    for path in (tmp_path / 'whole').rglob('epoch-*'):
        assert (tmp_path / 'parts' / 'checkpoints' / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def validation(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Replace the loss of every coming validation (of one window each) by given numbers."""

    def replace_losses(losses: Sequence[float]) -> None:
        coming = iter(losses)
        monkeypatch.setattr(
            'ptychopinn_torch_plugin.training.module.pinn_validation_loss', lambda *rest: torch.tensor(next(coming))
        )

    return replace_losses


def one_window(**training: object) -> Config:
    return small(training={'epochs': 4} | training, data={'validation_fraction': 0.02})


def test_the_best_weights_of_a_stopped_run_are_kept(
    validation: Callable[[Sequence[float]], None], tmp_path: Path
) -> None:
    """The first epoch is the best one; what comes after the resume is worse, and does not replace it."""
    scan, _ = make_scan()
    validation([1.0, 3.0])
    best = load_model(train([scan], one_window(), tmp_path, Recorder(stop_after=5))).weights
    (tmp_path / 'model.safetensors').unlink()  # the state alone is enough
    validation([4.0])
    again = load_model(train([scan], one_window(), tmp_path, Recorder(stop_after=1))).weights
    assert all(np.array_equal(again[name], best[name]) for name in best)
    validation([4.0, 2.0])
    model = load_model(train([scan], one_window(), tmp_path))
    assert [record.validation for record in model.losses] == [1.0, 3.0, 4.0, 2.0]
    assert all(np.array_equal(model.weights[name], best[name]) for name in best)


def test_early_stopping_counts_the_epochs_before_the_stop(
    validation: Callable[[Sequence[float]], None], tmp_path: Path
) -> None:
    scan, _ = make_scan()
    validation([1.0, 3.0])
    train([scan], one_window(early_stop_patience=2), tmp_path, Recorder(stop_after=5))
    validation([2.0])
    recorder = Recorder()
    train([scan], one_window(early_stop_patience=2), tmp_path, recorder)
    assert [loss for _, _, loss in recorder.losses] == [1.0, 3.0, 2.0]
    assert not (tmp_path / RESUME_FILE).exists()


def test_losses_are_reported_when_model_and_state_are_on_disk(tmp_path: Path) -> None:
    class Reader(Recorder):
        def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
            super().on_losses(epoch, training, validation)
            records = load_model(tmp_path / 'model.safetensors').losses
            assert (records[-1].epoch, records[-1].training, records[-1].validation) == self.losses[-1]
            rows = (tmp_path / 'training_log' / 'metrics.csv').read_text().splitlines()
            assert rows[-1].startswith(f'{epoch},')
            with safe_open(tmp_path / RESUME_FILE, framework='pt') as file:
                assert len(json.loads(file.metadata()[HEADER_KEY])['history']) == epoch

    reader = Reader(stop_after=2 * BATCHES + 1)
    train([make_scan()[0]], config_of(), tmp_path, reader)
    assert len(reader.losses) == 2


def start(folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Train in a process of its own, up to the first batch of the second epoch."""
    command = [sys.executable, '-m', 'tests.training.train_here', str(folder), str(BATCHES + 1)]
    root = Path(__file__).parents[2]
    environment = os.environ | {'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'} | variables
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
    )


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_batch_and_keeps_all(
    number: signal.Signals,
    whole: tuple[bytes, list[tuple[int, float, float | None]]],
    tmp_path: Path,
    fault_report: FaultReport,
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
    assert signal.getsignal(number) is before
    assert train([scan], config_of(), tmp_path).read_bytes() == whole[0]
    fault_report.record(f'{number.name} in training', '(nothing)', 'the best model, and the state to go on from', took)


def test_a_kill_loses_the_epoch_under_way_and_a_job_of_a_cluster_is_no_exception(
    whole: tuple[bytes, list[tuple[int, float, float | None]]], tmp_path: Path, fault_report: FaultReport
) -> None:
    """In a SLURM job nothing is requeued, and no pickle is written or read; ``sbatch --signal`` sends SIGUSR1."""
    calls, scontrol = tmp_path / 'calls', tmp_path / 'bin' / 'scontrol'
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    slurm = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'SLURM_NODEID': '0'}
    slurm['PATH'] = f'{scontrol.parent}:{os.environ["PATH"]}'
    (tmp_path / 'job').mkdir()
    hostile = tmp_path / 'job' / 'hpc_ckpt_1.ckpt'
    hostile.write_bytes(pickle.dumps({'epoch': 2, 'global_step': 8, 'state_dict': {}, 'loops': {}}))
    planted = hostile.read_bytes()
    killed = {signal.SIGKILL: start(tmp_path / 'killed'), signal.SIGUSR1: start(tmp_path / 'job', **slurm)}
    for (number, process), name in zip(killed.items(), ('killed', 'job'), strict=True):
        assert process.stdout is not None
        assert any(line == f'batch {BATCHES + 1}\n' for line in process.stdout)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == -number
        assert load_model(tmp_path / name / 'model.safetensors').build()
        second = Recorder()
        model = train([make_scan()[0]], config_of(), tmp_path / name, second)
        assert second.losses == whole[1]
        assert second.progress[0][0] == BATCHES + 1
        assert model.read_bytes() == whole[0]
        fault_report.record(
            f'{number.name} in training', '(nothing)', 'the best model, and the state of the last epoch'
        )
    assert not calls.exists()
    assert hostile.read_bytes() == planted
    assert list(tmp_path.rglob('*.ckpt')) == [hostile]


@pytest.mark.parametrize(
    'variables',
    [
        {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '2'},
        {'LSB_JOBID': '7', 'LSB_DJOB_RANKFILE': '/nowhere', 'JSM_NAMESPACE_LOCAL_RANK': '0'}
        | {'JSM_NAMESPACE_SIZE': '2', 'JSM_NAMESPACE_RANK': '1'},
    ],
    ids=['SLURM', 'LSF'],
)
def test_variables_of_a_cluster_change_nothing(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # Lightning takes its rank from the environment when it is imported.
    monkeypatch.setattr(rank_zero_only, 'rank', int(variables.get('SLURM_PROCID', 1)))
    recorder = Recorder()
    train([make_scan()[0]], small(training={'epochs': 1}), tmp_path, recorder)
    assert len(recorder.losses) == 1
    assert len((tmp_path / 'training_log' / 'metrics.csv').read_text().splitlines()) == 2


def test_must_resume_says_what_is_wrong(tmp_path: Path, fault_report: FaultReport) -> None:
    scan, _ = make_scan()
    with pytest.raises(ConfigurationError, match=r"resume = 'must'.*there is no resume.safetensors.*'auto'") as caught:
        train([scan], config_of(resume='must'), tmp_path, Recorder())
    fault_report.record('Resume = must, and no state', str(caught.value), 'nothing was there')
    train([scan], config_of(), tmp_path, Recorder(stop_after=BATCHES + 1))
    assert (tmp_path / RESUME_FILE).is_file()
    with pytest.raises(ConfigurationError, match='training.learning_rate was 0.003 and is 0.001'):
        train([scan], config_of(resume='must', learning_rate=1e-3), tmp_path, Recorder())
    with pytest.raises(ConfigurationError, match='belongs to other scans'):
        train([replace(scan, positions=scan.positions + 0.5)], config_of(resume='must'), tmp_path, Recorder())
    recorder = Recorder()
    train([scan], config_of(resume='must'), tmp_path, recorder)
    assert recorder.progress[0][0] == BATCHES + 1


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
    assert recorder.progress[0] == (BATCHES + 1, 4 * BATCHES)
    train([scan], config_of(scheduler='constant'), tmp_path, Recorder(stop_after=2 * BATCHES + 1))
    with pytest.raises(ConfigurationError, match='its 2 epochs are finished, training.epochs = 2'):
        train([scan], config_of(scheduler='constant', epochs=2, resume='must'), tmp_path, Recorder())


def spoilt(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the state in ``path``, damaged in many ways."""
    content = path.read_bytes()
    yield 'empty', b''
    yield 'cut in the header', content[:500]
    yield 'cut in the tensors', content[:-100]
    yield 'a pickle', pickle.dumps({'epoch': 1})
    yield 'a header of 1 EB', (2**60).to_bytes(8, 'little') + content[8:]
    yield 'random bytes', np.random.default_rng(0).bytes(len(content))
    yield 'bytes that are no UTF-8', content.replace(b'fingerprint', b'\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff')
    with safe_open(path, framework='pt') as file:
        header = json.loads(file.metadata()[HEADER_KEY])
    tensors = load_file(path)
    (entry,) = header['history']
    texts: dict[str, str | None] = {'no header': None, 'a header that is no JSON': '{', 'a list': '[]', 'a number': '1'}
    texts |= {
        'a deeply nested header': '[' * 100_000,
        'a key given twice': json.dumps(header)[:-1] + ', "format_version": 2}',
        'a large number': json.dumps(header).replace('"training": ', '"training": 1' + '0' * 5000),
    }
    for fault, change in {
        'the version before': {'format_version': FORMAT_VERSION - 1},
        'a version that is a text': {'format_version': 'two'},
        'an unknown field': {'run': 'rm -rf'},
        'no history': {'history': []},
        'a history that starts at 9': {'history': [entry | {'epoch': 9}]},
        'an epoch twice': {'history': [entry, entry]},
        'a negative epoch': {'history': [entry | {'epoch': -1}]},
        'a loss that is a text': {'history': [entry | {'training': 'low'}]},
        'a loss that is infinite': {'history': [entry | {'training': math.inf}]},
        'a loss that is not a number': {'history': [entry | {'training': math.nan}]},
        'a validation loss in one epoch only': {'history': [entry, {'epoch': 2, 'training': 1.0}]},
        'a fingerprint that is a text': {'fingerprint': 'mine'},
        'a loss scale of zero': {'loss_scale': [0.0, 0]},
        'a loss scale that is infinite': {'loss_scale': [math.inf, 0]},
    }.items():
        texts[fault] = json.dumps(header | change)
    name = next(name for name in tensors if name.startswith('module.generator'))
    changes: dict[str, dict[str, Tensor]] = {
        'a tensor of another network': {'module.other': torch.zeros(3)},
        'a tensor of another shape': {name: torch.zeros(3)},
        'a tensor of another type': {name: tensors[name].double()},
        'a tensor that is not finite': {name: tensors[name] * torch.nan},
        'a moment of no parameter': {'optimizer.9999.exp_avg': torch.zeros(())},
        'a moment without a number': {'optimizer.first.exp_avg': torch.zeros(())},
        'an unknown moment': {'optimizer.0.speed': torch.zeros(())},
        'a negative second moment': {'optimizer.0.exp_avg_sq': tensors['optimizer.0.exp_avg_sq'] - 1},
        'a negative step': {'optimizer.0.step': torch.tensor(-1.0)},
    }
    other = path.with_name('other')
    for missing in (name, 'optimizer.0.step', name.replace('module.', 'best.')):
        save_file(
            {key: tensor for key, tensor in tensors.items() if key != missing}, other, {HEADER_KEY: json.dumps(header)}
        )
        yield f'{missing} is missing', other.read_bytes()
    for fault, change in changes.items():
        save_file(tensors | change, other, {HEADER_KEY: json.dumps(header)})
        yield fault, other.read_bytes()
    for fault, text in texts.items():
        save_file(tensors, other, {} if text is None else {HEADER_KEY: text})
        yield fault, other.read_bytes()


def test_a_state_that_is_damaged_is_refused_in_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault_report: FaultReport
) -> None:
    scan, _ = make_scan()
    train([scan], config_of(), tmp_path / 'good', Recorder(stop_after=BATCHES + 1))
    config, folder = config_of(resume='must'), tmp_path / 'damaged'
    folder.mkdir()
    tried = 0
    for fault, content in spoilt(tmp_path / 'good' / RESUME_FILE):
        (folder / RESUME_FILE).write_bytes(content)
        with pytest.raises(ConfigurationError, match=f"resume = 'must'.*{RESUME_FILE}") as caught:
            train([scan], config, folder, Recorder(stop_after=1))
        said = str(caught.value)
        assert '\n' not in said and len(said) < 700, fault
        tried += 1
        if fault in ('cut in the tensors', 'a pickle'):
            fault_report.record(f'A resume state: {fault}', said, 'training starts anew')
    assert tried > 30
    fault_report.count(tried, 'resume states')
    recorder = Recorder(stop_after=1)
    train([scan], config_of(), folder, recorder)
    assert recorder.progress[0][0] == 1
    assert 'starts anew' in caplog.text


def test_a_link_to_another_state_is_not_followed(tmp_path: Path) -> None:
    scan, _ = make_scan()
    train([scan], config_of(), tmp_path / 'other', Recorder(stop_after=BATCHES + 1))
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / RESUME_FILE).symlink_to(tmp_path / 'other' / RESUME_FILE)
    recorder = Recorder(stop_after=1)
    train([scan], config_of(), tmp_path / 'own', recorder)
    assert recorder.progress[0][0] == 1


@pytest.mark.parametrize('what', ['loss', 'gradient'])
def test_numbers_that_go_wrong_leave_the_last_good_model(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_report: FaultReport
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
    fault_report.record(
        f'A {what} that is not finite', str(caught.value), 'the best model, and the state after its epoch'
    )
