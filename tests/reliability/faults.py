"""Faults of workers: each function runs in a spawned child, like those of ``tests/worker/entries.py``."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ptychopinn_torch_plugin.storage.training_output import RESUME_FILE
from ptychopinn_torch_plugin.worker.channel import Channel, StopFlag
from ptychopinn_torch_plugin.worker.job import Job, read_scans
from ptychopinn_torch_plugin.worker.messages import Finished, Progress
from tests.host.fake_worker import write_model

logger = logging.getLogger('ptychopinn_torch_plugin.tests')


def hang(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Run without progress."""
    logger.info('simulating the patterns')
    while True:
        time.sleep(0.05)


def freeze(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Be stopped by the system: only SIGKILL has an effect then."""
    logger.info('simulating the patterns')
    os.kill(os.getpid(), signal.SIGSTOP)


def work_slowly(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Take longer than the silence limit, but report progress."""
    for done in range(6):
        time.sleep(0.7)
        channel.send(Progress(done, 6))


def run_out_of_device_memory(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail as CUDA does."""
    import torch

    logger.info('training on cuda')
    raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 4 GiB.')


class UnspeakableError(Exception):
    """An exception that has neither a message nor a pickle."""

    def __init__(self) -> None:
        """Hold a value that cannot be pickled."""
        self.unpicklable = lambda: None

    def __str__(self) -> str:
        raise ValueError('no words')


def be_unspeakable(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail with an exception whose message cannot be made."""
    raise UnspeakableError


def leave(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Exit as a library does that ends the process by itself."""
    sys.exit('licence expired')


def linger_after_failing(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Fail, and do not end because of a thread."""
    import threading

    threading.Thread(target=time.sleep, args=(60,)).start()
    raise RuntimeError('cuDNN error: CUDNN_STATUS_EXECUTION_FAILED')


def linger_after_finishing(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Finish, and then hang instead of ending."""
    channel.send(Finished())
    time.sleep(60)


def be_killed_with_a_helper(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Die while a process started by the worker is running, as data loaders are."""
    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)'])
    logger.info('pid=%d', helper.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def end_as_planned(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Write the files that ``plan.json`` in the output folder lists, then end in the way that it names."""
    assert job.output_folder is not None
    plan = json.loads((job.output_folder / 'plan.json').read_text())
    if 'model' in plan['files']:
        write_model(job.output_folder / 'model.safetensors', job.config)
    if 'resume' in plan['files']:
        (job.output_folder / RESUME_FILE).write_text('a state')
    channel.send(Progress(1, 2))
    match plan['way']:
        case 'exception':
            raise RuntimeError('cuDNN error: CUDNN_STATUS_EXECUTION_FAILED')
        case 'memory':
            raise MemoryError('std::bad_alloc')
        case 'exit':
            sys.exit('licence expired')
        case 'abort':
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
            os.abort()
        case 'broken pipe':
            channel.close()
            channel.send(Progress(2, 2))
            assert stop.is_set()
        case str(name) if name.startswith('SIG'):
            os.kill(os.getpid(), signal.Signals[name])
            time.sleep(0.05)
            assert stop.is_set() == (name in ('SIGTERM', 'SIGHUP'))


def read_beyond_the_limit(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Read the scan where the process may use 100 MB more than it does now."""
    import resource

    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + 100 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    read_scans(job.folder)
