"""When a refinement is done: the misfit falls by less than the photon noise of the object can show.

The deviance ``D`` is a mean over ``m`` measured pixels. Photon noise makes each of the ``p`` pixels of the object
uncertain by about as much as a change of one in ``m D``. Where the model explains the patterns worse than photon noise,
``D`` is above 1 and the unit grows by that factor. The progress of an epoch is therefore::

    (least D of the epochs before the last 10 - least D of the last 10) m / (p max(1, D))

and the refinement is done when it is below ``LEAST_PROGRESS``. The least value of ten epochs is not affected by the
oscillations of the momentum and its restarts. The rule begins 30 epochs after the last quantity has joined the
refinement: low frequencies of the phase converge slowly and hardly change the deviance of a faint scan.

The threshold and the 30 epochs were chosen on the simulated scans of ``benchmarks/quality`` (:doc:`/benchmarks`): the
similarity to the truth stays within .002 of that of all epochs, or is larger.
"""

from __future__ import annotations

import math

from ..config import RefinementConfig
from ..data.tensors import ScanTensors

WINDOW = 10
"""Epochs that are compared with those before them."""
LEAST_PROGRESS = 0.005
"""Fall of the deviance over a window, in units of the photon noise of one object pixel, that ends the refinement."""


class StoppingRule:
    """Decides after every epoch from its deviance whether the refinement is done; the same in every process.

    Args:
        tensors: the scan; nothing is read from its device.
        object_shape: shape ``(h, w)`` of the refined object array.
        config: the refined quantities, their first epochs, and whether the rule is used.
    """

    def __init__(self, tensors: ScanTensors, object_shape: tuple[int, int], config: RefinementConfig) -> None:
        measured = tensors.size * int((~tensors.scan.bad_pixels).sum())
        self._is_used = config.stop_when_done
        self._per_pixel = measured / math.prod(object_shape)
        self._first = _last_start(config) + 3 * WINDOW
        self._deviances: list[float] = []

    def is_done(self, deviance: float) -> bool:
        """Return whether the refinement is done after one more epoch, which had this deviance per measured pixel."""
        self._deviances.append(deviance)
        if not self._is_used or len(self._deviances) < self._first:
            return False
        before, last = min(self._deviances[:-WINDOW]), min(self._deviances[-WINDOW:])
        return (before - last) * self._per_pixel < LEAST_PROGRESS * max(1.0, last)


def _last_start(config: RefinementConfig) -> int:
    """Return the number of epochs before the last refined quantity joins."""
    starts = (
        (config.refine_probe, config.probe_start),
        (config.refine_positions, config.positions_start),
        (config.refine_intensity, config.intensity_start),
    )
    return max((start for is_refined, start in starts if is_refined), default=0)
