"""Search for the cause of a bad reconstruction: what is wrong with a scan as it is given, most likely first.

Two kinds of checks. Those of the data need no reconstruction: photons, dead pixels, centre, overlap, regular positions.
Those of the model refine the object and compare predictions of held-out patterns: if the patterns are predicted
significantly better with other axes, another sign or size of the defocus, rotated, scaled or drifting positions, or
more modes, that is a cause. A sum of counts that the model does not explain is a change of the beam.

The thresholds were set on the scans of ``benchmarks.geometry faults`` with seeds below 9000 and left unchanged for
those with seeds from 9000 (``docs/inspect.md``), but that of the modes: it was raised after one of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import label
from scipy.spatial import cKDTree
from skimage.registration import phase_cross_correlation

from ..config import RefinementConfig
from ..data.positions import mapped, rotation_matrix
from ..data.scan import RawScan
from ..data.tensors import ScanTensors, initial_state
from ..engines.aperture import LARGEST_PROBE, aperture_of
from ..engines.downsampling import compact_part
from ..engines.given_probe import curvature_of
from ..engines.held_out import HoldOut, HoldOutPlan
from ..engines.solver import Solver
from ..engines.verification import AXES, reversed_defocus
from ..metrics.credibility import ADVICE, Advice
from ..metrics.held_out import Agreement, lead_of
from .detector import inspect_detector
from .search import best_along

BATCH = 64
"""Patterns of one step of the solver."""
MOST_POSITIONS = 100
"""Positions of the compact part of the scan that the checks of the model use."""
PLAN = HoldOutPlan(epochs=10, folds=4, used_folds=1)
FINE_PLAN = replace(PLAN, used_folds=4)
"""For small changes: four times the patterns give half the error."""
MODES_PLAN = HoldOutPlan(epochs=30, folds=4, used_folds=4)
"""For the modes, which are refined with the object."""
REFINE_EPOCHS = 30
"""Epochs of the refinement that gives the intensities and the drift."""
CERTAIN = 4.0
"""Standard errors by which a change of the model must predict better."""
LEAST_GAIN = 0.02
"""Relative increase of the correlation that other axes or another sign must bring."""
SMALL_GAIN = 0.006
"""The same for a small change: rotation, scale, defocus, drift."""

PHOTONS_PER_PIXEL = 10.0
"""Photons per illuminated object pixel below which a scan is too faint: the standard deviation of a pixel is .3."""
LITTLE_OVERLAP = 0.4
"""Linear overlap of neighbouring positions below which the object is not determined."""
DEAD_PIXELS = 4
"""Dead pixels, not masked, that are a fault."""
CENTRE_PX = 1.0
"""Distance of the given probe's spectrum from the mean pattern, detector pixels."""
FLICKER = 0.05
"""Relative standard deviation of the refined intensities."""
REGULAR = 0.04
"""Relative deviation of the distances between neighbours below which positions form a periodic grid."""
EXTRA_MODES = 2
"""Incoherent modes that are added to see whether some are missing."""
MODES_GAIN = 0.085
"""Relative decrease of the unexplained signal of held-out patterns that they must bring, and that by ``CERTAIN``."""
DRIFT_PX = 0.12
"""Root mean square of the drift, object pixels."""
DRIFT_ORDER = 5
"""Highest order of the polynomial in time."""

ROTATION_STEP_DEGREES = 1.5
SCALE_STEP = 0.025
DEFOCUS_STEP = 0.15

Positions = npt.NDArray[np.float64]
Modes = npt.NDArray[np.complexfloating]


@dataclass(frozen=True)
class Cause:
    """One likely cause."""

    key: str
    """A key of ``ADVICE``."""
    strength: float
    """Evidence over its threshold: more than 1."""
    evidence: str
    """Numbers on which it rests."""

    @property
    def advice(self) -> Advice:
        """The cause in words, its map and its setting."""
        return ADVICE[self.key]

    @property
    def sentence(self) -> str:
        """The cause, its evidence, its map and what to change."""
        advice = self.advice
        return f'{advice.text.capitalize()} ({self.evidence}); see {advice.map}; {advice.setting}.'


