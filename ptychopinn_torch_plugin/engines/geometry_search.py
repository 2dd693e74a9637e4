"""A search for errors that all positions share: scale, rotation, aspect and shear of the scan.

Such errors trade off against the curvature of the probe, so gradient steps hardly find them. A short refinement of the
central half of the detector, which sees a coarse object, does: its misfit has one minimum per parameter. What is found
is told, never applied: it changes the size of everything in the image, and only the user knows the stage.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar

from ..config import RefinementConfig
from ..data.scan import RawScan
from ..data.tensors import ScanTensors
from .downsampling import coarse_scan, compact_part
from .solver import Solver

logger = logging.getLogger(__name__)

EPOCHS = 15
"""Enough for the object, too few for the probe to make up for a wrong scale."""
SCALES = (0.7, 1.4)
"""Range that is searched; the misfit is a bowl about as wide."""
SCALE_TOLERANCE = 0.005
PROBES_RAD = {'rotation': 0.02, 'aspect': 0.02, 'shear': 0.02}
"""Distance at which the misfit is looked at to both sides, for the parameters that are nearly right."""
MAX_POSITIONS = 512
"""A compact part of a larger scan is searched: its geometry is that of the whole."""


@dataclass(frozen=True)
class Geometry:
    """Factors that turn the given positions, relative to their centre, into better ones."""

    scale: float = 1.0
    rotation: float = 0.0
    """Radians, from y towards x."""
    aspect: float = 0.0
    """Stretch of y less that of x."""
    shear: float = 0.0
    """Radians."""
    given_misfit: float = math.nan
    """Deviance per pixel of the short refinement with the given positions."""
    found_misfit: float = math.nan
    """The same with the positions that this geometry makes."""

    def matrix(self) -> npt.NDArray[np.float64]:
        """The linear map of the positions, ``(2, 2)``, acting on (y, x)."""
        cosine, sine = math.cos(self.rotation), math.sin(self.rotation)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        stretch = np.array([[1 + self.aspect / 2, self.shear / 2], [self.shear / 2, 1 - self.aspect / 2]])
        matrix: npt.NDArray[np.float64] = self.scale * turn @ stretch
        return matrix

    def sentence(self) -> str:
        """What was found, in words."""
        return (
            f'Geometry search: positions scaled by {self.scale:.3f}, turned by {math.degrees(self.rotation):.2f} '
            f'degrees (y towards x), stretched by {100 * self.aspect:.1f} % along y against x and sheared by '
            f'{math.degrees(self.shear):.2f} degrees would bring the misfit of a short coarse refinement from '
            f'{self.given_misfit:.2f} to {self.found_misfit:.2f}. Nothing was applied: a wrong scale and a wrong '
            'curvature of the probe look alike, and a rescaled scan means an image of another size.'
        )


def search_geometry(
    scan: RawScan, config: RefinementConfig, device: torch.device, should_stop: Callable[[], bool]
) -> Geometry:
    """Find scale, then rotation, aspect and shear, each at the minimum of the misfit of a short coarse refinement.

    Args:
        scan: the validated scan.
        config: the likelihood is used.
        device: where to compute.
        should_stop: asked between refinements; what was found until then is returned.
    """
    coarse, _ = coarse_scan(compact_part(scan, MAX_POSITIONS))
    short = RefinementConfig(
        refine_epochs=EPOCHS, refine_positions=False, likelihood=config.likelihood, smoothing=0.0, probe_modes=0
    )

    def misfit(geometry: Geometry) -> float:
        if should_stop():
            return math.inf
        moved = replace(coarse, positions=coarse.positions @ geometry.matrix().T)
        solver = Solver(ScanTensors(moved, device), short, MAX_POSITIONS)
        deviances: list[float] = []

        def listen(_epoch: int, deviance: float) -> bool:
            deviances.append(deviance)
            return should_stop()

        with torch.inference_mode():
            solver.run(listen)
        return deviances[-1]

    given = misfit(Geometry())
    best, found = _best_scale(misfit, given)
    for name, distance in PROBES_RAD.items():
        best, found = _best_along(misfit, best, found, name, distance)
    return replace(best, given_misfit=given, found_misfit=found)


def _best_scale(misfit: Callable[[Geometry], float], given: float) -> tuple[Geometry, float]:
    low, high = (math.log(scale) for scale in SCALES)
    answer = minimize_scalar(
        lambda value: misfit(Geometry(scale=math.exp(value))),
        bounds=(low, high),
        method='bounded',
        options={'xatol': SCALE_TOLERANCE, 'maxiter': 10},
    )
    if not answer.fun < given:
        return Geometry(), given
    return Geometry(scale=math.exp(float(answer.x))), float(answer.fun)


def _best_along(
    misfit: Callable[[Geometry], float], best: Geometry, found: float, name: str, distance: float
) -> tuple[Geometry, float]:
    """Look to both sides and take the vertex of the parabola, if it is better."""
    below, above = (misfit(replace(best, **{name: sign * distance})) for sign in (-1.0, 1.0))
    curvature = below + above - 2 * found
    if not (math.isfinite(curvature) and curvature > 0):
        return best, found
    vertex = 0.5 * distance * (below - above) / curvature
    candidate = replace(best, **{name: float(np.clip(vertex, -2 * distance, 2 * distance))})
    value = misfit(candidate)
    return (candidate, value) if value < found else (best, found)
