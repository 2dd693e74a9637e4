"""Search for orientation and defocus: each candidate is scored by the patterns that it predicts.

Every candidate gives a probe (:mod:`.aperture`) and an orientation of the patterns. The object is refined from some
positions, the patterns of the others are predicted, and the correlation with the counts is the score
(:mod:`ptychopinn_torch_plugin.engines.held_out`). The misfit would not do: close to the focus, where patterns do not
overlap, every orientation fits equally well.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from ..data.grouping import compact_windows
from ..data.positions import mapped, rotation_matrix
from ..data.scan import RawScan, make_raw_scan
from ..engines.aperture import Aperture, aperture_of
from ..engines.given_probe import Value
from ..engines.held_out import HoldOut, HoldOutPlan
from ..metrics.held_out import Agreement, jackknife, lead_of
from .measurement import DISTINCT, Measurement, Orientation

logger = logging.getLogger(__name__)

SUBSET_PIXELS = 2**20
"""Detector pixels of all patterns of the subset together; at least ``LEAST_SUBSET`` positions."""
LEAST_SUBSET = 24
MOST_SUBSET = 144
FINE_WAVES = 0.25
"""Distance of the trial values of the defocus near the focus, wavelengths of phase at the edge of the aperture."""
COARSE_RATIO = 1.35
"""Ratio of neighbouring trial values further away."""
COARSE_SUBSET = 64
"""Positions of the coarse search at most: it only has to find the neighbourhood of the best candidate."""
COARSE = HoldOutPlan(epochs=8, used_folds=1)
FINE = HoldOutPlan(epochs=14)
MODES_PLAN = HoldOutPlan(epochs=30, used_folds=2)
HELD_OUT = 48
"""Patterns that are predicted for a fine score, where the subset has so many; fewer folds take less time."""
KEPT = 6
"""Candidates of the coarse search that are scored with all folds."""
LINE_STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Trial values about the best one, in steps; a parabola goes through their scores."""
ROTATION_STEPS_DEGREES = (1.0, 3.0)
PROBE_PLAN = HoldOutPlan(epochs=60, probe_modes=1)
"""The refinement of the probe for the rotation; with 30 epochs, half of the error of the first probe remains."""
ROTATION_ROUNDS = 2
"""Searches for the rotation with a refined probe."""
RELATIVE_STEP = 0.05
LEAST_STEP_WAVES = 0.08
CERTAIN = 4.0
"""Standard errors by which the best candidate must lead."""
MODES = (1, 2, 3, 4)
MODE_GAIN = 0.02
"""Relative decrease of what stays unexplained that one more mode must bring, and that by two standard errors."""

WELL_LIT = 0.2
"""Share of the largest illumination from which on the object counts for the contrast."""
SLOW_PX = 8.0
"""Standard deviation of the Gaussian whose result is the slow variation of the object."""
TILE_PX = 24
"""Side of the tiles of the error bar of the contrast."""

ShouldStop = Callable[[], bool]


@dataclass(frozen=True, eq=False)
class Candidate:
    """An orientation with a curvature, and how well it predicts."""

    orientation: Orientation
    curvature: float
    """``wavelength * defocus / pixel^2``, square object pixels."""
    agreement: Agreement

    @property
    def score(self) -> float:
        """Correlation of predicted and held-out patterns."""
        return self.agreement.correlation


@dataclass(frozen=True, eq=False)
class Found:
    """Result of the search."""

    best: Candidate
    curvature: Value
    rival: Candidate
    """The best candidate of another orientation, or of the other sign."""
    lead: float
    """Standard errors by which ``best`` predicts better than ``rival``."""
    rotation: Value
    """Radians by which the positions should be rotated, from y towards x."""
    scale: Value
    """Factor for the positions at this curvature."""
    modes: int
    """Incoherent modes that improve the prediction."""
    shares: dict[int, float]
    """Explained share of the signal by number of modes, the probe refined."""
    contrast: Value
    """Correlation of amplitude and phase of the object: negative suggests the conjugated solution."""
    aperture: Aperture
    """On the grid of the search, in the orientation found."""
    side: int
    """Side of the patterns of the search, pixels."""
    coarse: tuple[tuple[str, float, float], ...] = field(default=())
    """Every trial of the coarse search: orientation, curvature, score."""

    @property
    def is_certain(self) -> bool:
        """Whether orientation and sign of the defocus are certain."""
        return self.lead > CERTAIN


