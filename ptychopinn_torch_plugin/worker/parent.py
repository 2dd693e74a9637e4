"""The parent's side: starts one worker, listens to it, and sees to it that none is left behind."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Generator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import PtychoPINNError, WorkerError
from .child import STDERR_NAME, main
from .job import Job, JobKind
from .messages import Failed, Finished, Heartbeat, LogRecord, Message, Preview

logger = logging.getLogger(__name__)

_LAST_LINES = 5
_STDERR_BYTES = 4000
_END_WAIT_S = 2.0
"""Seconds that a worker which has nothing more to do may take to end."""
_START_LIMIT_S = 60.0
"""Seconds that a worker may take to start, whatever the silence limit is."""
_STACK_WAIT_S = 0.5
_MEMORY_HINTS: dict[JobKind, str] = {
    'train': 'choose a smaller "Batch size", "Group size" or "Network width"',
    'reconstruct': 'choose a smaller "Batch size" or "Window size" under Inference',
    'refine': 'choose a smaller "Batch size" under Inference',
}
_SIGNAL_HINTS = {
    'SIGBUS': 'Most likely the disk of the temporary folder or the shared memory is full: free some space.',
    'SIGSEGV': 'A library crashed: try another "Accelerator", and run "ptychopinn-torch doctor".',
}
_START_HINT = (
    'It did not get as far as its first line; the terminal shows why. A script that starts a run needs the guard '
    "if __name__ == '__main__'."
)
_MEMORY_SIGNS = ('MemoryError', 'out of memory', "can't allocate memory")


def run_job(
    job: Job,
    *,
    entry: str = 'ptychopinn_torch_plugin.worker.child:run',
    heartbeat_s: float = 0.5,
    stop_grace_s: float = 8.0,
) -> Generator[Message, None, None]:
    """Run ``job`` in a spawned process and yield its messages, the last of them ``Finished``.

    Closing the generator (or an exception in it) asks the worker to stop, waits up to ``stop_grace_s`` seconds for it
    to keep what it has, and then kills it; when ``close`` returns, the process is gone. A caller that loops over the
    generator itself holds it in :func:`contextlib.closing`, inside of ``open_job``, so that the worker ends before its
    folder goes; ``yield from`` does the same.

    Args:
        job: what to do, from :func:`~.job.open_job`.
        entry: ``'module:function'`` to call in the worker with ``(job, channel, stop_flag)``.
        heartbeat_s: a ``Heartbeat`` is yielded whenever nothing came for so many seconds.
        stop_grace_s: seconds from the wish to stop until the worker is killed.

    Raises:
        PtychoPINNError: the worker raised an error of this package: the same class with the same sentence.
        WorkerError: the worker raised something else, died, or sent nothing at all while the caller listened for
            ``execution.silence_limit`` seconds; the message holds its last words. That limit looks at the work, not at
            the process: a worker that lives but gets nowhere sends nothing.
    """
    child = _Child(job, entry, stop_grace_s)
    try:
        yield from child.listen(heartbeat_s)
    finally:
        child.end()


class _Child:
    """A running worker process and the two pipes to it.

    The wish to stop travels over a pipe of its own and not in a shared event: an event is guarded by a lock, and a
    worker killed while it holds the lock would block the parent for ever.
    """

    def __init__(self, job: Job, entry: str, stop_grace_s: float) -> None:
        """Start the process.

        Raises:
            WorkerError: the system refuses another process.
        """
        self._folder = job.folder
        self._memory_hint = f'Most likely the memory ran out: {_MEMORY_HINTS[job.kind]}.'
        self._silence_limit_s = float(job.config.execution.silence_limit)
        self._stop_grace_s = stop_grace_s
        self._has_reported = False
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        context = multiprocessing.get_context('spawn')
        self._reader, writer = context.Pipe(duplex=False)
        stop_reader, self._stop_writer = context.Pipe(duplex=False)
        self._process = context.Process(
            target=main, args=(entry, job, writer, stop_reader, stop_grace_s), name='ptychopinn-worker'
        )
        try:
            self._process.start()
        except OSError as error:
            self._close_pipes()
            raise WorkerError(f'The worker process could not be started: {error}.') from error
        finally:
            writer.close()
            stop_reader.close()
        atexit.register(self._end_at_exit)

    def listen(self, heartbeat_s: float) -> Generator[Message, None, None]:
        """Yield messages until ``Finished``.

        Raises:
            PtychoPINNError: the worker failed or died.
        """
        silent_s, has_begun = 0.0, False
        while True:
            ready, waited_s = self._wait(heartbeat_s)
            if not ready and self._process.is_alive():
                silent_s += waited_s
                if not has_begun and self._has_begun:
                    has_begun, silent_s = True, 0.0
                limit_s = self._silence_limit_s if has_begun else max(self._silence_limit_s, _START_LIMIT_S)
                if self._silence_limit_s > 0 and silent_s >= limit_s:
                    raise self._end_of_patience()
                yield Heartbeat()
                continue
            silent_s = 0.0
            # What a dead worker had sent before is still in the pipe and comes first.
            message = _receive(self._reader) if self._reader in ready or self._reader.poll(0) else None
            match message:
                case None:
                    raise self._obituary()
                case Failed():
                    self._has_reported = True
                    raise _as_exception(message, self._memory_hint)
                case Preview(path=path) if not path.exists():
                    continue
                case LogRecord(level=level, text=text) if level >= logging.INFO:
                    self._last_lines.append(text)
            self._has_reported = isinstance(message, Finished)
            yield message
            if self._has_reported:
                return

    @property
    def _has_begun(self) -> bool:
        """Whether the process has come as far as its first line."""
        return (self._folder / STDERR_NAME).exists()

    def _wait(self, seconds: float) -> tuple[list[Any], float]:
        """Wait for a message or the end of the worker; return what is ready and the seconds that it took.

        Time in which this process did not run either (a computer asleep) is no silence of the worker.
        """
        begun = time.monotonic()
        ready = wait([self._reader, self._process.sentinel], seconds)
        return ready, min(time.monotonic() - begun, 2 * seconds)

    def end(self) -> None:
        """Have the worker end by itself within the grace time, then by force; free everything."""
        atexit.unregister(self._end_at_exit)
        try:
            self._ask_to_stop()
            self._drain(_END_WAIT_S if self._has_reported else self._stop_grace_s)
        finally:
            if self._process.is_alive():
                if not self._has_reported:
                    logger.warning('The worker did not stop within %g s and is killed.', self._stop_grace_s)
                self._process.kill()
            self._process.join(_END_WAIT_S)
            self._kill_helpers()
            self._close_pipes()
            if not self._process.is_alive():
                self._process.close()

    def _kill_helpers(self) -> None:
        """End the processes that the worker had started itself (it leads a group of its own) and left behind."""
        if hasattr(os, 'killpg') and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # there are none, as after every orderly run
                os.killpg(self._process.pid, signal.SIGKILL)

    def _ask_to_stop(self) -> None:
        try:
            self._stop_writer.send_bytes(b'stop')
        except OSError:
            logger.debug('The worker had ended before it was asked to stop.')

    def _drain(self, seconds: float) -> None:
        """Wait until the worker is dead, ``seconds`` at most, and read what it sends: a full pipe would hold it up."""
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
        """End the worker of a generator that nobody closed before the interpreter leaves.

        It reads no messages: the thread that listens may still do so.
        """
        self._ask_to_stop()
        self._process.join(self._stop_grace_s)
        self._process.kill()

    def _close_pipes(self) -> None:
        self._reader.close()
        self._stop_writer.close()

    def _end_of_patience(self) -> WorkerError:
        """Have the worker write down where it hangs, kill it, and say so."""
        if hasattr(signal, 'SIGUSR1') and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGUSR1)
            self._process.join(_STACK_WAIT_S)
        self._process.kill()
        return self._last_words(
            f'reported no progress for {self._silence_limit_s:g} s and was ended',
            'It hangs, or one step takes longer than that: choose a smaller "Batch size", or a larger '
            '"silence_limit" in the section "execution" of the settings.',
        )

    def _obituary(self) -> WorkerError:
        """How the worker died, what it said last, and what to do."""
        self._process.join(_END_WAIT_S)
        code = self._process.exitcode
        if code is None:
            how, hint = 'fell silent without a result', ''
        elif code < 0:
            name = _signal_name(-code)
            how = f'was ended by {name}'
            hint = self._memory_hint if name == 'SIGKILL' else _SIGNAL_HINTS.get(name, '')
        else:
            how, hint = f'ended with exit code {code} and without a result', '' if self._has_begun else _START_HINT
        return self._last_words(how, hint)

    def _last_words(self, how: str, hint: str) -> WorkerError:
        """The error for a worker that ended as ``how`` says, with its last lines."""
        output = _tail(self._folder / STDERR_NAME)
        words = [*self._last_lines, *_telling_lines(output)]
        last_words = 'Its last words: ' + ' | '.join(words) if words else 'It said nothing before.'
        error = WorkerError(' '.join(part for part in (f'The worker process {how}.', hint, last_words) if part))
        if output:
            error.add_note(f'Error output of the worker:\n{output}')
        return error


def _receive(reader: Connection[Any, Any]) -> Message | None:
    """The next message; None when the worker has closed its end or was cut off while sending."""
    try:
        message: Message = reader.recv()
    except (EOFError, OSError):
        return None
    return message


def _as_exception(failed: Failed, memory_hint: str) -> PtychoPINNError:
    """The exception of the worker: its own class if it is one of ours, else a ``WorkerError`` that names it."""
    cls = getattr(errors, failed.error, None)
    error: PtychoPINNError
    if isinstance(cls, type) and issubclass(cls, PtychoPINNError):
        error = cls(failed.message)
    else:
        is_memory = any(sign in failed.error or sign in failed.message for sign in _MEMORY_SIGNS)
        words = f'The worker failed with {failed.error}: {failed.message}'
        error = WorkerError(f'{words.removesuffix(".")}. {memory_hint}' if is_memory else words)
    error.add_note(f'In the worker:\n{failed.traceback}')
    return error


def _log_late(message: Message) -> None:
    """Log what comes after the caller has stopped listening."""
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
    """The last ``_STDERR_BYTES`` of a text file, empty if there is none."""
    if not path.exists():
        return ''
    with path.open('rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _STDERR_BYTES))
        return file.read().decode('utf-8', errors='replace').strip()


def _telling_lines(output: str) -> list[str]:
    """The last lines of an error output without stack frames and lists of modules."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith((' ', 'Extension modules'))]
    return [line for line in lines if not line.startswith(('Thread 0x', 'Current thread'))][-3:]
