"""Reconstruction of one scan, or training of one model, by several processes: started here, or by torchrun.

``inference.devices`` and ``training.devices`` start that many processes on this machine. This process is the first of
them, so its observer, its signals and its result are those of the run. ``torchrun`` starts them on one machine or
several (:func:`processes_of_environment`). With CUDA, every process has a GPU of its own and the sums are exchanged by
NCCL, otherwise by gloo.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from ..config import Config
from ..data.chunks import PatternFile
from ..data.scan import RawScan
from ..data.sharding import ConnectedProcesses, Processes, processes, training_as, working_as
from ..errors import WorkerError
from ..observer import Observer, SilentObserver
from ..signals import ignore_stop_signals
from ..types import Reconstruction

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

logger = logging.getLogger(__name__)

Run = Callable[[RawScan, Config, Observer], Reconstruction]
Training = Callable[[Sequence[RawScan], Observer], None]
Assist = Callable[[Sequence[RawScan], ConnectedProcesses], None]
"""What a process other than the first does once it is connected."""

START_TIMEOUT_S = 300.0
"""Longest time from the start of a process until it is connected, in seconds; torch is imported in it."""
END_TIMEOUT_S = 10.0
"""Time that a process has to end after the last exchange, seconds; then it is killed."""
_POLL_S = 0.02
_LOOPBACK_NAMES = ('lo', 'lo0')


class SharedArray(NamedTuple):
    """An array in shared memory."""

    content: Tensor
    """The bytes, ``(size,)`` uint8, in shared memory."""
    shape: tuple[int, ...]
    dtype: str

    def array(self) -> npt.NDArray[Any]:
        """Return the array, without a copy."""
        return self.content.numpy().view(self.dtype).reshape(self.shape)


def run_together(run: Run, scan: RawScan, config: Config, observer: Observer | None) -> Reconstruction:
    """Return ``run(scan, config, observer)``, computed by as many processes as there are or as are configured.

    Args:
        run: computes the reconstruction with the patterns of all processes; it can be pickled.
        scan: the validated scan, the same in every process.
        config: ``inference.devices`` processes are started, unless ``torchrun`` has started some.
        observer: receives progress and previews from this process, and may stop all of them.

    Raises:
        ConfigurationError: there are fewer devices than processes.
        WorkerError: a process ended.
        PtychoPINNError: any error of ``run``, in any process.
    """
    listener = observer or SilentObserver()
    if processes().size > 1:
        return run(scan, config, _AgreeingObserver(listener))
    size = config.inference.devices
    if size == 1:
        return run(scan, config, listener)
    logger.info('%d processes reconstruct %s together.', size, scan.name)
    with _local_processes(partial(_assist, run, config), [scan], size) as connected, working_as(connected):
        return run(scan, config, _AgreeingObserver(listener))


def train_together(
    train: Training, train_along: Training, scans: Sequence[RawScan], devices: int, observer: Observer
) -> None:
    """Train one model on ``scans`` in as many processes as there are, or as are configured.

    Args:
        train: called with the scans and an observer, in this process.
        train_along: the same for the processes that are started here; it can be pickled.
        scans: validated scans, the same in every process.
        devices: as many processes train, unless ``torchrun`` has started some.
        observer: receives the progress from this process, and may stop all of them.

    Raises:
        ConfigurationError: there are fewer devices than processes.
        WorkerError: a process ended.
        PtychoPINNError: any error of ``train`` or ``train_along``, in any process.
    """
    if processes().size > 1:
        train(scans, _AgreeingObserver(observer))
    elif devices == 1:
        train(scans, observer)
    else:
        logger.info('%d processes train together.', devices)
        with _local_processes(partial(_train_along, train_along), scans, devices) as connected, training_as(connected):
            train(scans, _AgreeingObserver(observer))


@contextmanager
def processes_of_environment(*, trains: bool = False) -> Iterator[Processes]:
    """Connect the processes that ``torchrun`` has started, and have them work together inside.

    Args:
        trains: whether they train a model.

    Raises:
        WorkerError: they could not be connected.
    """
    local_rank, local_size = (int(os.environ.get(name, default)) for name, default in _LOCAL)
    try:
        distributed.init_process_group(_backend(), timeout=timedelta(hours=1))
    except (RuntimeError, ValueError) as error:
        raise WorkerError(f'The processes could not be connected ({error}): check the options of torchrun.') from error
    try:
        connected = ConnectedProcesses(local_rank, local_size)
        with training_as(connected) if trains else working_as(connected):
            yield connected
    finally:
        distributed.destroy_process_group()


_LOCAL = (('LOCAL_RANK', '0'), ('LOCAL_WORLD_SIZE', '1'))


class _AgreeingObserver:
    """The observer of this process; the processes stop together."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_stage(self, stage: str) -> None:
        self._observer.on_stage(stage)

    def on_progress(self, done: int, goal: int) -> None:
        self._observer.on_progress(done, goal)

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        self._observer.on_losses(epoch, training, validation)

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        self._observer.on_preview(object_array)

    def on_result(self, reconstruction: Reconstruction) -> None:
        self._observer.on_result(reconstruction)

    def should_stop(self) -> bool:
        return processes().agree(stop=self._observer.should_stop())


