"""The worker process: runs one job, or several one after the other, and sends messages to the parent.

:func:`main` is the first function of the spawned process. It prepares the process (environment, error output, signals,
log, end with the parent), then calls the entry, by default :func:`run`. An entry takes the job, a
:class:`~.channel.Channel` and a :class:`~.channel.StopFlag`; it returns when the work is done, or raises. The last
message of a call says which. After a call that succeeded, the process may wait for the next one.

torch is imported by the entry only, after the environment variables that it reads are set.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from .. import errors
from ..data.scan import RawScan
from ..dependencies import missing
from ..errors import WorkerError
from ..observer import WRITING, Observer
from ..types import Reconstruction
from .channel import Channel, StopFlag
from .job import Call, Job, read_scans, remove_orphan, write_result
from .messages import Accepted, Failed, Finished, Idle, LogRecord
from .observer import ChannelObserver
from .signals import set_handlers

logger = logging.getLogger(__name__)

STDERR_NAME = 'stderr.txt'
"""File in the job's folder that the error output of the worker goes to, that of native code included."""

_PACKAGE = __name__.split('.', maxsplit=1)[0]
_LOG_CHARS = 3000
_TRACEBACK_CHARS = 16_000
_PARENT_POLL_S = 1.0
_IDLE_POLL_S = 0.5
"""A waiting worker notices a signal after so many seconds at most, and the end of its parent at once."""

Entry = Callable[[Job, Channel, StopFlag], None]


def main(
    call: Call,
    calls: Connection[Any, Any],
    connection: Connection[Any, Any],
    stop_reader: Connection[Any, Any],
    stop_grace_s: float,
) -> None:
    """Run ``call`` and, where it is kept, the calls that follow; the first function of the spawned process.

    Only a call that has succeeded, without a request to stop, is followed by another one in the same process.

    Args:
        call: the first call.
        calls: where the calls that follow come from; closed when none will come.
        connection: where messages go.
        stop_reader: becomes readable when the work shall stop.
        stop_grace_s: seconds in which a worker whose parent has died must end by itself.
    """
    _lead_group()
    _set_environment(call.job)
    _redirect_stderr(call.job.folder / STDERR_NAME)
    stop = StopFlag()
    set_handlers(stop)
    watch = _ParentWatch(stop_reader, stop, call.job.folder, stop_grace_s)
    watch.start()
    channel = Channel(connection, stop)
    _capture_log(channel)
    if stop_reader.poll(0):  # the watching thread may not have read the request yet
        stop.set()
    following: Call | None = call
    while following is not None:
        call = following
        watch.folder = call.job.folder
        with _restored_process():
            has_succeeded = _serve(call, channel, stop)
        set_handlers(stop)
        following = _next_call(calls, channel, stop) if has_succeeded and _can_wait(call, stop) else None
    channel.close()
    if _parent_is_gone():
        remove_orphan(call.job.folder)


def _serve(call: Call, channel: Channel, stop: StopFlag) -> bool:
    """Run one call, report how it ended, and return whether it has succeeded."""
    try:
        if stop.is_set():
            raise WorkerError('The run was stopped before its work began.')
        _resolve(call.entry)(call.job, channel, stop)
    except ImportError as error:
        is_ours = (error.name or _PACKAGE).split('.', maxsplit=1)[0] == _PACKAGE
        channel.send(_describe(error if is_ours else missing(error)))
    except Exception as error:  # every failure is reported to the parent
        channel.send(_describe(error))
    else:
        channel.send(Finished())
        return True
    return False


def _can_wait(call: Call, stop: StopFlag) -> bool:
    """Return whether this process may serve another call: it is as it was before this one, and small enough."""
    if not call.is_kept or stop.is_set():
        return False
    import psutil

    process = psutil.Process()
    threads = [thread for thread in threading.enumerate() if not thread.daemon]
    memory_mb = process.memory_info().rss / 2**20
    return len(threads) == 1 and not process.children() and memory_mb <= call.job.config.execution.idle_memory


