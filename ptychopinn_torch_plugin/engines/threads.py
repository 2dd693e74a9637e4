"""Division of work among the threads of a CPU.

Each thread accumulates its own sums, which are then added in a fixed order, so the result does not depend on the timing
of the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

Item = TypeVar('Item')


class Summable(Protocol):
    """Sums over some items, to which those over others can be added."""

    def add(self, other: Any, /) -> None:  # noqa: ANN401 - its own type
        """Add the sums over other items."""


Sums = TypeVar('Sums', bound=Summable)


def sum_in_threads(items: Sequence[Item], sum_of: Callable[[Sequence[Item]], Sums], device: torch.device) -> Sums:
    """Return ``sum_of(items)``, computed in parts on as many threads as torch may use; in one on other devices.

    Args:
        items: the work, in its fixed order.
        sum_of: returns the sums over some consecutive items; called once per thread.
        device: where it computes.
    """
    count = min(torch.get_num_threads(), len(items)) if device.type == 'cpu' else 1
    if count <= 1:
        with torch.no_grad():
            return sum_of(items)
    shares = [items[number * len(items) // count : (number + 1) * len(items) // count] for number in range(count)]

    def sum_of_share(share: Sequence[Item]) -> Sums:
        with torch.no_grad():  # the mode belongs to the thread, so it is set in each
            return sum_of(share)

    with _single_threaded_torch(), ThreadPoolExecutor(count) as pool:
        total, *others = pool.map(sum_of_share, shares)
    for other in others:
        total.add(other)
    return total


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """Let every torch operation use one thread while whole batches are divided among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