@contextmanager
def _local_processes(assist: Assist, scans: Sequence[RawScan], size: int) -> Iterator[ConnectedProcesses]:
    """Start the other processes on this machine and connect them; they have ended, or are ended, at the exit."""
    _use_loopback()
    store = _store(0, is_first=True)
    shared = [replace(scan, counts=cast(Any, _shareable(scan.counts))) for scan in scans]
    context = torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call] # torch's own
        _run_connected, args=(size, store.port, os.getpid(), assist, shared), nprocs=size - 1, join=False
    )
    try:
        _wait_for(store, context.processes)
        _connect(store, 0, size)
        yield ConnectedProcesses(0, size)
    except BaseException:
        # They may wait for this process, and have nothing to write.
        for process in context.processes:
            process.kill()
        raise
    finally:
        _end(context.processes)


def _run_connected(
    number: int, size: int, port: int, first_process: int, assist: Assist, scans: Sequence[RawScan]
) -> None:
    """Work in a process of its own; its errors are raised in the first process, so nothing is printed here."""

    def end_with_first_process(_number: int, _frame: object) -> None:
        if os.getppid() != first_process:
            os._exit(1)

    # Ctrl-C and schedulers send their signals to all processes; the first one decides what they do.
    signal.signal(signal.SIGINT, end_with_first_process)
    ignore_stop_signals(signal.SIGINT)
    logging.getLogger().addHandler(logging.NullHandler())
    rank = number + 1
    store = _store(port, is_first=False)
    store.set(_ready(rank), '')
    _connect(store, rank, size)
    try:
        assist([_with_counts(scan) for scan in scans], ConnectedProcesses(rank, size))
    except Exception as error:
        logger.debug('Ended: %s', error)  # the first process has raised it
    finally:
        distributed.destroy_process_group()
    # The first process waits for this one, which has nothing to write: the clean-up of torch and Python takes seconds.
    os._exit(0)


def _assist(run: Run, config: Config, scans: Sequence[RawScan], connected: ConnectedProcesses) -> None:
    quiet = config.inference.model_copy(update={'preview_interval': 0})
    with working_as(connected):
        run(scans[0], config.model_copy(update={'inference': quiet}), _AgreeingObserver(SilentObserver()))


def _train_along(train: Training, scans: Sequence[RawScan], connected: ConnectedProcesses) -> None:
    with warnings.catch_warnings(action='ignore'), training_as(connected):
        train(scans, _AgreeingObserver(SilentObserver()))


def _with_counts(scan: RawScan) -> RawScan:
    counts: object = scan.counts
    return replace(scan, counts=counts.array()) if isinstance(counts, SharedArray) else scan


def _connect(store: TCPStore, rank: int, size: int) -> None:
    distributed.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=timedelta(hours=1))


def _store(port: int, *, is_first: bool) -> TCPStore:
    """Return the table by which the processes find each other; port 0 takes a free one."""
    store: TCPStore = distributed.TCPStore(  # type: ignore[attr-defined] # torch's own
        '127.0.0.1', port, is_master=is_first, wait_for_workers=False
    )
    return store


def _backend() -> str:
    return 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() and distributed.is_nccl_available() else 'gloo'


def _wait_for(store: TCPStore, others: list[Any]) -> None:
    """Wait until every process has started, or one has ended: torch would wait for that one until its time limit."""
    deadline = time.monotonic() + START_TIMEOUT_S
    waiting = dict(enumerate(others, 1))
    while waiting:
        for rank, process in list(waiting.items()):
            if store.check([_ready(rank)]):
                del waiting[rank]
            elif not process.is_alive() or time.monotonic() > deadline:
                how = 'did not start in time' if process.is_alive() else f'ended with exit code {process.exitcode}'
                raise WorkerError(
                    f'Process {rank} of {len(others) + 1} {how} before its work began: lower the setting "devices", or '
                    'see its messages above.'
                )
        time.sleep(_POLL_S)


def _ready(rank: int) -> str:
    return f'ready {rank}'


def _end(others: list[Any]) -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
    deadline = time.monotonic() + END_TIMEOUT_S
    for process in others:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _shareable(counts: Any) -> Any:  # noqa: ANN401 - an array, or what is read like one
    """Return what a process on this machine can open: the file of the patterns, or shared memory."""
    if not isinstance(counts, np.ndarray):
        return counts
    base: object = counts.base
    if isinstance(counts, np.memmap) and isinstance(base, mmap.mmap) and counts.flags.c_contiguous:
        return PatternFile(cast(Path, counts.filename), counts.dtype, cast(Any, counts.shape), counts.offset)
    content = torch.empty(counts.nbytes, dtype=torch.uint8)
    content.share_memory_()  # type: ignore[no-untyped-call] # torch's own
    content.numpy().view(counts.dtype).reshape(counts.shape)[...] = counts
    return SharedArray(content, counts.shape, counts.dtype.str)


def _use_loopback() -> None:
    """Have gloo connect over the loopback interface: the name of this machine may lead nowhere."""
    present = {name for _, name in socket.if_nameindex()}
    name = next((name for name in _LOOPBACK_NAMES if name in present), None)
    if name is not None:
        os.environ.setdefault('GLOO_SOCKET_IFNAME', name)