@dataclass(frozen=True)
class Diagnosis:
    """The likely causes, most likely first; none for a healthy scan."""

    causes: tuple[Cause, ...]
    numbers: dict[str, float]
    """Every number that was compared with a threshold, by name."""


def diagnose(scan: RawScan, device: torch.device, should_stop: Callable[[], bool] = lambda: False) -> Diagnosis:
    """Return what is likely to be wrong with ``scan`` as it is given, probe and positions included.

    Args:
        scan: a validated scan.
        device: where to compute.
        should_stop: called after every epoch of every refinement; the checks that remain then say nothing reliable.
    """
    data, numbers = _data_causes(scan)
    usable = _masked(scan)
    part = compact_part(usable, min(usable.size, MOST_POSITIONS))
    model = _ModelChecks(part, device, should_stop)
    causes = [*data, *model.causes(numbers)]
    return Diagnosis(tuple(causes), numbers)


def _masked(scan: RawScan) -> RawScan:
    dead = dead_pixels(scan)
    return replace(scan, bad_pixels=scan.bad_pixels | dead).without_empty()


def dead_pixels(scan: RawScan) -> npt.NDArray[np.bool_]:
    """Return the pixels ``(H, W)`` that count nothing, whole blocks included, and are not masked."""
    report = inspect_detector(scan.counts, scan.bad_pixels)
    silent = (report.mean <= 0) & ~scan.bad_pixels
    dead = silent & report.bad_pixels
    # Inside of a block, the neighbours are silent as well: the rim decides, and what lies opposite the centre.
    height, width = silent.shape
    opposite = np.roll(report.mean[::-1, ::-1], (1 - height % 2, 1 - width % 2), axis=(0, 1))
    seeds = dead | (silent & (opposite * scan.size > 25.0))
    regions, count = label(silent)
    for number in range(1, count + 1):
        region = regions == number
        if seeds[region].sum() > 0.5 * region.sum():
            dead |= region
    return np.asarray(dead)


def _data_causes(scan: RawScan) -> tuple[list[Cause], dict[str, float]]:
    good = ~scan.bad_pixels
    mean = scan.counts.mean(axis=0, dtype=np.float64) * good
    diameter = diameter_of(scan.probe)
    distances, _ = cKDTree(scan.positions).query(scan.positions, k=min(2, scan.size))
    nearest = distances[:, -1]
    step = float(np.median(nearest))
    area = np.prod(np.ptp(scan.positions, axis=0) + 0.7 * diameter)
    per_pixel = float(mean.sum()) * scan.size / float(area)
    spectrum = np.fft.fftshift(np.square(np.abs(np.fft.fft2(scan.probe))).sum(axis=0))
    filled = aperture_of(mean, scan.bad_pixels).intensity
    shift, _, _ = phase_cross_correlation(np.sqrt(filled), np.sqrt(spectrum), upsample_factor=10, normalization=None)
    dead = int(dead_pixels(scan).sum())
    numbers = {
        'photons_per_object_pixel': per_pixel,
        'dead_pixels': float(dead),
        'centre_px': float(np.hypot(*shift)),
        'overlap': 1 - step / diameter,
        'regularity': float(nearest.std() / nearest.mean()) if scan.size > LEAST_GRID else math.inf,
    }
    found = []
    if per_pixel < PHOTONS_PER_PIXEL:
        found.append(
            Cause('few_photons', PHOTONS_PER_PIXEL / per_pixel, f'{per_pixel:.2g} photons per pixel of the object')
        )
    if dead >= DEAD_PIXELS:
        found.append(Cause('dead_pixels', dead / DEAD_PIXELS, f'{dead} pixels'))
    if numbers['centre_px'] > CENTRE_PX:
        found.append(
            Cause('centre', numbers['centre_px'] / CENTRE_PX, f'by {shift[0]:.1f} rows, {shift[1]:.1f} columns')
        )
    if numbers['overlap'] < LITTLE_OVERLAP:
        found.append(Cause('overlap', (1 - numbers['overlap']) / (1 - LITTLE_OVERLAP), f'{numbers["overlap"]:.0%}'))
    if numbers['regularity'] < REGULAR:
        found.append(
            Cause(
                'raster',
                REGULAR / max(numbers['regularity'], 1e-3),
                f'distances of neighbours vary by {100 * numbers["regularity"]:.1f} %',
            )
        )
    return found, numbers


