"""Quality of a product, by Ptychodus' own metrics: against a known object, and against the measured patterns.

Ptychodus is imported when a score is computed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ptychodus.api.metrics import ScoringRegion
    from ptychodus.api.product import Product
    from ptychodus.api.reconstruct import ReconstructInput

WELL_ILLUMINATED = 0.5
"""Share of the mean illumination from which on a pixel is scored."""
EROSION_PX = 4
SCALE_STEPS = 81
MIN_SHIFT_PX = 0.03
MAX_SHIFT_PX = 10.0
"""Larger shifts are errors of the registration and are not applied."""
MATCH = 0.5
"""Fourier ring correlation with the known object from which on a spatial frequency counts as resolved."""


@dataclass(frozen=True)
class TruthScores:
    """Agreement with a known object in the well illuminated rectangle, without the ambiguities of ptychography."""

    amplitude_ssim: float
    """Structural similarity of the moduli, 1 is perfect."""
    phase_ssim: float
    """Structural similarity of the phases, 1 is perfect."""
    amplitude_psnr_db: float
    phase_psnr_db: float
    phase_error_rad: float
    """Root mean square."""
    ring_area: float
    """Fourier ring correlation with the known object, averaged over the spatial frequencies; 1 is perfect."""
    ring_resolution_px: float
    """Full period, in pixels, at which that correlation first falls below 1/2 (where signal and noise are equally
    strong, as the known object has no noise); 2 if it never does, the longer side of the rectangle if it is below 1/2
    from the start."""

    def as_dict(self) -> dict[str, float]:
        """Return the scores by name."""
        return asdict(self)


@dataclass(frozen=True)
class ScoredPair:
    """Scores, and what was compared: both objects, cut to the scored rectangle, complex ``(h, w)``."""

    scores: TruthScores
    truth: npt.NDArray[np.complexfloating]
    product: npt.NDArray[np.complexfloating]


def compare_with_truth(truth: Product, product: Product, well_illuminated: float = WELL_ILLUMINATED) -> ScoredPair:
    """Score ``product`` against ``truth``; both on the same object grid.

    What no pattern determines is removed first: a constant complex factor, a linear phase ramp, and a common shift of
    object and probe, which is a pixel or so where the probe was refined. ``well_illuminated`` is the share of the mean
    illumination from which on a pixel is scored.
    """
    from ptychodus.api import metrics

    region = scoring_region(truth, well_illuminated)
    product = _standardised(product, truth, region)
    shift_y, shift_x = _shift_between(truth, product, region)
    if MIN_SHIFT_PX < np.hypot(shift_y, shift_x) < MAX_SHIFT_PX:
        from ptychodus.api.object import shift_object

        moved = shift_object(product.object_, shift_y_px=shift_y, shift_x_px=shift_x)
        product = _standardised(replace(product, object_=moved), truth, region)
    expected = region.crop(truth.object_.get_layers_flattened())
    found = region.crop(product.object_.get_layers_flattened())
    phase, found_phase = np.angle(expected), np.angle(expected) + np.angle(found * np.conj(expected))
    modulus, found_modulus = np.abs(expected), np.abs(found)
    area, resolution = _correlation_scores(expected, found, region.weights)
    scores = TruthScores(
        amplitude_ssim=float(metrics.compute_structural_similarity(modulus, found_modulus)),
        phase_ssim=float(metrics.compute_structural_similarity(phase, found_phase)),
        amplitude_psnr_db=float(metrics.compute_peak_signal_to_noise_ratio(modulus, found_modulus)),
        phase_psnr_db=float(metrics.compute_peak_signal_to_noise_ratio(phase, found_phase)),
        phase_error_rad=float(np.sqrt(np.mean((found_phase - phase) ** 2))),
        ring_area=area,
        ring_resolution_px=resolution,
    )
    return ScoredPair(scores, expected, found)


def _correlation_scores(
    truth: npt.NDArray[np.complexfloating], product: npt.NDArray[np.complexfloating], weights: npt.NDArray[np.floating]
) -> tuple[float, float]:
    """Return mean and resolution in pixels of Ptychodus' Fourier ring correlation; the latter is never NaN."""
    from ptychodus.api.metrics import compute_fourier_ring_correlation

    frc = compute_fourier_ring_correlation(truth, product, 1.0, 1.0, window=weights)
    known = frc.correlation[np.isfinite(frc.correlation)]
    if (known >= MATCH).all():
        return frc.get_area_under_curve(), 2.0
    if known[0] < MATCH:
        return frc.get_area_under_curve(), float(max(truth.shape))
    return frc.get_area_under_curve(), max(2.0, frc.get_resolution_m(MATCH))


def _standardised(product: Product, truth: Product, region: ScoringRegion) -> Product:
    from ptychodus.api.metrics import estimate_reconstruction_ambiguities

    inside = np.zeros(region.array_shape)
    inside[region.row_begin : region.row_end, region.column_begin : region.column_end] = 1.0
    for _ in range(2):  # the factor and the ramp are estimated in turn: the second pass settles both
        ambiguities = estimate_reconstruction_ambiguities(product, reference=truth, weights=inside)
        product = ambiguities.standardize_product(product)
    return product


def _shift_between(truth: Product, product: Product, region: ScoringRegion) -> tuple[float, float]:
    """Return the shift (y, x) in pixels that aligns ``product`` with ``truth`` in the scored rectangle."""
    from ptychodus.api.object import Object, RegistrationQuantity, estimate_object_alignment_shift

    pieces = []
    for item in (truth, product):
        array = region.crop(item.object_.get_layers_flattened())
        tapered = (array - array.mean()) * region.weights
        pieces.append(Object(tapered, item.object_.get_pixel_geometry(), item.object_.get_center()))
    shift_y, shift_x = estimate_object_alignment_shift(
        *pieces, upsample_factor=50, registration_quantity=RegistrationQuantity.COMPLEX
    )
    return float(shift_y), float(shift_x)


def scoring_region(product: Product, well_illuminated: float = WELL_ILLUMINATED) -> ScoringRegion:
    """Return the largest rectangle of the object that the product's own probe illuminates well."""
    from ptychodus.api.illumination import compute_illumination_map
    from ptychodus.api.metrics import compute_illumination_scoring_region

    return compute_illumination_scoring_region(
        compute_illumination_map(product),
        product.object_.get_array().shape[-2:],
        threshold_fraction=well_illuminated,
        erosion_px=EROSION_PX,
    )


def r_factor(parameters: ReconstructInput) -> float:
    """Compute the amplitude R-factor of a product against its patterns, at the best global scale.

    ``sum |sqrt(n) - c sqrt(I)| / sum sqrt(n)`` over the measured pixels, with ``I`` of Ptychodus' simulator; the scale
    ``c`` is fitted because that simulator is not unitary; 0 is perfect.
    """
    from ptychodus.api.simulate.diffraction import generate_diffraction_data

    good = slice(None) if parameters.bad_pixels is None else ~np.asarray(parameters.bad_pixels, dtype=bool)
    simulated = np.sqrt(generate_diffraction_data(parameters.product).get_patterns())[:, good]
    measured = np.sqrt(np.asarray(parameters.diffraction_patterns, dtype=np.float64)[:, good])
    best = float((measured * simulated).sum() / (simulated * simulated).sum())
    scales = np.linspace(0.8 * best, 1.2 * best, SCALE_STEPS)
    return float(min(np.abs(measured - scale * simulated).sum() for scale in scales) / measured.sum())
