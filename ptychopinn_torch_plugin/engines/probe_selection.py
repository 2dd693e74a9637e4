"""Two probes for one scan: which one do the patterns prefer?"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import torch

from ..config import RefinementConfig
from ..data.scan import RawScan
from ..data.tensors import ScanTensors
from .downsampling import compact_part
from .solver import Solver

logger = logging.getLogger(__name__)

EPOCHS = 10
"""Enough to tell a probe from one that is out of focus; the object need not be sharp."""
POSITIONS = 256
MARGIN = 0.98
"""A challenger must explain the patterns better by two per cent: what is as good changes nothing."""


def prefers(scan: RawScan, challenger: npt.NDArray[np.complexfloating], device: torch.device) -> bool:
    """Whether a compact part of ``scan`` is explained better by ``challenger`` than by the scan's own probe.

    Either probe is held fixed while an object is refined from flat for a few epochs; the misfits decide.

    Args:
        scan: the validated scan.
        challenger: probe modes, ``(M, H, W)`` complex, any scale.
        device: where to compute.
    """
    part = compact_part(scan, POSITIONS)
    fixed = RefinementConfig(
        refine_epochs=EPOCHS, refine_probe=False, refine_positions=False, likelihood='amplitude', smoothing=0.0
    )

    def misfit(probe: npt.NDArray[np.complexfloating] | None) -> float:
        solver = Solver(ScanTensors(part, device, probe=probe), fixed, POSITIONS)
        deviances: list[float] = []

        def listen(_epoch: int, deviance: float) -> bool:
            deviances.append(deviance)
            return False

        with torch.inference_mode():
            solver.run(listen)
        return deviances[-1]

    own, other = misfit(None), misfit(challenger)
    is_better = other < MARGIN * own
    logger.info(
        'After %d epochs the probe of the model leaves a misfit of %.3f, that of the product %.3f: %s is used.',
        EPOCHS,
        other,
        own,
        'the probe of the model' if is_better else 'that of the product',
    )
    return is_better