LEAST_GRID = 16
"""Positions from which on a periodic grid is told from chance."""


def diameter_of(modes: Modes) -> float:
    """Return the diameter of the disc about the centre of gravity that holds 90 % of the power of ``(M, H, W)``."""
    intensity = np.square(np.abs(modes)).sum(axis=0)
    y, x = np.indices(intensity.shape)
    total = intensity.sum()
    distance = np.hypot(y - (intensity * y).sum() / total, x - (intensity * x).sum() / total).ravel()
    order = np.argsort(distance)
    return 2 * float(distance[order][np.searchsorted(np.cumsum(intensity.ravel()[order]) / total, 0.9)])


class _ModelChecks:
    """Comparisons of the given model with changed ones, by held-out patterns."""

    def __init__(self, scan: RawScan, device: torch.device, should_stop: Callable[[], bool]) -> None:
        self._scan = scan
        self._device = device
        self._should_stop = should_stop
        self._held = HoldOut(scan, device, PLAN, should_stop)
        self._fine = HoldOut(scan, device, FINE_PLAN, should_stop)

    def causes(self, numbers: dict[str, float]) -> list[Cause]:
        """Return the causes, largest gain first; the numbers are added to ``numbers``."""
        own, fine = self._held.agreement(), self._fine.agreement()
        numbers['correlation'] = own.correlation
        deviance, intensities, drifted = self._refined()
        flicker = self._flicker(intensities)
        drift = float(np.sqrt(np.square(drifted - self._scan.positions).sum(axis=1).mean()))
        modes, modes_lead = self._gain_of_modes()
        numbers |= {'flicker': flicker, 'drift_px': drift, 'deviance': deviance, 'modes_gain': modes}
        numbers['modes_lead'] = modes_lead
        large = {key: (item, own, LEAST_GAIN) for key, item in self._other_axes().items()}
        small = {**self._small_changes(numbers), 'drift': self._fine.agreement(positions=drifted)}
        trials = {**large, **{key: (item, fine, SMALL_GAIN) for key, item in small.items()}}
        found: list[tuple[float, Cause]] = []
        for key, (item, base, least) in trials.items():
            gain, lead = item.correlation - base.correlation, lead_of(item, base)
            numbers[f'{key}_gain'], numbers[f'{key}_lead'] = gain, lead
            if lead > CERTAIN and gain > least * max(base.correlation, 0.05) and not (
                key == 'drift' and drift < DRIFT_PX
            ):  # fmt: skip
                text = f'held-out patterns correlate by {item.correlation:.2f} instead of {base.correlation:.2f}'
                found.append((gain, Cause(key, lead / CERTAIN, text)))
        causes = [cause for _, cause in sorted(found, key=lambda pair: -pair[0])]
        if flicker > FLICKER:
            causes.append(Cause('flicker', flicker / FLICKER, f'{100 * flicker:.0f} % from pattern to pattern'))
        if modes > MODES_GAIN and modes_lead > CERTAIN:
            text = f'{EXTRA_MODES} more explain {100 * modes:.0f} % of what is unexplained of held-out patterns'
            causes.append(Cause('modes', modes / MODES_GAIN, text))
        return causes

    def _gain_of_modes(self) -> tuple[float, float]:
        """Return the relative decrease of the unexplained signal by more modes, and its standard errors."""
        own = len(self._scan.probe)
        fewer, more = (
            HoldOut(self._scan, self._device, replace(MODES_PLAN, probe_modes=number), self._should_stop).agreement()
            for number in (own, own + EXTRA_MODES)
        )
        return (more.share - fewer.share) / max(1 - fewer.share, 1e-3), lead_of(more, fewer)

    def _other_axes(self) -> dict[str, Agreement]:
        probe = self._scan.probe
        reverse = reversed_defocus(probe)
        trials = {'reversed': self._held.agreement(reverse)}
        for name, matrix in AXES.items():
            turned = mapped(self._scan.positions, matrix)
            trials[name] = max(
                (self._held.agreement(item, turned) for item in (probe, reverse)), key=lambda item: item.correlation
            )
        return trials

    def _small_changes(self, numbers: dict[str, float]) -> dict[str, Agreement]:
        """Return the agreement at the best rotation, scale and defocus, found with fewer patterns."""
        probe, trials = self._scan.probe, {}

        def rotated(offset: float, held: HoldOut = self._held) -> Agreement:
            angle = math.radians(ROTATION_STEP_DEGREES * offset)
            return held.agreement(positions=mapped(self._scan.positions, rotation_matrix(angle)))

        def scaled(offset: float, held: HoldOut = self._held) -> Agreement:
            return held.agreement(positions=mapped(self._scan.positions, (1 + SCALE_STEP * offset) * np.eye(2)))

        mean = self._scan.counts.mean(axis=0, dtype=np.float64)
        aperture = aperture_of(mean, self._scan.bad_pixels)
        curvature = curvature_of(probe, LARGEST_PROBE * aperture.largest_curvature).value

        def refocused(offset: float, held: HoldOut = self._held) -> Agreement:
            return held.agreement(propagated(probe, DEFOCUS_STEP * offset * curvature))

        for name, trial, step in (
            ('rotation', rotated, ROTATION_STEP_DEGREES),
            ('scale', scaled, SCALE_STEP),
            ('defocus', refocused, DEFOCUS_STEP),
        ):
            vertex = best_along(trial, widen=2.0)
            numbers[f'{name}_best'] = step * vertex.value
            trials[name] = trial(vertex.value, self._fine)
        return trials

    def _refined(self) -> tuple[float, npt.NDArray[np.float64], Positions]:
        """Refine everything; return the last deviance, the intensities, and the positions with the drift it shows."""
        config = RefinementConfig(
            refine_epochs=REFINE_EPOCHS,
            refine_intensity=True,
            intensity_start=5,
            positions_start=5,
        )
        deviances: list[float] = []

        def listen(_epoch: int, deviance: float) -> bool:
            deviances.append(deviance)
            return self._should_stop() or not math.isfinite(deviance)

        tensors = ScanTensors(self._scan, self._device)
        with torch.inference_mode():
            state = Solver(tensors, initial_state(tensors), config, BATCH).run(listen)
        moved = state.positions.cpu().numpy() - self._scan.positions
        intensities = state.intensities.cpu().numpy().astype(np.float64)
        return deviances[-1], intensities, self._scan.positions + _in_time(moved)

    def _flicker(self, intensities: npt.NDArray[np.float64]) -> float:
        """Return the robust relative deviation of the intensities that photon noise does not explain."""
        usual = float(np.median(intensities))
        spread = 1.4826 * float(np.median(np.abs(intensities - usual))) / usual
        photons = float(self._scan.counts.sum(axis=(1, 2), dtype=np.float64).mean())
        noise = (1 + 4 * math.sqrt(2 / intensities.size)) / photons
        return math.sqrt(max(spread**2 - noise, 0.0))


def _in_time(moved: Positions) -> Positions:
    """Return the part of the displacements ``(n, 2)`` that is a polynomial in time."""
    time = np.linspace(-1.0, 1.0, len(moved))
    order = min(DRIFT_ORDER, len(moved) - 1)
    return np.stack([np.polynomial.legendre.Legendre.fit(time, axis, order)(time) for axis in moved.T], axis=-1)


def propagated(modes: Modes, curvature: float) -> Modes:
    """Return ``modes`` ``(M, H, W)`` with ``curvature`` (square object pixels) added to that of their defocus."""
    y, x = (np.fft.fftfreq(side) for side in modes.shape[-2:])
    phase = np.exp(-1j * np.pi * curvature * (y[:, None] ** 2 + x**2))
    return np.asarray(np.fft.ifft2(np.fft.fft2(modes) * phase))


__all__ = ['ADVICE', 'Advice', 'Cause', 'Diagnosis', 'diagnose']