class Search:
    """Scores candidates for one measurement.

    Args:
        measurement: square patterns, centred and cropped to the aperture; positions in pixels of that object grid.
        device: where to compute.
        should_stop: called after every epoch.
    """

    def __init__(self, measurement: Measurement, device: torch.device, should_stop: ShouldStop = lambda: False) -> None:
        self._measurement = subset_of(measurement)
        self._part = subset_of(self._measurement, COARSE_SUBSET)
        self._fine = replace(
            FINE, used_folds=int(np.clip(math.ceil(FINE.folds * HELD_OUT / self._measurement.size), 1, FINE.folds))
        )
        self._device = device
        self._should_stop = should_stop
        self._mean = measurement.counts.mean(axis=0, dtype=np.float64)
        self._scans: dict[tuple[Orientation, bool], tuple[RawScan, Aperture]] = {}

    def run(self, extra_curvatures: tuple[float, ...] = ()) -> Found:
        """Search all orientations and both signs of the defocus; then the neighbourhood of the best candidate."""
        coarse = [
            self._coarse_score(orientation, curvature)
            for orientation in DISTINCT
            for curvature in self._trial_curvatures(extra_curvatures)
        ]
        kept = self._promising(coarse)
        fine = [self.score(item.orientation, item.curvature) for item in kept]
        best = max(fine, key=lambda item: item.score)
        best, curvature = self._best_curvature(best)
        others = [item for item in fine if _differs(item, best)]
        rival = max(others, key=lambda item: item.score)
        rotation, scale = self._affine(best)
        modes, shares = self._modes(best)
        _, aperture = self.scan(best.orientation)
        return Found(
            best=best,
            curvature=curvature,
            rival=rival,
            lead=lead_of(best.agreement, rival.agreement),
            rotation=rotation,
            scale=scale,
            modes=modes,
            shares=shares,
            contrast=self._contrast(best),
            aperture=aperture,
            side=aperture.side,
            coarse=tuple((item.orientation.name, item.curvature, item.score) for item in coarse),
        )

    def scan(self, orientation: Orientation, *, coarse: bool = False) -> tuple[RawScan, Aperture]:
        """Return the subset, or a part of it, with its patterns in ``orientation``, and the aperture seen in it."""
        if (orientation, coarse) not in self._scans:
            turned = (self._part if coarse else self._measurement).oriented(orientation)
            mean = np.asarray(orientation.apply(self._mean), dtype=np.float64)
            aperture = aperture_of(mean, turned.bad_pixels)
            positions, grid = on_grid(turned)
            scan = make_raw_scan(
                turned.counts,
                positions,
                aperture.probe(0.0),
                bad_pixels=turned.bad_pixels,
                object_shape=grid,
                name=turned.name,
            )
            self._scans[orientation, coarse] = scan, aperture
        return self._scans[orientation, coarse]

    def score(
        self, orientation: Orientation, curvature: float, matrix: npt.NDArray[np.float64] | None = None
    ) -> Candidate:
        """Score one candidate on the subset; ``matrix`` ``(2, 2)`` maps the positions about their centre."""
        scan, aperture = self.scan(orientation)
        positions = scan.positions if matrix is None else mapped(scan.positions, matrix)
        held = HoldOut(scan, self._device, self._fine, self._should_stop)
        return Candidate(orientation, curvature, held.agreement(aperture.probe(curvature), positions))

    def score_probe(self, probe: npt.NDArray[np.complexfloating]) -> Agreement:
        """Score a given probe ``(M, N, N)`` with the patterns as given."""
        scan, _ = self.scan(Orientation())
        return HoldOut(scan, self._device, self._fine, self._should_stop).agreement(probe)

    def _coarse_score(self, orientation: Orientation, curvature: float) -> Candidate:
        scan, aperture = self.scan(orientation, coarse=True)
        held = HoldOut(scan, self._device, COARSE, self._should_stop)
        return Candidate(orientation, curvature, held.agreement(aperture.probe(curvature)))

    def _trial_curvatures(self, extra: tuple[float, ...]) -> list[float]:
        _, aperture = self.scan(Orientation())
        fine = aperture.curvature_of_waves(FINE_WAVES)
        values, value = [fine], fine
        while value < aperture.largest_curvature:
            value = max(value + fine, value * COARSE_RATIO) if value < 4 * fine else value * COARSE_RATIO
            values.append(value)
        inside = [abs(value) for value in extra if fine < abs(value) < 1.5 * aperture.largest_curvature]
        return [0.0, *(sign * value for value in sorted({*values, *inside}) for sign in (1.0, -1.0))]

    def _promising(self, coarse: list[Candidate]) -> list[Candidate]:
        """Return the best candidates, at least one of a second orientation or sign among them."""
        ranked = sorted(coarse, key=lambda item: -item.score)
        kept = ranked[:KEPT]
        if not any(_differs(item, kept[0]) for item in kept):
            kept[-1] = next(item for item in ranked if _differs(item, kept[0]))
        return kept

    def _best_curvature(self, best: Candidate) -> tuple[Candidate, Value]:
        _, aperture = self.scan(best.orientation)
        step = max(2 * RELATIVE_STEP * abs(best.curvature), aperture.curvature_of_waves(LEAST_STEP_WAVES))
        found = Value(best.curvature, step)
        for narrower in (1.0, 0.5):
            width = narrower * step

            def trial(offset: float, middle: float = found.value, width: float = width) -> Agreement:
                return self.score(best.orientation, middle + offset * width).agreement

            vertex = best_along(trial)
            found = Value(found.value + width * vertex.value, width * vertex.error)
        return self.score(best.orientation, found.value), found

    def _affine(self, best: Candidate) -> tuple[Value, Value]:
        """Return rotation and scale of the positions at the curvature of ``best``."""

        def scaled(offset: float) -> Agreement:
            return self.score(best.orientation, best.curvature, (1 + 0.02 * offset) * np.eye(2)).agreement

        scale = best_along(scaled, widen=2.0)
        return self._rotation(best), Value(1 + 0.02 * scale.value, 0.02 * scale.error)

    def _rotation(self, best: Candidate) -> Value:
        """Return the rotation of the positions, radians; its error includes the last change by another probe or width.

        Aberrations that the probe of the aperture lacks shift the maximum: by 1.4 degrees for a measured scan. Where
        a refined probe predicts better, the maximum is therefore searched again with a probe that was refined at the
        rotation found, and once more. A refined probe is adapted to the rotation at which it was refined: hence twice.
        """
        scan, aperture = self.scan(best.orientation)
        start = aperture.probe(best.curvature)

        def maximum_near(middle: float, probe: npt.NDArray[np.complexfloating], degrees: float) -> Value:
            step = math.radians(degrees)
            held = HoldOut(scan, self._device, self._fine, self._should_stop)
            vertex = best_along(
                lambda offset: held.agreement(probe, rotated(scan.positions, middle + step * offset)), widen=2.0
            )
            return Value(middle + step * vertex.value, step * vertex.error)

        # The width of the maximum depends on the object and the dose: the more certain of two widths counts.
        widths = sorted(
            (maximum_near(0.0, start, degrees) for degrees in ROTATION_STEPS_DEGREES), key=lambda item: item.error
        )
        found = widths[0]
        change = found.value - widths[-1].value
        if self._is_probe_determined(replace(scan, positions=rotated(scan.positions, found.value)), start):
            probe = start
            for _ in range(ROTATION_ROUNDS):
                turned = replace(scan, positions=rotated(scan.positions, found.value))
                refined = HoldOut(turned, self._device, PROBE_PLAN, self._should_stop).refined(probe)
                probe = refined.probe.cpu().numpy()
                previous, found = found, maximum_near(found.value, probe, ROTATION_STEPS_DEGREES[0])
                change = found.value - previous.value
        return Value(found.value, math.hypot(found.error, change))

    def _is_probe_determined(self, scan: RawScan, probe: npt.NDArray[np.complexfloating]) -> bool:
        """Return whether held-out patterns are predicted better where the probe is refined with the object."""
        kept, refined = (
            HoldOut(scan, self._device, replace(plan, used_folds=1), self._should_stop).agreement(probe)
            for plan in (self._fine, PROBE_PLAN)
        )
        return refined.correlation > kept.correlation

    def _modes(self, best: Candidate) -> tuple[int, dict[int, float]]:
        scan, aperture = self.scan(best.orientation)
        probe = aperture.probe(best.curvature)
        scores: dict[int, Agreement] = {}
        chosen = MODES[0]
        for number in MODES:
            plan = replace(MODES_PLAN, probe_modes=number)
            scores[number] = HoldOut(scan, self._device, plan, self._should_stop).agreement(probe)
            if number == MODES[0]:
                continue
            if not is_better(scores[number], scores[chosen]):
                break
            chosen = number
        return chosen, {number: item.share for number, item in scores.items()}

    def _contrast(self, best: Candidate) -> Value:
        """Return the correlation of the modulus and the phase of the object, both less their slow variation."""
        scan, aperture = self.scan(best.orientation)
        held = HoldOut(scan, self._device, replace(FINE, epochs=2 * FINE.epochs), self._should_stop)
        state = held.refined(aperture.probe(best.curvature))
        object_array = state.object_array.cpu().numpy().astype(np.complex128)
        photons = held.photons(state)
        lit = photons > WELL_LIT * photons.max()
        smooth = gaussian_filter(object_array.real, SLOW_PX) + 1j * gaussian_filter(object_array.imag, SLOW_PX)
        relative = object_array / np.where(np.abs(smooth) > 1e-6, smooth, 1.0) - 1.0
        return _correlation_of_tiles(relative.real, relative.imag, lit)


