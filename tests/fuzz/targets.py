"""The readers that the fuzz runs and the seeded mutations call.

Every target reads one file and returns what the file was refused with, or None if it was read. Any other exception than
an error of this package passes, and is a finding.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast
from unittest import mock

from ptychopinn_torch_plugin.compat.names import configuration_from
from ptychopinn_torch_plugin.data.io import hdf5, hdf5_child
from ptychopinn_torch_plugin.data.io.npz import read_training_npz
from ptychopinn_torch_plugin.data.io.workflow_folder import read_workflow_folder
from ptychopinn_torch_plugin.errors import PtychoPINNError
from ptychopinn_torch_plugin.storage.model_file import load_model, read_model_header

MAX_MESSAGE_CHARS = 1500
MAX_READING_S = 10

Target = Callable[[Path], PtychoPINNError | None]


def read_model(path: Path) -> PtychoPINNError | None:
    """Read a model file as the host does, then as the worker does, and build its network."""
    try:
        read_model_header(path)
        load_model(path).build()
    except PtychoPINNError as error:
        return _checked(error)
    return None


def read_scan(path: Path) -> PtychoPINNError | None:
    """Read a training file."""
    try:
        read_training_npz(path)
    except PtychoPINNError as error:
        return _checked(error)
    return None


def read_configuration(path: Path) -> PtychoPINNError | None:
    """Read a configuration file in PtychoPINN's names."""
    try:
        configuration_from(path)
    except PtychoPINNError as error:
        return _checked(error)
    return None


def read_folder(path: Path) -> PtychoPINNError | None:
    """Read the workflow folder that ``path``, one of its two files, lies in.

    The process that reads HDF5 is forked instead of started, which takes a hundredth of the time.
    """
    try:
        with mock.patch.object(hdf5, '_reading_process', _forked_reading_process):
            read_workflow_folder(path.parent)
    except PtychoPINNError as error:
        return _checked(error)
    return None


def resume_reader(folder: Path) -> tuple[Target, bytes]:
    """Stop a small training run in ``folder``.

    Returns:
        A target that goes on from the resume state at a path in this folder: whatever is in the file, the run must come
        to its end, from the state or from the beginning. The other value is the resume state that was written.
    """
    from ptychopinn_torch_plugin.storage.training_output import RESUME_FILE
    from ptychopinn_torch_plugin.training import run
    from ptychopinn_torch_plugin.training.resume import find_state
    from tests.helpers.scans import make_scan
    from tests.training.runs import Recorder, small

    scans = [make_scan((16, 16))[0]]
    tiny = {'width': 4, 'levels': 1, 'steps': 1, 'memory_channels': 0}
    config = small(model=tiny, training={'epochs': 2, 'batch_size': 1})
    arguments: list[Any] = []

    def noting_find_state(*given: Any) -> object:  # noqa: ANN401 - handed through
        arguments[:] = given
        return find_state(*given)

    with mock.patch.object(run, 'find_state', noting_find_state):
        run.train(scans, config, folder, Recorder(stop_after=6))
    state = (folder / RESUME_FILE).read_bytes()

    def resume(path: Path) -> PtychoPINNError | None:
        try:
            # Most states are refused here, in a hundredth of the time of a run.
            if find_state(path.parent, *arguments[1:]) is not None:
                run.train(scans, config, path.parent, Recorder())
        except PtychoPINNError as error:
            return _checked(error)
        return None

    return resume, state


class _ForkedProcess:
    """A forked process that answers a request for HDF5, with what :class:`subprocess.Popen` has."""

    def __init__(self, request: dict[str, Any]) -> None:
        output, messages = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._run(request, output[1], messages[1])
        os.close(output[1])
        os.close(messages[1])
        self.stdout: IO[bytes] = os.fdopen(output[0], 'rb')
        self._messages = os.fdopen(messages[0], 'rb')
        self.returncode = 0

    @staticmethod
    def _run(request: dict[str, Any], output: int, messages: int) -> None:
        # A fuzzer handles these signals in its own way.
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(MAX_READING_S)
        code = 1
        try:
            sys.stderr = os.fdopen(messages, 'w')
            with os.fdopen(output, 'wb') as stream:
                code = hdf5_child.run(request, stream)
            sys.stderr.flush()
        finally:
            os._exit(code)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def communicate(self) -> tuple[None, bytes]:
        said = self._messages.read()
        self.close()
        return None, said

    def close(self) -> None:
        if self._pid:
            self.stdout.close()
            self._messages.close()
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._pid = 0


@contextmanager
def _forked_reading_process(path: Path, request: dict[str, Any]) -> Iterator[hdf5._ReadingProcess]:
    process = _ForkedProcess(request)
    try:
        yield hdf5._ReadingProcess(cast(Any, process), path)
    finally:
        process.close()


def _checked(error: PtychoPINNError) -> PtychoPINNError:
    text = str(error)
    if not 0 < len(text) < MAX_MESSAGE_CHARS or '\n' in text:
        raise AssertionError(f'This is not one sentence: {text[:2000]!r}')
    return error
