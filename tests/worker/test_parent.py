"""Real spawned workers: which messages arrive, how workers end, and that no process remains."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.errors import InputError, ModelFileError, PtychoPINNError, WorkerError
from ptychopinn_torch_plugin.worker import parent
from ptychopinn_torch_plugin.worker.channel import StopFlag
from ptychopinn_torch_plugin.worker.job import Job, open_job, read_preview, read_result
from ptychopinn_torch_plugin.worker.messages import (
    Failed,
    Finished,
    Heartbeat,
    LogRecord,
    Losses,
    Message,
    Preview,
    Progress,
)
from ptychopinn_torch_plugin.worker.parent import run_job

from .conftest import make_reconstruction

ROOT = Path(__file__).parents[2]
ENTRIES = 'tests.worker.entries:'

PARENT = """
import sys
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.worker.job import open_job
from ptychopinn_torch_plugin.worker.messages import LogRecord
from ptychopinn_torch_plugin.worker.parent import run_job
from tests.worker.conftest import make_scan

GUARD
    with open_job('train', [make_scan()], Config(), output_folder=Path.cwd()) as job:
        generator = run_job(job, entry='tests.worker.entries:' + sys.argv[1], stop_grace_s=float(sys.argv[2]))
        for message in generator:
            if isinstance(message, LogRecord) and message.text.startswith('pid='):
                print(message.text.removeprefix('pid='), job.folder, flush=True)
                EPILOGUE
"""


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def without_heartbeats(messages: list[Message]) -> list[Message]:
    return [message for message in messages if not isinstance(message, Heartbeat)]


def log_texts(messages: list[Message]) -> list[str]:
    return [message.text for message in messages if isinstance(message, LogRecord)]


def failure_of(job: Job, entry: str) -> PtychoPINNError:
    """Return the exception of a run of ``entry`` (``match`` of pytest also searches its notes)."""
    with pytest.raises(PtychoPINNError) as caught:
        list(run_job(job, entry=ENTRIES + entry))
    return caught.value


def is_running(pid: int) -> bool:
    """True unless the process is gone or waits, dead, for whoever adopted it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f'/proc/{pid}/stat')
    return not (status.exists() and status.read_text().rsplit(')', 1)[1].split()[0] == 'Z')


def wait_until_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def first_pid(generator: Iterator[Message]) -> int:
    return next(
        int(message.text.removeprefix('pid='))
        for message in generator
        if isinstance(message, LogRecord) and message.text.startswith('pid=')
    )


def test_a_whole_run(job: Job, scan: RawScan) -> None:
    messages = []
    for message in run_job(job, entry=ENTRIES + 'work'):
        messages.append(message)
        if isinstance(message, Preview):
            preview = read_preview(message.path)
            assert preview is not None
            np.testing.assert_array_equal(preview, np.full((3, 2), 1 + 1j))
    received = without_heartbeats(messages)
    assert received[:2] == [Progress(1, 2), Losses(1, 0.5, None)]
    assert received[-2:] == [Progress(2, 2), Finished()]
    records = [(record.level, record.logger) for record in received if isinstance(record, LogRecord)]
    assert records == [
        (logging.INFO, 'ptychopinn_torch_plugin.tests'),
        (logging.WARNING, 'somebody.else'),
        (logging.DEBUG, 'py.warnings'),
    ]
    assert log_texts(received)[0] == 'counts are a memmap'
    result = read_result(job.folder)
    assert result.object_array[0, 0] == np.complex64(scan.counts.sum())
    assert [record.validation for record in result.losses] == [None, 0.75]


def test_environment_is_set_before_torch_and_only_there(scan: RawScan, tmp_path: Path) -> None:
    before = dict(os.environ)
    config = parse_config({'training': {'threads': 3}})
    with open_job('train', [scan], config, output_folder=tmp_path) as job:
        texts = log_texts(list(run_job(job, entry=ENTRIES + 'report_environment')))
    assert texts == ['wait=PASSIVE threads=3', 'torch=False', 'sigint=True']
    assert dict(os.environ) == before


