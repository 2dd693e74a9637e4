"""What training and inference require of every network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from ..physics.forward import PatternBatch
from ..physics.kernels.reference import REFERENCE

ObjectUpdate = Callable[[Tensor], Tensor]
"""Object array ``(B, h, w)`` complex to its update ``-1/4 dD/dO*`` of the same shape, not preconditioned."""


class Measurement(NamedTuple):
    """All that a generator receives about the patterns of ``B`` object arrays."""

    update: ObjectUpdate
    """Update of the object by all the patterns together."""
    batches: Iterable[PatternBatch]
    """The patterns ``(B, C, H, W)`` on the same object arrays, in parts; can be iterated more than once."""
    start: Tensor
    """Initial object, ``(B, h, w)`` complex64: ones if nothing is known."""
    illumination: Tensor
    """Photons per pixel for a transparent object, ``(B, h, w)`` real."""
    precondition: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = REFERENCE.precondition
    """The preconditioner of :class:`~ptychopinn_torch_plugin.physics.kernels.sums.Kernels`; the default one can be
    differentiated, like those of the next two."""
    network_input: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor] = REFERENCE.network_input
    network_correction: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] = (
        REFERENCE.network_correction
    )


class Generator(nn.Module, ABC):
    """A network that reconstructs an object from measured patterns."""

    default_steps: int
    """Object arrays that it yields for a reconstruction unless a number is given."""
    most_steps: int | None = None
    """Object arrays that it can yield at most; None where there is no limit."""
    is_anchored: bool = False
    """Whether inference gives every position a window of its own; otherwise windows share no position."""

    @abstractmethod
    def unroll(self, measured: Measurement, steps: int | None = None) -> Iterator[Tensor]:
        """Yield successive estimates of the object; the last one is the result.

        Args:
            measured: the patterns and their physics.
            steps: number of estimates to yield; as in training if None.

        Yields:
            ``(B, h, w)`` complex64.
        """

    @abstractmethod
    def window_size(self, requested: int, trained: int) -> int:
        """Return the positions to reconstruct in one object array at inference, 0 for the whole scan.

        Args:
            requested: the user's setting, 0 for automatic.
            trained: size of the groups that the network was trained on.
        """
