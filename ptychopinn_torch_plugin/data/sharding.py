"""The processes that reconstruct one scan together or train one model together, and the part of each.

All processes run the same program on the same scans. Each computes the sums over its own part of the patterns
(:meth:`Processes.share`), the sums are exchanged (:meth:`Processes.sum`), and every process takes the same step. An
exchange of flags precedes every exchange of arrays, so that all processes know whether one of them has failed or is
asked to stop. An error in one process therefore ends all of them with the same message, and none waits for another one
that has ended.

In a training, torch exchanges the gradients while it computes them, without flags. A process that fails there cannot
exchange flags with the others, which wait for its gradients: it stores its error in the table by which the processes
have found each other, and ends (:func:`training_as`). The others lose the connection, and raise that error.

:mod:`ptychopinn_torch_plugin.engines.distributed` starts and connects the processes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from .. import errors
from ..errors import PtychoPINNError, WorkerError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

logger = logging.getLogger(__name__)

_T = TypeVar('_T')

_FAILURE = 'failure'
"""Name of the first error in the table of the processes."""
_FAILED, _STOP = 0, 1
"""Indices of the flags that precede every exchange."""


def share_of(count: int, rank: int, size: int) -> range:
    """Return the part of process ``rank`` of ``size`` processes of ``count`` items, possibly none."""
    return range(count * rank // size, count * (rank + 1) // size)


class Failure(NamedTuple):
    """An error as it is sent to the other processes."""

    kind: str
    message: str


class Processes:
    """The processes that work together; this one alone, unless a subclass says otherwise."""

    rank = 0
    """Number of this process, from 0; process 0 reports and writes."""
    size = 1
    """Number of processes."""
    local_rank = 0
    """Number of this process on its machine, from 0: the number of its GPU."""
    local_size = 1
    """Number of processes on this machine."""

    def share(self, count: int) -> range:
        """Return this process's part of ``count`` items, possibly none."""
        return share_of(count, self.rank, self.size)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace ``tensors``, real or complex, on one device, by their sums over all processes.

        They are exchanged together, as float32. Every process calls this with tensors of the same shapes.

        Raises:
            WorkerError: a process has ended.
            Exception: the error of another process, see :meth:`tell`.
        """

    def agree(self, *, stop: bool = False) -> bool:
        """Return whether any process is asked to ``stop``. Every process calls this.

        Raises:
            WorkerError: a process has ended.
            Exception: the error of another process, see :meth:`tell`.
        """
        return stop

    def tell(self, error: BaseException) -> None:
        """Send ``error`` to the other processes, which raise it in their next exchange.

        They raise errors of this package and ``MemoryError`` as they are, and others as ``RuntimeError`` with the same
        message. An error that came from another process is not sent again.
        """

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Return what ``make`` returns in the first process, where alone it is called. Every process calls this.

        Raises:
            WorkerError: a process has ended.
        """
        return make()


class ConnectedProcesses(Processes):
    """Processes connected by torch.distributed.

    Args:
        local_rank: number of this process on its machine.
        local_size: number of processes on this machine.
    """

    def __init__(self, local_rank: int, local_size: int) -> None:
        from torch import distributed

        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.local_rank, self.local_size = local_rank, local_size
        # Flags are exchanged between CPUs: this waits for no GPU, and notices at once when a process ends.
        self._control: ProcessGroup = distributed.new_group(backend='gloo')
        self._received: BaseException | None = None
        self._table = distributed.distributed_c10d._get_default_store()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """As :meth:`Processes.sum`."""
        import torch
        from torch import distributed

        parts = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
        buffer = torch.cat([part.to(torch.float32).flatten() for part in parts])
        self.agree()
        with _named_failure(self.size):
            distributed.all_reduce(buffer)
        for part, total in zip(parts, torch.split(buffer, [part.numel() for part in parts]), strict=True):
            part.copy_(total.view(part.shape))

    def agree(self, *, stop: bool = False) -> bool:
        """As :meth:`Processes.agree`."""
        flags = self._exchange_flags([False, stop])
        if flags[_FAILED]:
            self._received = _error_of(self._exchange_failures(None))
            raise self._received
        return flags[_STOP]

    def tell(self, error: BaseException) -> None:
        """As :meth:`Processes.tell`."""
        if isinstance(error, WorkerError):  # the connection is lost
            return
        cause: BaseException | None = error
        while cause is not None:
            if cause is self._received:
                return
            cause = cause.__cause__
        try:
            self._exchange_flags([True, False])
            self._exchange_failures(Failure(type(error).__name__, str(error)))
        except WorkerError as failure:  # the others have ended: nobody is left to be told
            logger.debug('%s', failure)

    def from_first(self, make: Callable[[], _T]) -> _T:
        """As :meth:`Processes.from_first`."""
        from torch import distributed

        made = [make() if self.rank == 0 else None]
        with _named_failure(self.size):
            distributed.broadcast_object_list(made, src=0, group=self._control)
        return cast(_T, made[0])

    def store_failure(self, error: Exception) -> None:
        """Store ``error`` for the other processes, which find it when the connection to this one is lost."""
        if self.stored_failure() is None:
            self._table.set(_FAILURE, json.dumps([self.rank, type(error).__name__, str(error)]))

    def stored_failure(self) -> Exception | None:
        """Return the first error that a process has stored, as it is raised here; None where there is none."""
        try:
            if not self._table.check([_FAILURE]):
                return None
            rank, kind, message = json.loads(self._table.get(_FAILURE))
        except RuntimeError as error:  # the process that holds the table has ended
            logger.debug('%s', error)
            return None
        return _raised(Failure(kind, message), rank, self.size)

    def _exchange_flags(self, flags: list[bool]) -> list[bool]:
        import torch
        from torch import distributed

        both = torch.tensor(flags, dtype=torch.int32)
        with _named_failure(self.size):
            distributed.all_reduce(both, distributed.ReduceOp.MAX, group=self._control)
        return [bool(flag) for flag in both.tolist()]

    def _exchange_failures(self, failure: Failure | None) -> list[Failure | None]:
        from torch import distributed

        failures: list[Failure | None] = [None] * self.size
        with _named_failure(self.size):
            distributed.all_gather_object(failures, failure, group=self._control)
        return failures


