"""Refuse reconstructions with values that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ReconstructionError

if TYPE_CHECKING:
    from ..types import Reconstruction

_REMEDIES = {
    'object': 'Check the probe and the bad-pixel mask of the product, and whether the patterns are photon counts',
    'probe': 'Switch off "Refine the probe" or start it later ("Probe from epoch")',
    'positions': 'Switch off "Refine the positions" or start it later ("Positions from epoch")',
    'intensities': 'Switch off "Refine the intensities" or start it later ("Intensities from epoch")',
    'losses': 'Check the probe and the bad-pixel mask of the product',
}


def refuse_non_finite(reconstruction: Reconstruction, name: str) -> None:
    """Raise if a reconstruction holds NaN or infinity.

    Args:
        reconstruction: the result for the scan.
        name: name of the scan, for the message.

    Raises:
        ReconstructionError: object, probe, positions, intensities or losses hold a value that is not finite.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        'object': reconstruction.object_array,
        'probe': reconstruction.probe,
        'positions': reconstruction.positions,
        'intensities': reconstruction.intensities,
        'losses': np.array([record.training for record in reconstruction.losses]),
    }
    for field, array in arrays.items():
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise ReconstructionError(
                f'The reconstruction of {name} diverged: {bad} of {array.size} values of its {field} are not finite, '
                f'and no result is written. {_REMEDIES[field]}; fewer steps or epochs stop before it diverges.'
            )
