"""The worker's code in this process: which messages are sent, how often, and which engine is called."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.errors import InputError
from ptychopinn_torch_plugin.observer import WRITING
from ptychopinn_torch_plugin.types import Reconstruction
from ptychopinn_torch_plugin.worker import child
from ptychopinn_torch_plugin.worker import observer as observer_module
from ptychopinn_torch_plugin.worker.channel import Channel, StopFlag
from ptychopinn_torch_plugin.worker.job import Job, open_job, read_preview, read_result
from ptychopinn_torch_plugin.worker.messages import LogRecord, Losses, Message, Preview, Progress, Stage
from ptychopinn_torch_plugin.worker.observer import ChannelObserver

from .conftest import make_reconstruction


class _Line:
    """The two ends of a pipe, and what came through it."""

    def __init__(self) -> None:
        self.reader, writer = multiprocessing.get_context('spawn').Pipe(duplex=False)
        self.stop = StopFlag()
        self.channel = Channel(writer, self.stop)

    def received(self) -> list[Message]:
        messages = []
        while self.reader.poll(0):
            messages.append(self.reader.recv())
        return messages


@pytest.fixture
def line() -> _Line:
    return _Line()


def test_progress_is_thinned_but_its_end_is_sent(tmp_path: Path, line: _Line) -> None:
    observer = ChannelObserver(tmp_path, line.channel, line.stop)
    for done in range(1, 1001):
        observer.on_progress(done, 1000)
    messages = line.received()
    assert messages[0] == Progress(1, 1000)
    assert messages[-1] == Progress(1000, 1000)
    assert len(messages) < 100


def test_losses_are_plain_numbers(tmp_path: Path, line: _Line) -> None:
    observer = ChannelObserver(tmp_path, line.channel, line.stop)
    observer.on_losses(np.int64(3), np.float32(0.5), None)  # type: ignore[arg-type] # what engines do in practice
    (message,) = line.received()
    assert message == Losses(3, 0.5, None)
    assert type(message.epoch) is int


def test_two_previews_stay_readable(tmp_path: Path, line: _Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer_module, '_PREVIEW_INTERVAL_S', 0.0)
    observer = ChannelObserver(tmp_path, line.channel, line.stop)
    for value in range(5):
        observer.on_preview(np.full((2, 3), value, dtype=np.complex128))
    paths = [message.path for message in line.received() if isinstance(message, Preview)]
    previews = [read_preview(path) for path in paths]
    assert len(paths) == len(set(paths)) == 5
    assert previews[:3] == [None] * 3
    for value in (3, 4):
        preview = previews[value]
        assert preview is not None
        assert preview.dtype == np.complex64
        np.testing.assert_array_equal(preview, np.full((2, 3), value))
    assert sorted(tmp_path.iterdir()) == sorted(paths[3:]), 'nothing unfinished is left'


def test_previews_are_thinned(tmp_path: Path, line: _Line) -> None:
    observer = ChannelObserver(tmp_path, line.channel, line.stop)
    for _ in range(20):
        observer.on_preview(np.ones((2, 2), dtype=np.complex64))
    assert len(line.received()) < 5


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_ten_reports_of_progress_and_four_previews_a_second(
    tmp_path: Path, line: _Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(observer_module, 'time', clock)
    observer = ChannelObserver(tmp_path, line.channel, line.stop)
    for done in range(1, 201):
        observer.on_progress(done, 1000)
        clock.now += 0.01
    numbers = [message.done for message in line.received() if isinstance(message, Progress)]
    assert len(numbers) == pytest.approx(20, abs=2)
    assert np.diff(numbers) == pytest.approx(10, abs=1)
    clock.now += 10
    shown = []
    for done in range(100):
        observer.on_preview(np.full((2, 2), done, dtype=np.complex64))
        shown += [done for message in line.received() if isinstance(message, Preview)]
        clock.now += 0.01
    assert len(shown) == 4
    assert np.diff(shown) == pytest.approx(25, abs=1)


def test_every_preview_is_kept_on_request(tmp_path: Path, line: _Line) -> None:
    observer = ChannelObserver(tmp_path, line.channel, line.stop, keeps_previews=True)
    observer.on_progress(np.int64(3), np.int64(7))  # type: ignore[arg-type] # what engines do in practice
    line.received()
    for value in range(4):
        observer.on_preview(np.full((2, 2), value, dtype=np.complex64))
    messages = line.received()
    assert messages[::2] == [Progress(3, 7)] * 4
    assert [message.path.name for message in messages[1::2] if isinstance(message, Preview)] == [
        f'preview-00000{number}.npy' for number in (1, 2, 3, 4)
    ]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_preview_that_cannot_be_written_is_reported_once(
    tmp_path: Path, line: _Line, caplog: pytest.LogCaptureFixture
) -> None:
    observer = ChannelObserver(tmp_path / 'missing', line.channel, line.stop, keeps_previews=True)
    for _ in range(3):
        observer.on_preview(np.ones((2, 2), dtype=np.complex64))
    assert line.received() == []
    assert caplog.text.count('Previews are skipped') == 1


def test_the_log_of_this_package_and_the_warnings_of_others_are_sent(
    line: _Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, 'handlers', [])
    level = root.level
    try:
        child._capture_log(line.channel)
        assert root.level == logging.INFO
        for name in ('ptychopinn_torch_plugin', 'ptychopinn_torch_plugin.x', 'ptychopinn_torch_plugin_other', 'numba'):
            logger = logging.getLogger(name)
            for number in (logging.DEBUG, logging.INFO, logging.WARNING):
                logger.log(number, '%s at %d', name, number)
        warnings.warn('a warning of Python', UserWarning, stacklevel=1)
        logging.getLogger('numba').error('x' * 4000)
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
    messages = [message for message in line.received() if isinstance(message, LogRecord)]
    sent = [(message.logger, message.level) for message in messages]
    assert sent[:6] == [
        ('ptychopinn_torch_plugin', logging.INFO),
        ('ptychopinn_torch_plugin', logging.WARNING),
        ('ptychopinn_torch_plugin.x', logging.INFO),
        ('ptychopinn_torch_plugin.x', logging.WARNING),
        ('ptychopinn_torch_plugin_other', logging.WARNING),
        ('numba', logging.WARNING),
    ]
    assert messages[0].text == 'ptychopinn_torch_plugin at 20'
    assert sent[6:] == [('py.warnings', logging.DEBUG), ('numba', logging.ERROR)]
    assert messages[-1].text == 'x' * 3000 + ' ...'


def test_an_exception_becomes_strings_of_bounded_length() -> None:
    class OwnError(InputError):
        """A class that the parent does not know."""

    def fail(depth: int, error: Exception) -> None:
        if depth:
            fail(depth - 1, error)
        raise error

    for error, name in ((OwnError('sentence'), 'InputError'), (ValueError('sentence'), 'ValueError')):
        with pytest.raises(type(error)) as caught:
            fail(1, error)
        failed = child._describe(caught.value)
        assert (failed.error, failed.message) == (name, 'sentence')
        assert failed.traceback.startswith('Traceback')
    assert child._describe(np.linalg.LinAlgError('x')).error == 'numpy.linalg.LinAlgError'
    assert child._describe(ValueError('y' * 3000)).message == 'y' * 3000
    long = child._describe(ValueError('y' * 20_000))
    assert long.message == 'y' * 3000 + ' ...'
    assert len(long.traceback) == 16_000
    assert long.traceback.endswith('yyy\n')


def test_a_listener_that_left_stops_the_work(tmp_path: Path, line: _Line) -> None:
    observer = ChannelObserver(tmp_path, line.channel, line.stop)
    assert not observer.should_stop()
    line.reader.close()
    observer.on_progress(1, 1)
    assert observer.should_stop()


def _install(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    module = types.ModuleType(f'ptychopinn_torch_plugin.{name}')
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_run_trains_on_all_scans(job: Job, line: _Line, monkeypatch: pytest.MonkeyPatch, scan: RawScan) -> None:
    calls: list[Any] = []
    _install(monkeypatch, 'training.run', train=lambda *arguments: calls.append(arguments))
    child.run(job, line.channel, line.stop)
    ((scans, config, output_folder, observer),) = calls
    np.testing.assert_array_equal(scans[0].counts, scan.counts)
    assert (config, output_folder) == (job.config, job.output_folder)
    line.stop.set()
    assert observer.should_stop()


def test_run_leaves_the_reconstruction_in_the_folder(
    line: _Line, monkeypatch: pytest.MonkeyPatch, scan: RawScan, tmp_path: Path
) -> None:
    def reconstruct(scan: RawScan, model: str, config: object, observer: ChannelObserver) -> Reconstruction:
        assert model == f'model of {tmp_path.resolve() / "m.safetensors"}'
        assert config == Config()
        observer.on_progress(1, 1)
        return make_reconstruction(scan)

    _install(monkeypatch, 'storage.model_file', load_model=lambda path: f'model of {path}')
    _install(monkeypatch, 'engines.pipeline', reconstruct=reconstruct)
    with open_job('reconstruct', [scan], Config(), model_file=tmp_path / 'm.safetensors') as job:
        child.run(job, line.channel, line.stop)
        assert read_result(job.folder).object_array.shape == scan.object_shape
    assert line.received() == [Progress(1, 1), Stage(WRITING)]