_present = Processes()


def processes() -> Processes:
    """Return the processes that reconstruct the present scan together."""
    return _present


@contextmanager
def working_as(connected: Processes) -> Iterator[Processes]:
    """Have :func:`processes` return ``connected`` inside, and send an error that is raised inside to the others."""
    global _present  # noqa: PLW0603 - there is one per process, as there is one default group of torch.distributed
    before, _present = _present, connected
    try:
        yield connected
        connected.agree()  # no process leaves before all are done, so that an error of the slowest reaches all
    except Exception as error:
        connected.tell(error)
        raise
    finally:
        _present = before


@contextmanager
def training_as(connected: ConnectedProcesses) -> Iterator[ConnectedProcesses]:
    """Have :func:`processes` return ``connected`` inside, where torch exchanges gradients.

    An error that is raised inside is stored for the other processes; this one must then end, or close its connections.

    Raises:
        WorkerError: another process has ended.
        Exception: the error of another process, as :meth:`Processes.tell` describes.
    """
    global _present  # noqa: PLW0603 - as in working_as
    before, _present = _present, connected
    try:
        yield connected
        connected.agree()
    except Exception as error:
        elsewhere = connected.stored_failure()
        if elsewhere is not None:
            raise elsewhere from error
        if not isinstance(error, WorkerError) and _is_lost_connection(error):
            raise _ended(connected.size) from error
        connected.store_failure(error)
        raise
    finally:
        _present = before


@contextmanager
def working_alone() -> Iterator[None]:
    """Have :func:`processes` return this process alone inside: the others do not take part in what it does there."""
    global _present  # noqa: PLW0603 - as in working_as
    before, _present = _present, Processes()
    try:
        yield
    finally:
        _present = before


def _is_lost_connection(error: Exception) -> bool:
    """Return whether torch raised ``error`` because another process has ended; gloo has no class for that."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and 'gloo' in str(error))


def _error_of(failures: Sequence[Failure | None]) -> Exception:
    """Return the first of ``failures`` as an error."""
    rank, failure = next((rank, failure) for rank, failure in enumerate(failures) if failure is not None)
    return _raised(failure, rank, len(failures))


def _raised(failure: Failure, rank: int, size: int) -> Exception:
    """Return the error of process ``rank`` as the other processes raise it."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, PtychoPINNError):
        return kind(failure.message)
    if failure.kind == 'MemoryError':
        return MemoryError(failure.message)
    return RuntimeError(f'In process {rank} of {size}: {failure.kind}: {failure.message}')


@contextmanager
def _named_failure(size: int) -> Iterator[None]:
    """Turn the error of a lost connection into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise _ended(size) from error


def _ended(size: int) -> WorkerError:
    # Not "out of memory": this error must not be taken for one of this process.
    return WorkerError(
        f'One of the {size} processes that work together has ended. The system may have killed it because it needed '
        'too much memory: see the log of the system, or use fewer processes.'
    )
