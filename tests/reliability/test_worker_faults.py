"""The worker: however it ends, one exception, nothing left behind, and a true sentence on what was kept."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from ptychodus.api.settings import SettingsRegistry

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.errors import PtychoPINNError, WorkerError
from ptychopinn_torch_plugin.host import runs
from ptychopinn_torch_plugin.host.library import PtychoPINNPyTorchLibrary
from ptychopinn_torch_plugin.host.reconstructors import PtychoPINNReconstructor
from ptychopinn_torch_plugin.storage.atomic import writer_tag
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.worker.job import Job, open_job
from ptychopinn_torch_plugin.worker.messages import Finished, LogRecord, Progress
from ptychopinn_torch_plugin.worker.parent import run_job
from tests.helpers.fault_report import FaultReport
from tests.helpers.scans import make_scan as make_simulated_scan
from tests.worker.conftest import make_scan
from tests.worker.test_parent import is_running, wait_until_gone

LIMIT_S = 3
"""Silence limit of the tests: more than the start of a worker takes."""
DEFAULT = Config()
SHORT_LIMIT = parse_config({'execution': {'silence_limit': LIMIT_S}})
IN_TIME_S = 5.0

FAULTS = {
    'the kernel kills it (SIGKILL), as when memory runs out': (
        'worker.entries:be_killed',
        (
            'was ended by SIGKILL',
            'memory ran out: choose a smaller "Batch size (training)"',
            'Last lines of its log: loading the patterns',
        ),
    ),
    'segmentation fault': (
        'worker.entries:crash',
        ('was ended by SIGSEGV', '"Accelerator (training)"', 'terminate called: illegal memory access'),
    ),
    'an exception that cannot be pickled': ('worker.entries:foreign_error', ('ForeignError: one and two',)),
    'an exception without a message': ('reliability.faults:be_unspeakable', ('exit code 1', 'ValueError: no words')),
    'CUDA runs out of memory in training': (
        'reliability.faults:run_out_of_device_memory',
        ('CUDA out of memory', 'Most likely the memory ran out', '"Batch size (training)"'),
    ),
    'the main memory runs out': ('worker.entries:memory_error', ('MemoryError', '"Batch size (training)"')),
    'it exits without a message': ('worker.entries:vanish', ('exit code 3',)),
    'a library ends the process': ('reliability.faults:leave', ('exit code 1', 'licence expired')),
    'it fails and does not end': ('reliability.faults:linger_after_failing', ('CUDNN_STATUS_EXECUTION_FAILED',)),
}
HANGS = {
    'it hangs (limit of 3 s instead of 900 s)': 'reliability.faults:hang',
    'it is frozen by the system (limit of 3 s instead of 900 s)': 'reliability.faults:freeze',
}


def traces() -> dict[str, set[str]]:
    """Return what a run could leave behind: processes, open files, shared memory, temporary folders."""
    places = {'fds': '/proc/self/fd', 'shared memory': '/dev/shm'}  # noqa: S108 - listed, not written to
    found = {name: set(os.listdir(place)) for name, place in places.items() if Path(place).is_dir()}  # noqa: PTH208
    found['folders'] = {path.name for path in Path(tempfile.gettempdir()).glob('ptychopinn-*')}
    found['processes'] = {str(child.pid) for child in multiprocessing.active_children()} | zombies()
    return found


def zombies() -> set[str]:
    """Return the dead children for which nobody waited."""
    found = set()
    for file in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, parent = file.read_text().rsplit(')', 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state == 'Z' and int(parent) == os.getpid():
            found.add(file.parent.name)
    return found


@pytest.fixture(scope='module', autouse=True)
def private_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Other test processes run jobs at the same time."""
    before = tempfile.tempdir
    tempfile.tempdir = str(tmp_path_factory.mktemp('temporary'))
    yield
    tempfile.tempdir = before


@pytest.fixture(scope='module', autouse=True)
def helpers_of_multiprocessing(private_temporary_folder: None) -> None:
    """Start a worker once: the first spawn of a process opens a pipe for good (the resource tracker)."""
    with open_job('refine', [make_scan()], DEFAULT) as job:
        list(run_job(job, entry='tests.worker.entries:slow'))