def test_heartbeats_fill_the_silence(job: Job) -> None:
    times = [time.monotonic()]
    messages = []
    for message in run_job(job, entry=ENTRIES + 'slow', heartbeat_s=0.1):
        messages.append(message)
        times.append(time.monotonic())
    assert messages.count(Heartbeat()) >= 5
    assert messages[-1] == Finished()
    assert np.diff(times[:-1]).max() < 0.5


def test_an_error_of_ours_comes_back_as_itself(job: Job) -> None:
    error = failure_of(job, 'own_error')
    assert type(error) is ModelFileError
    assert str(error) == 'The model file is of another format; retrain.'
    assert 'in own_error' in error.__notes__[0]


def test_a_subclass_of_ours_comes_back_as_its_base(job: Job) -> None:
    error = failure_of(job, 'subclass_error')
    assert type(error) is InputError
    assert str(error) == 'Too many bad pixels.'


def test_a_foreign_error_is_named(job: Job) -> None:
    error = failure_of(job, 'foreign_error')
    assert type(error) is WorkerError
    assert str(error) == 'The worker failed with tests.worker.entries.ForeignError: one and two'
    assert 'in foreign_error' in error.__notes__[0]


def test_want_of_memory_comes_with_a_hint(job: Job) -> None:
    sentence = str(failure_of(job, 'memory_error'))
    assert 'MemoryError: Unable to allocate 1 PiB. Most likely' in sentence
    assert 'smaller "Batch size (training)", "Group size (C_g)"' in sentence


def test_an_unknown_entry_is_an_error(job: Job) -> None:
    assert 'no_such_function' in str(failure_of(job, 'no_such_function'))


def test_a_killed_worker_hints_at_memory(job: Job) -> None:
    error = failure_of(job, 'be_killed')
    assert type(error) is WorkerError
    assert 'was ended by SIGKILL' in str(error)
    assert 'smaller "Batch size (training)", "Group size (C_g)"' in str(error)
    assert str(error).endswith('Last lines of its log: loading the patterns')


def test_a_crash_has_last_words(job: Job) -> None:
    error = failure_of(job, 'crash')
    assert 'was ended by SIGSEGV' in str(error)
    assert 'terminate called: illegal memory access' in str(error)
    assert 'in crash' in error.__notes__[0], 'the stack at the crash'


def test_a_worker_that_leaves_is_noticed(job: Job) -> None:
    assert str(failure_of(job, 'vanish')) == (
        'The worker process ended with exit code 3 and without a result. Its log is empty.'
    )


