"""A worker that is kept for the next call: real processes, faults between calls, and results that do not change."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.errors import InputError, ModelFileError
from ptychopinn_torch_plugin.types import Reconstruction
from ptychopinn_torch_plugin.worker.job import Job, JobKind, open_job, read_result
from ptychopinn_torch_plugin.worker.messages import LogRecord
from ptychopinn_torch_plugin.worker.parent import end_kept_worker, run_job
from tests.helpers.scans import make_scan as make_simulated_scan

from .conftest import make_scan
from .test_parent import ROOT, is_running, log_texts, wait_until_gone

CALLS = 'tests.worker.kept_calls:'
SMALL = parse_config(
    {
        'data': {'group_size': 8, 'neighbor_count': 10},
        'model': {'steps': 2, 'width': 4, 'levels': 1},
        'training': {'epochs': 2, 'threads': 1, 'accelerator': 'cpu', 'resume': 'never'},
        'refinement': {'refine_epochs': 3},
        'inference': {'threads': 1, 'accelerator': 'cpu'},
    }
)


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    end_kept_worker()
    yield
    end_kept_worker()
    assert multiprocessing.active_children() == []


@contextmanager
def opened(config: Config | None = None, kind: JobKind = 'refine', folder: Path | None = None) -> Iterator[Job]:
    with open_job(kind, [make_scan()], config or Config(), output_folder=folder) as job:
        yield job


def call(entry: str = 'report_process', config: Config | None = None) -> tuple[int, list[str]]:
    """Run an entry in a worker that is kept; return its process and the other lines of its log."""
    with opened(config) as job:
        first, *texts = log_texts(list(run_job(job, entry=CALLS + entry, keeps_worker=True)))
    return int(first.removeprefix('pid=')), texts


def with_execution(**values: int) -> Config:
    return parse_config({'execution': values})


def test_the_next_call_uses_the_same_process_as_it_was() -> None:
    pid, clean = call()
    assert call('leave_marks') == (pid, [])
    assert call() == (pid, clean)
    assert clean == ['marks=[] handlers=1 level=20 filters=False sigterm=False']


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_worker_that_ended_or_hangs_between_calls_is_replaced(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    pid, clean = call()
    os.kill(pid, number)
    if number is signal.SIGTERM:
        assert wait_until_gone(pid, 5)
    with caplog.at_level(logging.DEBUG, logger='ptychopinn_torch_plugin'):
        other, texts = call()
    assert other != pid
    assert texts == clean
    assert not is_running(pid)
    records = [record for record in caplog.records if record.name == 'ptychopinn_torch_plugin.worker.parent']
    assert [(record.levelno, 'is replaced' in record.getMessage()) for record in records] == [(logging.DEBUG, True)]


def test_other_threads_device_or_environment_need_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = [call()[0]]
    for config in (parse_config({'inference': {'threads': 2}}), parse_config({'inference': {'accelerator': 'cpu'}})):
        pids.append(call(config=config)[0])
    monkeypatch.setenv('MARK_OF_THE_HOST', '1')
    pid, texts = call(config=config)
    assert texts[0].startswith("marks=['MARK_OF_THE_HOST']")
    assert len({*pids, pid}) == 4
    assert [is_running(each) for each in pids] == [False] * 3


@pytest.mark.parametrize('entry', ['hold_memory', 'leave_a_thread'])
def test_a_worker_that_leaks_is_not_kept(entry: str) -> None:
    pid, _ = call(entry, with_execution(idle_memory=200))
    assert not is_running(pid)
    assert call()[0] != pid


def test_no_worker_is_kept_where_none_shall_be() -> None:
    first, _ = call()
    second, _ = call(config=with_execution(idle_limit=0))
    assert not is_running(first), 'the one that waited is ended as well'
    assert not is_running(second)


def test_a_worker_ends_when_it_has_waited_too_long() -> None:
    pid, _ = call(config=with_execution(idle_limit=1))
    assert is_running(pid)
    for timer in (thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)):
        timer.join()
    assert not is_running(pid)


def test_a_worker_is_not_kept_after_a_failure_or_a_stop(tmp_path: Path) -> None:
    pid, _ = call()
    with pytest.raises(InputError), opened() as job:
        list(run_job(job, entry='tests.worker.entries:subclass_error', keeps_worker=True))
    assert not is_running(pid)
    pid, _ = call()
    with opened(folder=tmp_path) as job:
        list(run_job(job, entry='tests.worker.entries:be_terminated', keeps_worker=True))
    assert not is_running(pid)
    pid, _ = call()
    with opened(folder=tmp_path) as job:
        generator = run_job(job, entry='tests.worker.entries:finish_when_asked', keeps_worker=True)
        assert any(isinstance(message, LogRecord) for message in generator)
        generator.close()
    assert (tmp_path / 'kept').exists()
    assert not is_running(pid)


HOST = """
import os, signal, sys
from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.worker.job import open_job
from ptychopinn_torch_plugin.worker.messages import LogRecord
from ptychopinn_torch_plugin.worker.parent import run_job
from tests.worker.conftest import make_scan

with open_job('refine', [make_scan()], Config()) as job:
    for message in run_job(job, entry='tests.worker.kept_calls:report_process', keeps_worker=True):
        if isinstance(message, LogRecord) and message.text.startswith('pid='):
            print(message.text.removeprefix('pid='), flush=True)
if sys.argv[1] == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize('way', ['killed', 'exit'])
def test_a_waiting_worker_ends_with_its_host(way: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-c', HOST, way],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if way == 'killed' else 0), done.stderr
    assert wait_until_gone(int(done.stdout), 2)


# The real engine


def reconstruct(model_file: Path, *, keeps_worker: bool) -> Reconstruction:
    scan, _ = make_simulated_scan((32, 32), rows=4)
    with open_job('reconstruct', [scan], SMALL, model_file=model_file) as job:
        list(run_job(job, keeps_worker=keeps_worker))
        return read_result(job.folder)


def train(folder: Path, *, keeps_worker: bool) -> bytes:
    scan, _ = make_simulated_scan((32, 32), rows=4)
    with open_job('train', [scan], SMALL, output_folder=folder) as job:
        list(run_job(job, keeps_worker=keeps_worker))
    return (folder / 'model.safetensors').read_bytes()


def test_a_kept_worker_gives_the_results_of_a_new_one(tmp_path: Path) -> None:
    """Train, reconstruct, train and reconstruct again in one process."""
    model_file = tmp_path / 'model.safetensors'
    trained = train(tmp_path, keeps_worker=True)
    (worker,) = multiprocessing.active_children()
    first = reconstruct(model_file, keeps_worker=True)
    model_file.unlink()
    assert train(tmp_path, keeps_worker=True) == trained
    second = reconstruct(model_file, keeps_worker=True)
    assert multiprocessing.active_children() == [worker]
    new = reconstruct(model_file, keeps_worker=False)
    assert multiprocessing.active_children() == [worker], 'a call without keeps_worker leaves it alone'
    for found in (first, second):
        np.testing.assert_array_equal(found.object_array, new.object_array)
        np.testing.assert_array_equal(found.probe, new.probe)
        np.testing.assert_array_equal(found.positions, new.positions)
        assert found.losses == new.losses
    # The model is read in every call: a file that has changed is noticed.
    model_file.write_bytes(model_file.read_bytes()[:-4] + b'\xff\xff\xff\xff')
    with pytest.raises(ModelFileError, match='finite'):
        reconstruct(model_file, keeps_worker=True)
    assert multiprocessing.active_children() == []
