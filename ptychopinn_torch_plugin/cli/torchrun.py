"""A command that torchrun has started as several processes: they work together, and the first one reports."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .signals import Interrupted

_NAMES: Final = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
"""Variables of the environment that torchrun sets for every process."""


def is_one_of_several() -> bool:
    """Return whether this process is one of several that torchrun has started."""
    return all(name in os.environ for name in _NAMES) and os.environ['WORLD_SIZE'] != '1'


@contextmanager
def reporting_process(parsed: argparse.Namespace, *, trains: bool = False) -> Iterator[bool]:
    """Connect the processes of torchrun, and yield whether this one writes and reports.

    The others end without a result and without a message at the exit: an error in one of them is raised in the first
    process, too. A command that torchrun has not started is the only process, and reports.
    """
    if not is_one_of_several():
        yield True
        return
    from ..engines.distributed import processes_of_environment

    is_first = True
    try:
        with processes_of_environment(trains=trains) as connected:
            is_first = connected.rank == 0
            if not is_first:
                parsed.quiet = True
                logging.getLogger(__package__.partition('.')[0]).setLevel(logging.CRITICAL)
            yield is_first
    except (Exception, Interrupted):
        if is_first:
            raise
    if not is_first:
        raise SystemExit(0)