def subset_of(measurement: Measurement, limit: int = MOST_SUBSET) -> Measurement:
    """Return a compact part of the scan that is small enough to try many candidates on."""
    limit = int(np.clip(SUBSET_PIXELS // math.prod(measurement.shape), LEAST_SUBSET, limit))
    lit = np.flatnonzero(measurement.counts[:, ~measurement.bad_pixels].any(axis=1))
    if lit.size > limit:
        positions = measurement.positions[lit]
        windows = compact_windows(positions, limit)
        centre = positions.mean(axis=0)
        lit = lit[min(windows, key=lambda part: float(np.abs(positions[part].mean(axis=0) - centre).sum()))]
    lit = np.sort(lit)
    return replace(measurement, counts=measurement.counts[lit], positions=measurement.positions[lit])


def on_grid(measurement: Measurement) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """Return the positions on an object grid that just holds every patch, and its shape ``(h, w)``."""
    half = (np.array(measurement.shape) - 1) / 2
    positions = measurement.positions - np.floor(measurement.positions.min(axis=0) - half)
    height, width = (int(side) for side in np.ceil(positions.max(axis=0) + half + 1))
    return positions, (height, width)


def rotated(positions: npt.NDArray[np.float64], angle: float) -> npt.NDArray[np.float64]:
    """Return ``positions`` ``(n, 2)`` rotated about their centre by ``angle`` (radians, from y towards x)."""
    return mapped(positions, rotation_matrix(angle))


def is_better(more: Agreement, fewer: Agreement) -> bool:
    """Return whether ``more`` leaves clearly less of the signal unexplained than ``fewer``."""

    def gain(first: Agreement, second: Agreement) -> float:
        return (first.share - second.share) / max(1.0 - second.share, 1e-3)

    value, error = jackknife(gain, more, fewer)
    return value > MODE_GAIN and value > 2 * error


def best_along(trial: Callable[[float], Agreement], widen: float = 0.0) -> Value:
    """Return the offset of the largest correlation and its standard error, from a parabola through five trials.

    Args:
        trial: gives the agreement at an offset, in steps.
        widen: where the largest value is the first or the last, the trials are repeated about it so many steps further.
    """
    centre = 0.0
    offsets = np.array(LINE_STEPS)
    trials = [trial(offset) for offset in offsets]
    if widen:
        for _ in range(4):
            best = int(np.argmax([item.correlation for item in trials]))
            if 0 < best < len(trials) - 1:
                break
            centre += float(np.sign(offsets[best]) * widen)
            trials = [trial(centre + offset) for offset in offsets]

    def vertex(*items: Agreement) -> float:
        curvature, slope, _ = np.polyfit(offsets, [item.correlation for item in items], 2)
        reach = float(offsets[-1])
        if curvature >= 0:
            return float(offsets[int(np.argmax([item.correlation for item in items]))])
        return float(np.clip(-slope / (2 * curvature), -reach, reach))

    value, error = jackknife(vertex, *trials)
    return Value(centre + value, error)


def _correlation_of_tiles(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]
) -> Value:
    """Return the correlation of two images ``(h, w)`` where ``inside``; its error is a jackknife over square tiles."""
    y, x = np.indices(first.shape) // TILE_PX
    tiles: npt.NDArray[np.int64] = (y * (x.max() + 1) + x)[inside]
    sums: npt.NDArray[np.float64] = np.stack(
        [
            np.bincount(tiles, weights=(one * other)[inside])
            for one, other in ((first, second), (first, first), (second, second))
        ]
    )
    sums = sums[:, sums[1] > 0]

    def correlation(parts: npt.NDArray[np.float64]) -> float:
        product, *squares = parts.sum(axis=1)
        return float(product / math.sqrt(max(math.prod(squares), 1e-300)))

    count = sums.shape[1]
    if count < 2:
        return Value(0.0, 1.0)
    left_out = np.array([correlation(np.delete(sums, number, axis=1)) for number in range(count)])
    error = math.sqrt((count - 1) / count * float(np.square(left_out - left_out.mean()).sum()))
    return Value(correlation(sums), error)


def _differs(one: Candidate, other: Candidate) -> bool:
    """Return whether two candidates differ in orientation or in the sign of the defocus."""
    return one.orientation != other.orientation or one.curvature * other.curvature < 0