def run_until_it_fails(entry: str, config: Config, output: Path) -> tuple[WorkerError, float]:
    """Return the exception of a run, and the seconds from the last message (the fault) until all is removed."""
    last = time.monotonic()
    with pytest.raises(WorkerError) as caught, open_job('train', [make_scan()], config, output_folder=output) as job:
        for message in run_job(job, entry=f'tests.{entry}'):
            if isinstance(message, LogRecord | Progress):
                last = time.monotonic()
    return caught.value, time.monotonic() - last


def next_call_works() -> None:
    with open_job('refine', [make_scan()], DEFAULT) as job:
        *_, last = run_job(job, entry='tests.worker.entries:work')
    assert last == Finished()


@pytest.mark.parametrize('fault', FAULTS)
def test_a_dead_worker_is_one_exception(fault: str, tmp_path: Path, fault_report: FaultReport) -> None:
    entry, words = FAULTS[fault]
    before = traces()
    error, seconds = run_until_it_fails(entry, DEFAULT, tmp_path)
    assert [word for word in words if word not in str(error)] == []
    assert '\n' not in str(error)
    assert traces() == before
    next_call_works()
    assert seconds < IN_TIME_S + 10, 'a busy machine takes its time'
    fault_report.record(fault, str(error), 'the model so far; the next call works', seconds)


@pytest.mark.parametrize('fault', HANGS)
def test_a_hanging_worker_is_one_exception(fault: str, tmp_path: Path, fault_report: FaultReport) -> None:
    before = traces()
    error, seconds = run_until_it_fails(HANGS[fault], SHORT_LIMIT, tmp_path)
    for word in ('no progress for 3 s', '"silence_limit"', 'Last lines of its log: simulating the patterns'):
        assert word in str(error)
    if fault.startswith('it hangs'):
        assert ' in hang' in error.__notes__[0], 'where it hung'
    assert traces() == before
    next_call_works()
    assert seconds < LIMIT_S + IN_TIME_S + 10
    fault_report.record(fault, str(error), 'the model so far; the next call works', max(0.0, seconds - LIMIT_S))


def test_slow_work_is_no_hang(tmp_path: Path) -> None:
    with open_job('train', [make_scan()], SHORT_LIMIT, output_folder=tmp_path) as job:
        *_, last = run_job(job, entry='tests.reliability.faults:work_slowly')
    assert last == Finished()


def test_a_finished_worker_that_lingers_costs_no_result(tmp_path: Path) -> None:
    begun = time.monotonic()
    with open_job('refine', [make_scan()], DEFAULT) as job:
        assert list(run_job(job, entry='tests.reliability.faults:linger_after_finishing'))[-1] == Finished()
    assert time.monotonic() - begun < IN_TIME_S + 10


def test_processes_of_a_killed_worker_end_with_it(tmp_path: Path, fault_report: FaultReport) -> None:
    before, pids = traces(), []
    with pytest.raises(WorkerError), open_job('train', [make_scan()], DEFAULT, output_folder=tmp_path) as job:
        for message in run_job(job, entry='tests.reliability.faults:be_killed_with_a_helper'):
            if isinstance(message, LogRecord):
                pids.append(int(message.text.removeprefix('pid=')))
    assert len(pids) == 1
    assert wait_until_gone(pids[0], 2)
    assert traces() == before
    fault_report.record('it is killed while loaders of its own run', 'as above', 'no process is left', 0.0)


def test_job_folders_of_dead_hosts_are_swept(fault_report: FaultReport) -> None:
    machine, pid = writer_tag().split('-')
    dead = multiprocessing.get_context('spawn').Process(target=os.getpid)
    dead.start()
    dead.join()
    folder = Path(tempfile.gettempdir())
    assert dead.pid is not None
    assert not is_running(dead.pid)
    owners = {'dead': f'{machine}-{dead.pid}', 'alive': f'{machine}-{pid}', 'foreign': '00000000-1', 'odd': '../../x'}
    for name, owner in owners.items():
        (folder / f'ptychopinn-{name}').mkdir()
        (folder / f'ptychopinn-{name}' / '.ptychopinn-job').write_text(owner)
    (folder / 'ptychopinn-notes').mkdir()
    job: Job
    with open_job('refine', [make_scan()], DEFAULT) as job:
        left = {path.name.removeprefix('ptychopinn-') for path in folder.glob('ptychopinn-*')}
        assert left == {'alive', 'foreign', 'odd', 'notes', job.folder.name.removeprefix('ptychopinn-')}
    fault_report.record(
        'host and worker were killed together', 'nothing', 'their temporary folders go with the next call'
    )


