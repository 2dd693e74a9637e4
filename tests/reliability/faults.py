"""What workers are made to suffer: each function runs in a spawned child, like those of ``tests/worker/entries.py``."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

from ptychopinn_torch_plugin.worker.channel import Channel, StopFlag
from ptychopinn_torch_plugin.worker.job import Job
from ptychopinn_torch_plugin.worker.messages import Finished, Progress

logger = logging.getLogger('ptychopinn_torch_plugin.tests')


def hang(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Live, but get nowhere."""
    logger.info('simulating the patterns')
    while True:
        time.sleep(0.05)


def freeze(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Be stopped by the system, deaf to everything but SIGKILL."""
    logger.info('simulating the patterns')
    os.kill(os.getpid(), signal.SIGSTOP)


def work_slowly(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Take longer than the silence limit, but tell of progress."""
    for done in range(6):
        time.sleep(0.7)
        channel.send(Progress(done, 6))


def run_out_of_device_memory(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail as CUDA does."""
    import torch

    logger.info('training on cuda')
    raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 4 GiB.')


class UnspeakableError(Exception):
    """Neither its message nor its pickle can be had."""

    def __init__(self) -> None:
        """Keep something that no pickle takes."""
        self.unpicklable = lambda: None

    def __str__(self) -> str:
        raise ValueError('no words')


def be_unspeakable(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail with an exception that fails to say what it is."""
    raise UnspeakableError


def leave(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Leave as a library does that thinks it owns the process."""
    sys.exit('licence expired')


def linger_after_failing(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail, and not end because of a thread."""
    import threading

    threading.Thread(target=time.sleep, args=(60,)).start()
    raise RuntimeError('cuDNN error: CUDNN_STATUS_EXECUTION_FAILED')


def linger_after_finishing(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Finish, and then hang instead of ending."""
    channel.send(Finished())
    time.sleep(60)


def be_killed_with_a_helper(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Die while a process of one's own is at work, as loaders are."""
    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)'])
    logger.info('pid=%d', helper.pid)
    os.kill(os.getpid(), signal.SIGKILL)
