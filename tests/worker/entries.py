"""What the worker is made to do in the tests: each function runs in a spawned child."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.errors import InputError, ModelFileError
from ptychopinn_torch_plugin.types import LossRecord, Reconstruction
from ptychopinn_torch_plugin.worker.channel import Channel, StopFlag
from ptychopinn_torch_plugin.worker.job import Job, read_scans, write_result
from ptychopinn_torch_plugin.worker.messages import Progress
from ptychopinn_torch_plugin.worker.observer import ChannelObserver

logger = logging.getLogger('ptychopinn_torch_plugin.tests')
foreign_logger = logging.getLogger('somebody.else')

BIG_LINE = 'x' * 2500


class SubclassOfOursError(InputError):
    """Not in errors.py: the parent can only know its base."""


class ForeignError(Exception):
    """Cannot be pickled, cannot be built from a message."""

    def __init__(self, one: object, two: object) -> None:
        """Keep something that no pickle takes."""
        super().__init__(f'{one} and {two}')
        self.unpicklable = lambda: None


def work(job: Job, channel: Channel, stop: StopFlag) -> None:
    """A whole run: every message, and a result computed from the scan."""
    observer = ChannelObserver(job.folder, channel, stop)
    (scan,) = read_scans(job.folder)
    observer.on_progress(1, 2)
    observer.on_losses(1, 0.5, None)
    logger.info('counts are a %s', type(scan.counts).__name__)
    logger.debug('too quiet')
    foreign_logger.info('not our business')
    foreign_logger.warning('worth knowing')
    warnings.warn('a warning of Python', stacklevel=1)
    observer.on_preview(np.full((3, 2), 1 + 1j))
    observer.on_progress(2, 2)
    object_array = np.full(scan.object_shape, scan.counts.sum(), dtype=np.complex64)
    probe = scan.probe.astype(np.complex64)
    losses = (LossRecord(1, 0.5, None), LossRecord(2, 0.25, 0.75))
    write_result(
        job.folder,
        Reconstruction(
            object_array,
            object_array.real > 0,
            probe,
            scan.positions,
            np.ones(len(scan.counts), dtype=np.float32),
            losses,
        ),
    )


def report_environment(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Log what a later import of torch would find."""
    logger.info('wait=%s threads=%s', os.environ.get('OMP_WAIT_POLICY'), os.environ.get('OMP_NUM_THREADS'))
    logger.info('torch=%s', 'torch' in sys.modules)
    logger.info('sigint=%s', signal.getsignal(signal.SIGINT) is signal.SIG_IGN)


def slow(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Say nothing for a while."""
    time.sleep(0.8)


def own_error(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail with a class of errors.py."""
    raise ModelFileError('The model file is of another format; retrain.')


def subclass_error(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail with a subclass of one of ours."""
    raise SubclassOfOursError('Too many bad pixels.')


def foreign_error(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail with a class the parent must not need."""
    raise ForeignError('one', 'two')


def memory_error(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail for want of memory."""
    raise MemoryError('Unable to allocate 1 PiB')


def be_killed(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Die as if the kernel had run out of memory."""
    logger.info('loading the patterns')
    os.kill(os.getpid(), signal.SIGKILL)


def crash(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Die as native code dies."""
    os.write(2, b'terminate called: illegal memory access\n')
    os.kill(os.getpid(), signal.SIGSEGV)


def vanish(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Leave without a word."""
    os._exit(3)


def finish_when_asked(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Work until asked to stop, then keep what there is; talks far more than the pipe holds."""
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
    """Ignore every wish to stop."""
    logger.info('pid=%d', os.getpid())
    while True:
        time.sleep(0.01)


def fail_when_asked(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Be stopped too early to keep anything."""
    channel.send(Progress(0, 1))
    while not stop.is_set():
        time.sleep(0.01)
    raise InputError('No epoch was finished.')


def be_terminated(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Get the scheduler's warning, and end in order."""
    os.kill(os.getpid(), signal.SIGTERM)
    while not stop.is_set():
        time.sleep(0.01)
    logger.info('stopped in order')