def test_the_best_model_survives_a_killed_training(tmp_path: Path, fault_report: FaultReport) -> None:
    """The real engine behind the reconstructor that the host drives."""
    settings = SettingsRegistry()
    pinn, *_ = PtychoPINNPyTorchLibrary(settings)
    assert isinstance(pinn, PtychoPINNReconstructor)
    changes: dict[str, dict[str, int | float | str]] = {
        'Data': {'group_size': 4, 'neighbor_count': 5, 'validation_fraction': 0.0},
        'Model': {'steps': 1, 'width': 4, 'levels': 1},
        'Training': {'epochs': 10_000, 'threads': 1, 'accelerator': 'cpu'},
    }
    for section, values in changes.items():
        for name, value in values.items():
            settings[f'PtychoPINNPyTorch{section}'].parameters()[name].set_value(value)
    scan, _ = make_simulated_scan()
    write_training_npz(tmp_path / 'scan.npz', scan)
    killed = math.inf
    with pytest.raises(WorkerError) as caught:
        for output in pinn.train(tmp_path, tmp_path / 'trained'):
            if len(output.training_loss) >= 2 and killed == math.inf:
                (worker,) = multiprocessing.active_children()
                worker.kill()
                killed = time.monotonic()
    seconds = time.monotonic() - killed
    assert pinn.is_model_loaded()
    assert len(load_model(tmp_path / 'trained' / 'model.safetensors').losses) >= 2
    assert 'Epoch 2 of 10000' in str(caught.value)
    fault_report.record(
        'a training is killed after its second epoch', str(caught.value), 'the best model, loaded', seconds
    )


WAYS_OUT = {
    'return': '',
    'exception': 'CUDNN_STATUS_EXECUTION_FAILED',
    'memory': 'Most likely the memory ran out',
    'abort': 'Most likely the memory ran out',
    'exit': 'licence expired',
    'broken pipe': 'without a result',
    'SIGKILL': 'was ended by SIGKILL',
    'SIGTERM': '',
    'SIGHUP': '',
    'SIGINT': '',
    'SIGUSR1': '',
    'SIGUSR2': '',
}
"""Ways in which a worker ends, and a part of the error, if that is one."""


@pytest.fixture
def train_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], tuple[bool, str]]:
    """Train with a worker that writes some files and ends in a way; return whether a model is loaded, and the error."""
    monkeypatch.setattr(runs, 'run_job', partial(run_job, entry='tests.reliability.faults:end_as_planned'))
    write_training_npz(tmp_path / 'scan.npz', make_scan())

    def train(way: str, files: list[str]) -> tuple[bool, str]:
        (tmp_path / 'plan.json').write_text(json.dumps({'way': way, 'files': files}))
        pinn, *_ = PtychoPINNPyTorchLibrary(SettingsRegistry())
        assert isinstance(pinn, PtychoPINNReconstructor)
        try:
            list(pinn.train(tmp_path, tmp_path))
        except PtychoPINNError as error:
            return pinn.is_model_loaded(), str(error)
        return pinn.is_model_loaded(), ''

    return train


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
@pytest.mark.parametrize('way', WAYS_OUT)
def test_every_way_out_says_what_was_kept(
    way: str,
    train_with: Callable[[str, list[str]], tuple[bool, str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault_report: FaultReport,
) -> None:
    with caplog.at_level(logging.INFO):
        is_loaded, error = train_with(way, ['model', 'resume'])
    assert WAYS_OUT[way] in error
    assert bool(WAYS_OUT[way]) == bool(error)
    assert is_loaded
    said = f'The best model of 2 epochs is {tmp_path / "model.safetensors"}.'
    assert f'{said} Training into the same folder resumes from there.' in caplog.messages
    fault_report.record(f'training ends by: {way}', said, 'the best model, and the state to resume from')


@pytest.mark.parametrize('way', ['return', 'SIGKILL'])
def test_what_was_not_written_is_not_claimed(
    way: str,
    train_with: Callable[[str, list[str]], tuple[bool, str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        is_loaded, error = train_with(way, [])
        assert not is_loaded
        assert ('without a model' if way == 'return' else 'SIGKILL') in error
        assert caplog.messages.count('No model was written.') == 1
        assert train_with('return', ['model']) == (True, '')
        assert 'resumes from there' not in caplog.text
        is_loaded, error = train_with(way, [])
    assert not is_loaded
    assert f'This run wrote no model; {tmp_path / "model.safetensors"} is that of an earlier run.' in caplog.messages
