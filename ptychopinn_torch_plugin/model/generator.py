"""What training and inference ask of a network, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from torch import Tensor, nn

Descend = Callable[[Tensor], Tensor]
"""Physics: canvas ``(B, h, w)`` complex to descent direction of the same shape, not preconditioned."""


class Generator(nn.Module, ABC):
    """A network that makes an object of measured patterns, which it knows through their physics alone."""

    @abstractmethod
    def unroll(
        self, descend: Descend, start: Tensor, illumination: Tensor, steps: int | None = None
    ) -> Iterator[Tensor]:
        """Yield ever better canvases; the last one is the answer.

        Args:
            descend: physics of the measured patterns.
            start: ``(B, h, w)`` complex64, where to start (ones, if nothing is known).
            illumination: photons per pixel for a transparent object, ``(B, h, w)`` real.
            steps: number of canvases to yield; as in training if None.

        Yields:
            ``(B, h, w)`` complex64.
        """
