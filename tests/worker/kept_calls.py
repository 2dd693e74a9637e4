"""Entries of the worker for the tests of kept processes: each function runs in a spawned child."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import warnings

from ptychopinn_torch_plugin.worker.channel import Channel, StopFlag
from ptychopinn_torch_plugin.worker.job import Job

logger = logging.getLogger('ptychopinn_torch_plugin.tests')


def report_process(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Log the process and what an earlier call may have changed in it."""
    root = logging.getLogger()
    logger.info('pid=%d', os.getpid())
    logger.info(
        'marks=%s handlers=%d level=%d filters=%s sigterm=%s',
        [name for name in os.environ if name.startswith('MARK')],
        len(root.handlers),
        root.level,
        any(entry[0] == 'error' for entry in warnings.filters),
        signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN),
    )


def leave_marks(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Change what a call can change in its process."""
    logger.info('pid=%d', os.getpid())
    os.environ['MARK'] = 'here'
    warnings.simplefilter('error')
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger().setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    random.seed(0)


def leave_a_thread(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Leave a thread that runs on, as a library may."""
    logger.info('pid=%d', os.getpid())
    threading.Thread(target=threading.Event().wait).start()


def hold_memory(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Leak 200 MB."""
    logger.info('pid=%d', os.getpid())
    logger.leaked = b'x' * 200_000_000  # type: ignore[attr-defined]