def _next_call(calls: Connection[Any, Any], channel: Channel, stop: StopFlag) -> Call | None:
    """Wait for the next call; None if there will be none, or a signal has requested the end."""
    # The job's folder, which held the error output, is removed now.
    _redirect_stderr(Path(os.devnull))
    channel.send(Idle())
    while not stop.is_set():
        if not calls.poll(_IDLE_POLL_S):
            continue
        try:
            call: Call = calls.recv()
        except (EOFError, OSError):
            return None
        _redirect_stderr(call.job.folder / STDERR_NAME)
        channel.send(Accepted())
        return call
    return None


@contextmanager
def _restored_process() -> Iterator[None]:
    """Restore what a call may change in this process: environment, warnings and log."""
    environment, root = dict(os.environ), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        root.handlers[:] = handlers
        root.setLevel(level)


def run(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Train, reconstruct or refine, as ``job.kind`` says.

    Raises:
        WorkerError: the job lacks the path that its kind needs.
        PtychoPINNError: any error of the engine.
    """
    from ..engines.call_state import as_in_new_process

    with as_in_new_process():
        _run(job, ChannelObserver(job.folder, channel, stop, keeps_previews=job.keeps_previews))


def _run(job: Job, channel_observer: ChannelObserver) -> None:
    from ..report import STATUS_FILE, StatusFile

    status_file = None if job.output_folder is None else job.output_folder / STATUS_FILE
    with StatusFile(status_file, job.kind) as status:
        status.plan(job.kind, job.config)
        observer = status.observer(channel_observer)
        files = _train(job, observer) if job.kind == 'train' else _reconstruct(job, observer)
        status.finish(files, is_stopped=observer.should_stop())


def _train(job: Job, observer: Observer) -> list[Path]:
    """Train, and return the files that were written: the model, and its report beside it."""
    from ..report import TRAINING_REPORT_FILE, TrainingRun, collected_warnings, write_training_report
    from ..training.run import train

    started, begun = datetime.now(UTC).astimezone(), time.monotonic()
    scans, folder = read_scans(job.folder), _required(job.output_folder, 'output folder')
    with collected_warnings() as lines:
        model = train(scans, job.config, folder, observer)
    observer.on_stage(WRITING)
    report = folder / TRAINING_REPORT_FILE
    run = TrainingRun(
        scans, job.config, started, time.monotonic() - begun, model, tuple(lines), is_stopped=observer.should_stop()
    )
    has_report = job.config.execution.report and write_training_report(report, run)
    return [model, report] if has_report else [model]


def _reconstruct(job: Job, observer: Observer) -> list[Path]:
    """Reconstruct the scan, hand the result over, and return the files that were written beside the product."""
    from ..report import collected_warnings

    started, begun = datetime.now(UTC).astimezone(), time.monotonic()
    (scan,) = read_scans(job.folder)
    with collected_warnings() as lines:
        if job.kind == 'refine':
            from ..engines.pipeline import refine

            result = refine(scan, job.config, observer)
        else:
            from ..engines.pipeline import reconstruct
            from ..storage.model_file import load_model

            result = reconstruct(scan, load_model(_required(job.model_file, 'model file')), job.config, observer)
    observer.on_stage(WRITING)
    write_result(job.folder, result)
    is_stopped = observer.should_stop()
    if is_stopped and job.output_folder is None:
        return []  # after Stop in the window, the host drops the result and waits for this process to end
    return _describe_result(job, scan, result, (started, time.monotonic() - begun), tuple(lines), is_stopped)


def _describe_result(
    job: Job,
    scan: RawScan,
    result: Reconstruction,
    time_and_duration: tuple[datetime, float],
    lines: tuple[str, ...],
    is_stopped: bool,
) -> list[Path]:
    """Write metrics and report beside the product, or into the report folder; return the files that are written."""
    from ..metrics.output import metrics_files, write_metrics
    from ..report import REPORT_FILE, Run, metrics_folder, report_path, write_report

    started, seconds = time_and_duration
    kind: Literal['reconstruct', 'refine'] = 'refine' if job.kind == 'refine' else 'reconstruct'
    run = Run(
        kind, scan, job.config, started, seconds, job.pixel_m, lines, job.model_file, job.output_folder,
        is_stopped=is_stopped,
    )  # fmt: skip
    report: Path | None = None
    if job.config.execution.report:
        report = (
            report_path(job.config.execution.report_folder, scan.name, started)
            if job.output_folder is None
            else job.output_folder / REPORT_FILE
        )
    files: list[Path] = []
    folder = metrics_folder(report) if job.output_folder is None and report is not None else job.output_folder
    if folder is not None and write_metrics(folder, result, job.pixel_m, run):
        files += metrics_files(folder)
        if job.output_folder is None:
            logger.info('The numbers, maps and the plot of the metrics are in %s.', files[0].parent)
    if report is not None and write_report(report, result, run):
        files.append(report)
    return files


def _required(path: Path | None, what: str) -> Path:
    if path is None:
        raise WorkerError(f'The job has no {what}; open it with one.')
    return path


def _lead_group() -> None:
    """Make this process the leader of a new group, so that the parent can end all processes that the work starts."""
    if hasattr(os, 'setpgid'):
        os.setpgid(0, 0)


def _set_environment(job: Job) -> None:
    """Set the variables that OpenMP reads once, when torch is loaded."""
    # Threads that spin while they wait slow each other down when other processes share the cores.
    os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'
    if job.section.threads > 0:
        os.environ['OMP_NUM_THREADS'] = str(job.section.threads)
    # Read by cuBLAS when it starts; a training needs it, and the calls after it shall find the same.
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


def _redirect_stderr(file: Path) -> None:
    """Send the error output, that of native code included, to a file that the parent reads after a crash."""
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable(file=2)


class _ParentWatch(threading.Thread):
    """Sets ``stop`` when the parent requests it; when the parent dies, ends this process ``grace_s`` seconds later."""

    def __init__(self, stop_reader: Connection[Any, Any], stop: StopFlag, folder: Path, grace_s: float) -> None:
        super().__init__(name='parent-watch', daemon=True)
        self._stop_reader = stop_reader
        self._stop = stop
        self._grace_s = grace_s
        self.folder = folder
        """Folder of the present job."""

    def run(self) -> None:
        parent = multiprocessing.parent_process()
        sentinels: list[Any] = [self._stop_reader] if parent is None else [self._stop_reader, parent.sentinel]
        while not _parent_is_gone():
            ready = multiprocessing.connection.wait(sentinels, timeout=_PARENT_POLL_S)
            if self._stop_reader in ready:
                self._stop.set()
                sentinels.remove(self._stop_reader)
            elif ready:
                break
        self._stop.set()
        time.sleep(self._grace_s)
        remove_orphan(self.folder)
        os._exit(1)


def _parent_is_gone() -> bool:
    """Return whether the parent has died: another process has adopted this one, or the parent's pipe is closed."""
    parent = multiprocessing.parent_process()
    return parent is not None and (os.getppid() != parent.pid or not parent.is_alive())


def _capture_log(channel: Channel) -> None:
    """Send the records of the root logger to the parent; warnings of Python become records of level DEBUG."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(_ChannelHandler(channel))
    logging.captureWarnings(True)


class _ChannelHandler(logging.Handler):
    """Sends INFO and above of this package, WARNING and above of all others."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.INFO)
        self._channel = channel
        self.addFilter(_is_sent)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # a wrong format string must not end the run; logging prints it
            self.handleError(record)
            return
        level = logging.DEBUG if record.name == 'py.warnings' else record.levelno
        self._channel.send(LogRecord(level, record.name, _shorten(text, _LOG_CHARS)))


def _is_sent(record: logging.LogRecord) -> bool:
    is_ours = record.name == _PACKAGE or record.name.startswith(_PACKAGE + '.')
    return record.levelno >= (logging.INFO if is_ours else logging.WARNING)


def _resolve(entry: str) -> Entry:
    module, _, name = entry.partition(':')
    function: Entry = getattr(importlib.import_module(module), name)
    return function


def _describe(error: Exception) -> Failed:
    """Return ``error`` as strings, named by its nearest class in ``errors.py``, so that the parent can raise it."""
    names = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__]
    foreign = f'{type(error).__module__}.{type(error).__qualname__}'.removeprefix('builtins.')
    text = ''.join(traceback.format_exception(error))
    return Failed(names[0] if names else foreign, _shorten(str(error), _LOG_CHARS), text[-_TRACEBACK_CHARS:])


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + ' ...'