def test_stop_lets_the_worker_keep_what_it_has(job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generator = run_job(job, entry=ENTRIES + 'finish_when_asked')
    pid = first_pid(generator)
    with caplog.at_level(logging.INFO, logger='ptychopinn_torch_plugin'):
        start = time.monotonic()
        generator.close()
    assert (tmp_path / 'kept').read_text() == 'best model'
    assert 'model written' in caplog.messages
    assert time.monotonic() - start < 5
    assert not is_running(pid)


def test_an_exception_of_the_caller_stops_the_worker(job: Job, tmp_path: Path) -> None:
    generator = run_job(job, entry=ENTRIES + 'finish_when_asked')
    first_pid(generator)
    with pytest.raises(KeyboardInterrupt):
        generator.throw(KeyboardInterrupt())
    assert (tmp_path / 'kept').exists()


def test_a_worker_that_ignores_the_stop_is_killed(job: Job) -> None:
    generator = run_job(job, entry=ENTRIES + 'never_stop', stop_grace_s=0.5)
    pid = first_pid(generator)
    start = time.monotonic()
    generator.close()
    assert 0.4 < time.monotonic() - start < 3
    assert not is_running(pid)


def test_a_failure_during_the_stop_is_logged(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    generator = run_job(job, entry=ENTRIES + 'fail_when_asked')
    assert any(isinstance(message, Progress) for message in generator)
    generator.close()
    assert 'No epoch was finished.' in caplog.text


def test_work_does_not_begin_after_a_stop_during_start_up(job: Job, tmp_path: Path) -> None:
    generator = run_job(job, entry=ENTRIES + 'finish_when_asked', heartbeat_s=0.01)
    assert next(generator) == Heartbeat()
    generator.close()
    assert not (tmp_path / 'kept').exists()


def test_the_schedulers_warning_ends_the_work_in_order(job: Job) -> None:
    messages = list(run_job(job, entry=ENTRIES + 'be_terminated'))
    assert log_texts(messages) == ['stopped in order']
    assert messages[-1] == Finished()


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='needs /proc to count open files')
def test_no_file_descriptor_leaks(job: Job) -> None:
    list(run_job(job, entry=ENTRIES + 'be_terminated'))
    before = set(os.listdir('/proc/self/fd'))  # noqa: PTH208 - names only, the entries vanish while listed
    with pytest.raises(WorkerError):
        list(run_job(job, entry=ENTRIES + 'vanish'))
    assert set(os.listdir('/proc/self/fd')) == before  # noqa: PTH208


def start_parent(folder: Path, entry: str, grace_s: float, *, epilogue: str, is_script: bool) -> subprocess.Popen[str]:
    """Start another interpreter that runs a worker, from a guarded script or from ``python -c``."""
    guard = "if __name__ == '__main__':" if is_script else 'if True:'
    source = PARENT.replace('GUARD', guard).replace('EPILOGUE', epilogue)
    script = folder / 'console-script'
    script.write_text(source, encoding='utf-8')
    command = [sys.executable, *([str(script)] if is_script else ['-c', source]), entry, str(grace_s)]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(('entry', 'is_script'), [('never_stop', True), ('finish_when_asked', False)])
def test_the_worker_dies_with_its_parent(tmp_path: Path, entry: str, is_script: bool) -> None:
    with start_parent(tmp_path, entry, 1.0, epilogue='pass', is_script=is_script) as parent:
        assert parent.stdout is not None
        pid, job_folder = parent.stdout.readline().split(maxsplit=1)
        assert is_running(int(pid))
        parent.send_signal(signal.SIGKILL)
        parent.wait(5)
        assert wait_until_gone(int(pid), 6)
    assert (tmp_path / 'kept').exists() == (entry == 'finish_when_asked')
    assert not Path(job_folder.strip()).exists(), 'the orphaned job folder is removed'


def test_an_unclosed_generator_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    epilogue = 'sys.modules["keep"] = generator; sys.exit(0)'
    with start_parent(tmp_path, 'never_stop', 0.5, epilogue=epilogue, is_script=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        assert parent.wait(6) == 0
        assert wait_until_gone(pid, 3)


def test_a_script_without_guard_is_told_so(tmp_path: Path) -> None:
    source = PARENT.replace('GUARD', 'if True:').replace('EPILOGUE', 'pass')
    script = tmp_path / 'script.py'
    script.write_text(source, encoding='utf-8')
    done = subprocess.run(
        [sys.executable, str(script), 'never_stop', '1'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "needs the guard if __name__ == '__main__'" in done.stderr


# Signals


def test_signals_of_a_cluster_stop_the_work_in_order_or_do_nothing(job: Job) -> None:
    messages = list(run_job(job, entry=ENTRIES + 'be_signalled'))
    assert log_texts(messages) == ['stop requested by SIGHUP SIGXCPU SIGTERM']
    assert messages[-1] == Finished()


@pytest.mark.skipif(not hasattr(signal, 'pthread_sigmask'), reason='no signals to block')
def test_a_signal_during_the_start_ends_nothing(job: Job) -> None:
    """Importing Python, numpy and this package takes a second: Ctrl-C, or a cluster's signal, often comes then."""
    generator = run_job(job, entry=ENTRIES + 'work', heartbeat_s=0.01)
    assert next(generator) == Heartbeat()
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(worker.pid, number)
    assert list(generator)[-1] == Finished()


@pytest.mark.skipif(not hasattr(signal, 'pthread_sigmask'), reason='no signals to block')
def test_a_stop_signal_during_the_start_is_not_lost(job: Job) -> None:
    generator = run_job(job, entry=ENTRIES + 'never_stop', heartbeat_s=0.01)
    next(generator)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    with pytest.raises(WorkerError, match='stopped before its work began'):
        list(generator)


def test_the_caller_can_request_a_stop_and_use_the_result(job: Job, tmp_path: Path) -> None:
    stop = StopFlag()
    messages = []
    for message in run_job(job, should_stop=stop.is_set, entry=ENTRIES + 'finish_when_asked', heartbeat_s=0.05):
        messages.append(message)
        if isinstance(message, Progress):
            stop.set()
    assert messages[-1] == Finished()
    assert 'model written' in log_texts(messages)
    assert (tmp_path / 'kept').exists()


# A result that is complete is never lost


@pytest.mark.parametrize(
    ('entry', 'reason'),
    [('be_killed_after_the_result', 'SIGKILL'), ('fail_after_the_result', 'No space left on device')],
)
def test_a_failure_after_the_result_is_a_warning(
    entry: str, reason: str, job: Job, scan: RawScan, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(run_job(job, entry=ENTRIES + entry))[-1] == Finished()
    np.testing.assert_array_equal(read_result(job.folder).object_array, make_reconstruction(scan).object_array)
    (warning,) = [record.getMessage() for record in caplog.records if 'result is complete' in record.getMessage()]
    assert reason in warning


def test_half_a_result_is_none(job: Job) -> None:
    assert 'SIGKILL' in str(failure_of(job, 'be_killed_in_the_result'))


@pytest.mark.skipif(os.name != 'posix', reason='limits of POSIX')
def test_a_preview_without_room_is_skipped(job: Job) -> None:
    previews, warnings = [], []
    for message in run_job(job, entry=ENTRIES + 'fill_the_disk'):
        if isinstance(message, Preview):
            previews.append(read_preview(message.path))
        elif isinstance(message, LogRecord) and message.level == logging.WARNING:
            warnings.append(message.text)
    (preview,) = previews
    assert preview is not None
    np.testing.assert_array_equal(preview, np.ones((200, 200)))
    (warning,) = warnings
    assert 'Previews are skipped' in warning
    assert list(job.folder.glob('*.tmp')) == []
    assert read_result(job.folder).coverage.any()


# Parts of the message about a worker that died


def test_the_end_of_the_error_output_is_read(tmp_path: Path) -> None:
    file = tmp_path / 'stderr.txt'
    assert parent._tail(file) == ''
    file.write_text('x' * 3000)
    assert parent._tail(file) == 'x' * 3000
    file.write_bytes(b'a' * 100 + b' \xffend\n' + b'b' * 3994)
    assert parent._tail(file) == '\ufffdend\n' + 'b' * 3994
    file.write_text('first\n' + 'b' * 4000)
    assert parent._tail(file) == 'b' * 4000
    file.write_text('first' + 'b' * 3999)
    assert parent._tail(file) == 't' + 'b' * 3999


def test_lines_that_tell_something_are_kept() -> None:
    output = (
        'one\ntwo\n\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n'
        '  File "x.py", line 1 in f\nThread 0x2:\n  File "y.py"\nExtension modules: numpy, torch\nthree\n'
    )
    assert parent._informative_lines(output) == ['two', 'Fatal Python error: Segmentation fault', 'three']
    assert parent._informative_lines('') == []


def test_the_name_of_a_signal() -> None:
    assert parent._signal_name(9) == 'SIGKILL'
    assert parent._signal_name(250) == 'signal 250'


def test_an_error_keeps_its_class_and_a_foreign_one_is_named() -> None:
    ours = parent._as_exception(Failed('InputError', 'sentence.', 'trace'), 'Hint.')
    assert (type(ours), str(ours), ours.__notes__) == (InputError, 'sentence.', ['In the worker:\ntrace'])
    foreign = parent._as_exception(Failed('ValueError', 'x', 'trace'), 'Hint.')
    assert (type(foreign), str(foreign)) == (WorkerError, 'The worker failed with ValueError: x')
    memory = parent._as_exception(Failed('RuntimeError', 'out of memory.', 'trace'), 'Hint.')
    assert str(memory) == 'The worker failed with RuntimeError: out of memory. Hint.'
    # Names in the module of errors that are no errors of this package.
    assert type(parent._as_exception(Failed('annotations', 'x', ''), '')) is WorkerError
