"""The parent's side of a worker: starts the process, receives its messages, and makes sure that it ends.

A worker that has finished a call may be kept for the next one (:class:`_KeptWorker`); whatever else happens ends it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import PtychoPINNError, WorkerError
from ..limits import says_out_of_memory
from .child import STDERR_NAME, main
from .job import Call, Job, JobKind, has_result
from .messages import Accepted, Failed, Finished, Heartbeat, Idle, LogRecord, Message, Preview
from .signals import STACK_SIGNALS, blocked_signals

logger = logging.getLogger(__name__)

_LAST_LINES = 5
_STDERR_BYTES = 4000
_END_WAIT_S = 2.0
"""Seconds in which a worker that has sent its last message must end."""
_START_LIMIT_S = 60.0
"""Shortest silence limit, in seconds, while a worker starts."""
_STACK_WAIT_S = 0.5
_ACCEPT_WAIT_S = 1.0
"""Seconds in which a kept worker must accept the next call; then it is replaced."""
_MEMORY_HINTS: dict[JobKind, str] = {
    'train': 'choose a smaller "Batch size (training)", "Group size (C_g)" or "Network width"',
    'reconstruct': 'choose a smaller "Batch size (reconstruction)" or "Window size"',
    'refine': 'choose a smaller "Batch size (reconstruction)"',
}
_SIGNAL_HINTS = {
    'SIGBUS': 'Most likely the disk of the temporary folder or the shared memory is full: free some space.',
    'SIGSEGV': 'A library crashed: try another "Accelerator ({stage})", and run "ptychopinn-torch doctor".',
}
_START_HINT = (
    'It ended before this package was loaded; the terminal shows why. A script that starts a run needs the guard '
    "if __name__ == '__main__'."
)


def never() -> bool:
    """Return False: the default of ``should_stop``."""
    return False


def run_job(
    job: Job,
    *,
    should_stop: Callable[[], bool] = never,
    entry: str = 'ptychopinn_torch_plugin.worker.child:run',
    keeps_worker: bool = False,
    heartbeat_s: float = 0.5,
    stop_grace_s: float = 8.0,
) -> Generator[Message, None, None]:
    """Run ``job`` in a spawned process and yield its messages, the last of them ``Finished``.

    With ``keeps_worker``, the process of an earlier call is used if one waits and has the same device, threads and
    environment; and after a success the process waits for the next call, ``execution.idle_limit`` seconds at most. A
    waiting process that is found dead or silent is replaced. There is never more than one that waits.

    There are two ways to stop. Once ``should_stop`` returns True, the worker ends its work early, and its messages,
    ``Finished`` included, are yielded as ever: the result so far can be used. Closing the generator (or an exception in
    it) requests the same, waits up to ``stop_grace_s`` seconds and then kills the worker; when ``close`` returns, the
    process is gone. A caller that loops over the generator itself holds it in :func:`contextlib.closing`, inside of
    ``open_job``, so that the worker ends before its folder is removed; ``yield from`` does the same.

    A result that is complete is never lost: if the worker fails or dies after it has written the result, that is a
    warning in the log, and ``Finished`` is yielded.

    Args:
        job: what to do, from :func:`~.job.open_job`.
        should_stop: called at least every ``heartbeat_s`` seconds until it returns True.
        entry: ``'module:function'`` to call in the worker with ``(job, channel, stop_flag)``.
        keeps_worker: whether the process may serve several calls.
        heartbeat_s: a ``Heartbeat`` is yielded whenever no message came for so many seconds.
        stop_grace_s: seconds from the close of the generator until the worker is killed.

    Raises:
        PtychoPINNError: the worker raised an error of this package: the same class with the same sentence.
        WorkerError: the worker raised another exception, died, or sent no message for ``execution.silence_limit``
            seconds; the message holds the last lines of its log. A worker that is alive but makes no progress sends no
            message, so the limit ends it, too.
    """
    # Processes that reconstruct together are connected; they begin anew.
    is_kept = keeps_worker and job.config.execution.idle_limit > 0 and job.section.devices == 1
    call = Call(entry, job, is_kept)
    worker = (_kept.take(call) if keeps_worker else None) or _Worker(call, stop_grace_s)
    try:
        yield from worker.receive(heartbeat_s, should_stop)
    except PtychoPINNError as error:
        if not has_result(job.folder):
            raise
        logger.warning('The result is complete; what came after it failed: %s', error)
        yield Finished()
    finally:
        if worker.is_waiting():
            _kept.keep(worker, job.config.execution.idle_limit)
        else:
            worker.end()


def end_kept_worker() -> None:
    """End the process that waits for the next call, if there is one."""
    _kept.end()


class _Worker:
    """A running worker process and the pipes to it.

    The request to stop has a pipe of its own instead of a shared event: an event is guarded by a lock, and a worker
    killed while it holds the lock would block the parent for ever.
    """

    def __init__(self, call: Call, stop_grace_s: float) -> None:
        """Start the process with its first call.

        Raises:
            WorkerError: the system refuses another process.
        """
        self._begin(call)
        self._surroundings = _surroundings(call.job)
        self._stop_grace_s = stop_grace_s
        context = multiprocessing.get_context('spawn')
        self._reader, writer = context.Pipe(duplex=False)
        stop_reader, self._stop_writer = context.Pipe(duplex=False)
        calls_reader, self._calls_writer = context.Pipe(duplex=False)
        self._process = context.Process(
            target=main, args=(call, calls_reader, writer, stop_reader, stop_grace_s), name='ptychopinn-worker'
        )
        try:
            with blocked_signals():
                self._process.start()
        except OSError as error:
            self._close_pipes()
            raise WorkerError(f'The worker process could not be started: {error}.') from error
        finally:
            writer.close()
            stop_reader.close()
            calls_reader.close()
        atexit.register(self._end_at_exit)

    def _begin(self, call: Call) -> None:
        """Set what belongs to one call."""
        self._call = call
        self._folder = call.job.folder
        self._stage = 'training' if call.job.kind == 'train' else 'reconstruction'
        self._memory_hint = f'Most likely the memory ran out: {_MEMORY_HINTS[call.job.kind]}.'
        self._silence_limit_s = float(call.job.config.execution.silence_limit)
        self._has_reported = False
        self._has_finished = False
        self._is_stopping = False
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    def is_waiting(self) -> bool:
        """Return whether the call has succeeded and the process waits for the next one."""
        return self._has_finished and self._call.is_kept and not self._is_stopping and self._wait_for(Idle, _END_WAIT_S)

    def accepts(self, call: Call) -> bool:
        """Pass the next call to a process that waits, and return whether it begins it."""
        if not call.is_kept or _surroundings(call.job) != self._surroundings:
            return False
        self._begin(call)
        try:
            self._calls_writer.send(call)
        except OSError:
            return False
        return self._wait_for(Accepted, _ACCEPT_WAIT_S)

    def _wait_for(self, kind: type[Idle] | type[Accepted], seconds: float) -> bool:
        """Wait for a message of one kind, and return whether it came."""
        deadline = time.monotonic() + seconds
        while wait([self._reader], max(0.0, deadline - time.monotonic())):
            message = _receive(self._reader)
            if message is None or isinstance(message, kind):
                return message is not None
            _log_late(message)
        return False

    def receive(self, heartbeat_s: float, should_stop: Callable[[], bool]) -> Generator[Message, None, None]:
        """Yield messages until ``Finished``; request a stop once ``should_stop`` returns True.

        Raises:
            PtychoPINNError: the worker failed or died.
        """
        silent_s, has_begun = 0.0, False
        while True:
            if not self._is_stopping and should_stop():
                self._is_stopping = True
                self._request_stop()
            ready, waited_s = self._wait(heartbeat_s)
            if not ready and self._process.is_alive():
                silent_s += waited_s
                if not has_begun and self._has_begun:
                    has_begun, silent_s = True, 0.0
                limit_s = self._silence_limit_s if has_begun else max(self._silence_limit_s, _START_LIMIT_S)
                if self._silence_limit_s > 0 and silent_s >= limit_s:
                    raise self._kill_silent()
                yield Heartbeat()
                continue
            silent_s = 0.0
            # Messages that a worker sent before it died are still in the pipe and come first.
            message = _receive(self._reader) if self._reader in ready or self._reader.poll(0) else None
            match message:
                case None:
                    raise self._death()
                case Failed():
                    self._has_reported = True
                    raise _as_exception(message, self._memory_hint)
                case Preview(path=path) if not path.exists():
                    continue
                case LogRecord(level=level, text=text) if level >= logging.INFO:
                    self._last_lines.append(text)
            self._has_reported = self._has_finished = isinstance(message, Finished)
            yield message
            if self._has_reported:
                return

    @property
    def _has_begun(self) -> bool:
        """Whether the process has reached its first function."""
        return (self._folder / STDERR_NAME).exists()

    def _wait(self, seconds: float) -> tuple[list[Any], float]:
        """Wait for a message or the end of the worker; return what is ready and the seconds waited.

        Time in which this process did not run either (a suspended computer) is not counted.
        """
        begun = time.monotonic()
        ready = wait([self._reader, self._process.sentinel], seconds)
        return ready, min(time.monotonic() - begun, 2 * seconds)

    def end(self) -> None:
        """Let the worker end by itself within the grace time, then kill it; close the pipes."""
        try:
            self._request_stop()
            self._drain(_END_WAIT_S if self._has_reported else self._stop_grace_s)
        finally:
            if self._process.is_alive() and not self._has_reported:
                logger.warning('The worker did not stop within %g s and is killed.', self._stop_grace_s)
            self.kill()

    def kill(self) -> None:
        """Kill the process, if it has not ended, and all that it started; close the pipes."""
        atexit.unregister(self._end_at_exit)
        self._process.kill()
        self._process.join(_END_WAIT_S)
        self._kill_group()
        self._close_pipes()
        if not self._process.is_alive():
            self._process.close()

    def _kill_group(self) -> None:
        """Kill the processes that the worker, leader of a group of its own, started and left running."""
        if hasattr(os, 'killpg') and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # there are none, as after every orderly run
                os.killpg(self._process.pid, signal.SIGKILL)

    def _request_stop(self) -> None:
        try:
            self._stop_writer.send_bytes(b'stop')
        except OSError:
            logger.debug('The worker had ended before a stop was requested.')

    def _drain(self, seconds: float) -> None:
        """Wait up to ``seconds`` for the end of the worker and read its messages: a full pipe would block it."""
        deadline = time.monotonic() + seconds
        sources: list[Any] = [self._reader, self._process.sentinel]
        while self._process.is_alive() and (left := deadline - time.monotonic()) > 0:
            if self._reader in wait(sources, min(left, 0.2)):
                message = _receive(self._reader)
                if message is None:
                    sources.remove(self._reader)
                else:
                    _log_late(message)
            elif self._reader not in sources:
                self._process.join(min(left, 0.2))

    def _end_at_exit(self) -> None:
        """End the worker of a generator that is still open when the interpreter exits.

        Messages are not read here: the thread that receives them may still be running. A kept worker ends at once.
        """
        self._calls_writer.close()
        self._request_stop()
        self._process.join(self._stop_grace_s)
        self._process.kill()

    def _close_pipes(self) -> None:
        for pipe in (self._reader, self._stop_writer, self._calls_writer):
            pipe.close()

    def _kill_silent(self) -> WorkerError:
        """Let the worker write the stacks of its threads, kill it, and return the error."""
        if self._process.pid is not None:
            for number in STACK_SIGNALS:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, number)
            self._process.join(_STACK_WAIT_S)
        self._process.kill()
        return self._error(
            f'reported no progress for {self._silence_limit_s:g} s and was ended',
            'It hangs, or one step takes longer than that: choose a smaller '
            f'"Batch size ({self._stage})", or a larger "silence_limit" in the section "execution" of the settings.',
        )

    def _death(self) -> WorkerError:
        """Return the error for a worker that ended without a last message: how it ended, and what to do."""
        self._process.join(_END_WAIT_S)
        code = self._process.exitcode
        hint = self._memory_hint if says_out_of_memory(_tail(self._folder / STDERR_NAME)) else ''
        if code is None:
            how = 'closed its connection without a result'
        elif code < 0:
            name = _signal_name(-code)
            how = f'was ended by {name}'
            hint = hint or (
                self._memory_hint if name == 'SIGKILL' else _SIGNAL_HINTS.get(name, '').format(stage=self._stage)
            )
        else:
            how = f'ended with exit code {code} and without a result'
            hint = hint or ('' if self._has_begun else _START_HINT)
        return self._error(how, hint)

    def _error(self, how: str, hint: str) -> WorkerError:
        """Return the error for a worker that ended as ``how`` says, with the last lines of its log."""
        output = _tail(self._folder / STDERR_NAME)
        lines = [*self._last_lines, *_informative_lines(output)]
        last = 'Last lines of its log: ' + ' | '.join(lines) if lines else 'Its log is empty.'
        error = WorkerError(' '.join(part for part in (f'The worker process {how}.', hint, last) if part))
        if output:
            error.add_note(f'Error output of the worker:\n{output}')
        return error


class _KeptWorker:
    """The one worker that waits for the next call; calls may come from several threads.

    It holds nothing that is needed, so it is killed without warning when it has waited too long, does not accept a
    call, or does not fit one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._timer: threading.Timer | None = None

    def take(self, call: Call) -> _Worker | None:
        """Return the waiting worker after it has accepted ``call``; None, and no worker waits, if it does not."""
        worker = self._remove()
        if worker is None or worker.accepts(call):
            return worker
        logger.debug('The waiting worker does not fit the next call, has ended or does not answer: it is replaced.')
        worker.kill()
        return None

    def keep(self, worker: _Worker, seconds: float) -> None:
        """Keep ``worker`` for at most ``seconds``; one that waits already ends."""
        self.end()
        timer = threading.Timer(seconds, self.end, [worker])
        timer.daemon = True
        with self._lock:
            self._worker, self._timer = worker, timer
        timer.start()

    def end(self, only: _Worker | None = None) -> None:
        """End the waiting worker; with ``only``, if it is that one."""
        worker = self._remove(only)
        if worker is not None:
            worker.kill()

    def _remove(self, only: _Worker | None = None) -> _Worker | None:
        with self._lock:
            worker = self._worker
            if worker is None or only not in (None, worker):
                return None
            if self._timer is not None:
                self._timer.cancel()
            self._worker = self._timer = None
            return worker


