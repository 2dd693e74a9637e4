"""Search for affine errors of the positions: scale, rotation, aspect and shear of the scan.

With the positions ``r`` about their centre, the linear map ``M = scale * rotation * stretch`` minimises the deviance of
a short refinement of the scan with the positions ``M r``. The refinement uses the central half of the detector: such
errors and the curvature of the probe compensate each other, so gradient steps hardly find them, but this deviance has
one minimum per parameter. The scale is found by Brent's bounded method, each other parameter at the vertex of a
parabola through three values. The result is reported and never applied: it changes the size of the image, and only the
user knows the stage.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ..config import KernelChoice, RefinementConfig
from ..data.scan import RawScan
from ..data.tensors import ScanTensors, initial_state
from .downsampling import coarse_scan, compact_part
from .solver import Solver, final_deviance

logger = logging.getLogger(__name__)

EPOCHS = 15
"""Enough for the object, too few for the probe to compensate a wrong scale."""
SCALES = (0.7, 1.4)
"""Range of the search; the minimum of the deviance is about as wide."""
SCALE_TOLERANCE = 0.005
PARABOLA_STEPS = {'rotation': 0.02, 'aspect': 0.02, 'shear': 0.02}
"""Distance of the two outer points of the parabola of each parameter, radians or relative."""
MAX_POSITIONS = 512
"""A larger scan is searched in a compact part of it, which has the same geometry."""


@dataclass(frozen=True)
class Geometry:
    """Parameters of the linear map that is applied to the given positions about their centre."""

    scale: float = 1.0
    rotation: float = 0.0
    """Radians, from y towards x."""
    aspect: float = 0.0
    """Stretch along y minus stretch along x."""
    shear: float = 0.0
    """Radians."""
    given_deviance: float = math.nan
    """Deviance per pixel of the short refinement with the given positions."""
    found_deviance: float = math.nan
    """The same with the mapped positions."""

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the linear map of the positions, ``(2, 2)``, acting on (y, x)."""
        cosine, sine = math.cos(self.rotation), math.sin(self.rotation)
        rotation = np.array([[cosine, -sine], [sine, cosine]])
        stretch = np.array([[1 + self.aspect / 2, self.shear / 2], [self.shear / 2, 1 - self.aspect / 2]])
        matrix: npt.NDArray[np.float64] = self.scale * rotation @ stretch
        return matrix

    def sentence(self) -> str:
        """Return the result as a sentence for the log."""
        return (
            f'Geometry search: positions scaled by {self.scale:.3f}, rotated by {math.degrees(self.rotation):.2f} '
            f'degrees (y towards x), stretched by {100 * self.aspect:.1f} % along y against x and sheared by '
            f'{math.degrees(self.shear):.2f} degrees would reduce the deviance of a short coarse refinement from '
            f'{self.given_deviance:.2f} to {self.found_deviance:.2f}. The positions were not changed: a wrong scale '
            'and a wrong curvature of the probe cannot be distinguished, and scaling a scan changes the image size.'
        )


def search_geometry(
    scan: RawScan,
    config: RefinementConfig,
    device: torch.device,
    should_stop: Callable[[], bool],
    kernels: KernelChoice = 'auto',
) -> Geometry:
    """Find scale, then rotation, aspect and shear, each at the minimum of the deviance of a short coarse refinement.

    Args:
        scan: the validated scan.
        config: the likelihood is used.
        device: where to compute.
        should_stop: called after every epoch; the parameters found until then are returned.
        kernels: what computes on a CPU.
    """
    coarse, _ = coarse_scan(compact_part(scan, MAX_POSITIONS))
    short = RefinementConfig(
        refine_epochs=EPOCHS, refine_positions=False, likelihood=config.likelihood, smoothing=0.0, probe_modes=0
    )

    def deviance_of(geometry: Geometry) -> float:
        if should_stop():
            return math.inf
        tensors = ScanTensors(replace(coarse, positions=coarse.positions @ geometry.matrix().T), device, kernels)
        return final_deviance(Solver(tensors, initial_state(tensors), short, MAX_POSITIONS), should_stop)

    given = deviance_of(Geometry())
    best, found = _best_scale(deviance_of, given)
    for name, distance in PARABOLA_STEPS.items():
        best, found = _best_along(deviance_of, best, found, name, distance)
    return replace(best, given_deviance=given, found_deviance=found)


def _best_scale(deviance_of: Callable[[Geometry], float], given: float) -> tuple[Geometry, float]:
    from scipy.optimize import minimize_scalar  # few runs need it, and its import takes long

    low, high = (math.log(scale) for scale in SCALES)
    answer = minimize_scalar(
        lambda value: deviance_of(Geometry(scale=math.exp(value))),
        bounds=(low, high),
        method='bounded',
        options={'xatol': SCALE_TOLERANCE, 'maxiter': 10},
    )
    if not answer.fun < given:
        return Geometry(), given
    return Geometry(scale=math.exp(float(answer.x))), float(answer.fun)


def _best_along(
    deviance_of: Callable[[Geometry], float], best: Geometry, found: float, name: str, distance: float
) -> tuple[Geometry, float]:
    """Return the vertex of the parabola through three values, if its deviance is smaller."""
    below, above = (deviance_of(replace(best, **{name: sign * distance})) for sign in (-1.0, 1.0))
    curvature = below + above - 2 * found
    if not (math.isfinite(curvature) and curvature > 0):
        return best, found
    vertex = 0.5 * distance * (below - above) / curvature
    candidate = replace(best, **{name: float(np.clip(vertex, -2 * distance, 2 * distance))})
    value = deviance_of(candidate)
    return (candidate, value) if value < found else (best, found)
