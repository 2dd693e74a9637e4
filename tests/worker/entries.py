"""Entries of the worker for the tests: each function runs in a spawned child."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.errors import InputError, ModelFileError
from ptychopinn_torch_plugin.storage.model_file import MODEL_FILE, read_model_header
from ptychopinn_torch_plugin.storage.training_output import RESUME_FILE
from ptychopinn_torch_plugin.worker.channel import Channel, StopFlag
from ptychopinn_torch_plugin.worker.child import run
from ptychopinn_torch_plugin.worker.job import Job, read_scans, write_result
from ptychopinn_torch_plugin.worker.messages import Losses, Message, Progress
from ptychopinn_torch_plugin.worker.observer import ChannelObserver

from .conftest import make_reconstruction

logger = logging.getLogger('ptychopinn_torch_plugin.tests')
foreign_logger = logging.getLogger('somebody.else')

BIG_LINE = 'x' * 2500


class SubclassOfOursError(InputError):
    """A class that is not in errors.py: the parent knows its base only."""


class ForeignError(Exception):
    """Cannot be pickled, cannot be built from a message."""

    def __init__(self, one: object, two: object) -> None:
        """Hold a value that cannot be pickled."""
        super().__init__(f'{one} and {two}')
        self.unpicklable = lambda: None


def work(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Send every kind of message, and write a result that depends on the scan."""
    observer = ChannelObserver(job.folder, channel, stop)
    (scan,) = read_scans(job.folder)
    observer.on_progress(1, 2)
    observer.on_losses(1, 0.5, None)
    logger.info('counts are a %s', type(scan.counts).__name__)
    logger.debug('below the level that is sent')
    foreign_logger.info('below the level that is sent for others')
    foreign_logger.warning('a warning of another package')
    warnings.warn('a warning of Python', stacklevel=1)
    observer.on_preview(np.full((3, 2), 1 + 1j))
    observer.on_progress(2, 2)
    write_result(job.folder, make_reconstruction(scan))


def report_environment(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Log what torch would find when imported now."""
    logger.info('wait=%s threads=%s', os.environ.get('OMP_WAIT_POLICY'), os.environ.get('OMP_NUM_THREADS'))
    logger.info('torch=%s', 'torch' in sys.modules)
    logger.info('sigint=%s', signal.getsignal(signal.SIGINT) is signal.SIG_IGN)


def slow(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Send no message for a while."""
    time.sleep(0.8)


def own_error(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail with a class of errors.py."""
    raise ModelFileError('The model file is of another format; retrain.')


def subclass_error(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail with a subclass of one of ours."""
    raise SubclassOfOursError('Too many bad pixels.')


def foreign_error(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail with a class that the parent cannot import or build."""
    raise ForeignError('one', 'two')


def memory_error(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail because memory ran out."""
    raise MemoryError('Unable to allocate 1 PiB')


def be_killed(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Die as the kernel kills a process when memory runs out."""
    logger.info('loading the patterns')
    os.kill(os.getpid(), signal.SIGKILL)


def crash(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Die as native code dies."""
    os.write(2, b'terminate called: illegal memory access\n')
    os.kill(os.getpid(), signal.SIGSEGV)


def vanish(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Exit without a message."""
    os._exit(3)


def finish_when_asked(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Work until a stop is requested, then write a file and send more messages than the pipe holds."""
    assert job.output_folder is not None
    logger.info('pid=%d', os.getpid())
    while not stop.is_set():
        channel.send(Progress(0, 1))
        time.sleep(0.01)
    for _ in range(100):
        logger.info(BIG_LINE)
    Path(job.output_folder, 'kept').write_text('best model', encoding='utf-8')
    logger.info('model written')


def never_stop(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Ignore every request to stop."""
    logger.info('pid=%d', os.getpid())
    while True:
        time.sleep(0.01)


def fail_when_asked(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Be stopped before there is anything to keep."""
    channel.send(Progress(0, 1))
    while not stop.is_set():
        time.sleep(0.01)
    raise InputError('No epoch was finished.')


def be_terminated(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Receive a scheduler's warning, and end in order."""
    os.kill(os.getpid(), signal.SIGTERM)
    while not stop.is_set():
        time.sleep(0.01)
    logger.info('stopped in order')


class DiskChannel(Channel):
    """A channel that compares every report of losses with the files on disk at that moment."""

    def __init__(self, channel: Channel, folder: Path) -> None:
        """Send over ``channel``; training writes into ``folder``."""
        self._channel = channel
        self._folder = folder

    def send(self, message: Message) -> None:
        """Send ``message``; log which epochs the model, the log and the resume state hold when losses are reported."""
        if isinstance(message, Losses):
            model = [entry.epoch for entry in read_model_header(self._folder / MODEL_FILE).history]
            rows = (self._folder / 'training_log' / 'metrics.csv').read_text().splitlines()[1:]
            logger.info(
                'on disk when epoch %d is reported: model %s, log %s, resume state %s',
                message.epoch,
                model,
                [int(row.split(',')[0]) for row in rows],
                (self._folder / RESUME_FILE).is_file(),
            )
        self._channel.send(message)


def train_and_compare(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Train with the real engine; every report of losses is compared with what is on disk."""
    assert job.output_folder is not None
    run(job, DiskChannel(channel, job.output_folder), stop)


def be_signalled(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Receive every signal that a terminal or a cluster sends; log which of them requested a stop."""
    stopping = []
    for name in ('SIGINT', 'SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGXCPU', 'SIGTERM'):
        stop.__init__()  # type: ignore[misc] # a new flag for every signal
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(0.01)
        if stop.is_set():
            stopping.append(name)
    logger.info('stop requested by %s', ' '.join(stopping))


def fill_the_disk(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Send previews while files can have 300 kB only, then with room again; then write the result."""
    import resource

    observer = ChannelObserver(job.folder, channel, stop, keeps_previews=True)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    for _ in range(3):
        observer.on_preview(np.ones((200, 200), dtype=np.complex64) * 1j)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    observer.on_preview(np.ones((200, 200), dtype=np.complex64))
    (scan,) = read_scans(job.folder)
    write_result(job.folder, make_reconstruction(scan))


def be_killed_after_the_result(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Write the result, then die, as while metrics are computed or written."""
    (scan,) = read_scans(job.folder)
    ChannelObserver(job.folder, channel, stop).on_result(make_reconstruction(scan))
    os.kill(os.getpid(), signal.SIGKILL)


def fail_after_the_result(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Write the result, then fail, as while metrics are written to a full disk."""
    (scan,) = read_scans(job.folder)
    write_result(job.folder, make_reconstruction(scan))
    raise OSError(errno.ENOSPC, 'No space left on device')


def be_killed_in_the_result(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Die before the last file of the result is written."""
    from ptychopinn_torch_plugin.worker import job as job_module

    job_module._header = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    (scan,) = read_scans(job.folder)
    np.save(job.folder / 'object_array.npy', make_reconstruction(scan).object_array)
    write_result(job.folder, make_reconstruction(scan))