_kept = _KeptWorker()


def _surroundings(job: Job) -> tuple[object, ...]:
    """Return what a process takes over when it starts, and cannot change afterwards."""
    return job.section.accelerator, job.section.threads, dict(os.environ)


def _receive(reader: Connection[Any, Any]) -> Message | None:
    """Return the next message; None when the worker has closed its end or died while sending."""
    try:
        message: Message = reader.recv()
    except (EOFError, OSError):
        return None
    return message


def _as_exception(failed: Failed, memory_hint: str) -> PtychoPINNError:
    """Return the exception of the worker: of its own class if that is in ``errors.py``, else a ``WorkerError``."""
    cls = getattr(errors, failed.error, None)
    error: PtychoPINNError
    if isinstance(cls, type) and issubclass(cls, PtychoPINNError):
        error = cls(failed.message)
    else:
        text = f'The worker failed with {failed.error}: {failed.message}'
        error = WorkerError(f'{text.removesuffix(".")}. {memory_hint}' if says_out_of_memory(text) else text)
    error.add_note(f'In the worker:\n{failed.traceback}')
    return error


def _log_late(message: Message) -> None:
    """Log a message that came after the generator was closed."""
    match message:
        case LogRecord(level=level, logger=name, text=text):
            logging.getLogger(name).log(level, '%s', text)
        case Failed(error=error, message=text):
            logger.warning('The worker failed while it was being stopped (%s): %s', error, text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f'signal {number}'


def _tail(path: Path) -> str:
    """Return the last ``_STDERR_BYTES`` of a text file, empty if it does not exist."""
    if not path.exists():
        return ''
    with path.open('rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _STDERR_BYTES))
        return file.read().decode('utf-8', errors='replace').strip()


def _informative_lines(output: str) -> list[str]:
    """Return the last lines of an error output, without stack frames and lists of modules."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith((' ', 'Extension modules'))]
    return [line for line in lines if not line.startswith(('Thread 0x', 'Current thread'))][-3:]
