"""Selection of one of two probes by the patterns of a scan."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import torch

from ..config import KernelChoice, RefinementConfig
from ..data.scan import RawScan
from ..data.tensors import ScanTensors, initial_state
from .downsampling import compact_part
from .solver import Solver, final_deviance

logger = logging.getLogger(__name__)

EPOCHS = 10
"""Enough to distinguish a probe from one that is out of focus; the object need not be sharp."""
POSITIONS = 256
MARGIN = 0.98
"""The other probe is preferred if it reduces the deviance by two per cent at least; equal probes change nothing."""


def prefers(
    scan: RawScan,
    other_probe: npt.NDArray[np.complexfloating],
    device: torch.device,
    kernels: KernelChoice = 'auto',
) -> bool:
    """Return whether ``other_probe`` explains a compact part of ``scan`` better than the scan's own probe.

    With each probe held fixed, an object is refined from a transparent one for a few epochs; the deviances decide.

    Args:
        scan: the validated scan.
        other_probe: probe modes, ``(M, H, W)`` complex, any scale.
        device: where to compute.
        kernels: what computes on a CPU.
    """
    part = compact_part(scan, POSITIONS)
    fixed = RefinementConfig(
        refine_epochs=EPOCHS, refine_probe=False, refine_positions=False, likelihood='amplitude', smoothing=0.0
    )
    tensors = ScanTensors(part, device, kernels)
    own, other = (
        final_deviance(Solver(tensors, initial_state(tensors, probe), fixed, POSITIONS))
        for probe in (None, other_probe)
    )
    is_better = other < MARGIN * own
    logger.info(
        'The probe of the %s is used; a short refinement gives the deviance per pixel %.3f with that of the model and '
        '%.3f with that of the product.',
        'model' if is_better else 'product',
        other,
        own,
    )
    return is_better
