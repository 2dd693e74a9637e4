"""What training and inference ask of a network, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from ..physics.forward import Frames

Descend = Callable[[Tensor], Tensor]
"""Physics: canvas ``(B, h, w)`` complex to descent direction of the same shape, not preconditioned."""


class Measurement(NamedTuple):
    """All that a generator is told of the patterns of ``B`` canvases."""

    descend: Descend
    """Physics of all the patterns together."""
    batches: Iterable[Frames]
    """The patterns, frames ``(B, C, H, W)`` on the same canvases, part by part; may be gone through again."""
    start: Tensor
    """Where to start, ``(B, h, w)`` complex64: ones, if nothing is known."""
    illumination: Tensor
    """Photons per pixel for a transparent object, ``(B, h, w)`` real."""


class Generator(nn.Module, ABC):
    """A network that makes an object of measured patterns."""

    default_steps: int
    """Canvases that it yields for a reconstruction unless asked otherwise."""
    most_steps: int | None = None
    """Canvases it can yield at most; None where there is no limit."""
    is_anchored: bool = False
    """Whether at inference every position shall have a window of its own; otherwise windows share no position."""

    @abstractmethod
    def unroll(self, measured: Measurement, steps: int | None = None) -> Iterator[Tensor]:
        """Yield ever better canvases; the last one is the answer.

        Args:
            measured: the patterns and their physics.
            steps: number of canvases to yield; as in training if None.

        Yields:
            ``(B, h, w)`` complex64.
        """

    @abstractmethod
    def window_size(self, asked: int, trained: int) -> int:
        """Positions to reconstruct on one canvas at inference, 0 for the whole scan.

        Args:
            asked: the user's wish, 0 where there is none.
            trained: size of the groups that the network was trained on.
        """
