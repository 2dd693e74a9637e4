"""No number that is not finite leaves the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ReconstructionError

if TYPE_CHECKING:
    from ..types import Reconstruction

_REMEDIES = {
    'object': 'Check the probe and the bad-pixel mask of the product and look for counts that are no photons',
    'probe': 'Switch off "Refine the probe" or let it move later ("Probe from epoch")',
    'positions': 'Switch off "Refine the positions" or let them move later ("Positions from epoch")',
    'losses': 'Check the probe and the bad-pixel mask of the product',
}


def refuse_non_finite(reconstruction: Reconstruction, name: str) -> None:
    """See to it that no NaN and no infinity is handed over.

    Args:
        reconstruction: what came of the scan.
        name: what the scan is called, for the message.

    Raises:
        ReconstructionError: object, probe, positions or losses hold a number that is not finite.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        'object': reconstruction.object_array,
        'probe': reconstruction.probe,
        'positions': reconstruction.positions,
        'losses': np.array([record.training for record in reconstruction.losses]),
    }
    for field, array in arrays.items():
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise ReconstructionError(
                f'The reconstruction of {name} diverged: {bad} of {array.size} numbers of its {field} are not finite, '
                f'and nothing is handed over. {_REMEDIES[field]}; fewer steps or epochs end it earlier.'
            )
