"""Compare a model with the scan to reconstruct: probe, pixel size, dose and pattern size. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from .model_file import HEADER_KEY, PROBE_KEY, ModelHeader, read_model_header
from .tensor_file import open_tensor_file

DOSE_FACTOR: Final = 5.0
"""Ratio of the photons per pattern from which on another dose is reported."""
PROBE_OVERLAP: Final = 0.8
"""Overlap of the amplitudes of two probes, 1 for equal ones, below which another probe is reported."""
PIXEL_TOLERANCE: Final = 0.01
"""Relative difference of two pixel sizes from which on another pixel size is reported."""


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """What is known about a model without building it."""

    header: ModelHeader
    probe: npt.NDArray[np.complex64]
    """Probe of the training, ``(M, H, W)``."""


@dataclass(frozen=True, eq=False)
class ScanFacts:
    """What a model is compared with."""

    photons: float
    """Mean photons per pattern; 0 where unknown."""
    probe: npt.NDArray[np.complexfloating]
    """Given probe, ``(M, H, W)``."""
    pixel_m: tuple[float, float] | None = None
    """Height and width of an object pixel in metres; None where unknown."""


def read_facts(file: Path) -> ModelFacts:
    """Read header and probe of a model file.

    Raises:
        ModelFileError: the file is no model of this package, or damaged.
    """
    header = read_model_header(file)
    with open_tensor_file(file, HEADER_KEY) as (tensors, _):
        parts: npt.NDArray[np.float32] = tensors.get_tensor(PROBE_KEY)
    if parts.ndim != 4 or parts.shape[-1] != 2 or parts.dtype != np.float32:
        raise ModelFileError(
            f'The probe in {file.name} is not an array (modes, height, width, 2): the file is damaged.'
        )
    return ModelFacts(header, np.ascontiguousarray(parts).view(np.complex64)[..., 0])


def differences(model: ModelFacts, scan: ScanFacts) -> list[str]:
    """Return a sentence for everything in which a scan differs from the training of a model so that it matters."""
    found = []
    trained, given = model.probe.shape[-2:], scan.probe.shape[-2:]
    if trained != given:
        found.append(
            f'The model was trained on patterns of {trained[0]} x {trained[1]} pixels, this scan has {given[0]} x '
            f'{given[1]}: train anew, or crop or bin the patterns.'
        )
    elif (overlap := _overlap(model.probe, scan.probe)) < PROBE_OVERLAP:
        found.append(
            f'The probe differs from that of the training (overlap {overlap:.2f}): "Use the probe of the model" '
            'decides which of the two is used.'
        )
    before, now = model.header.object_pixel_m, scan.pixel_m
    if before is not None and now is not None and not np.allclose(now, before, rtol=PIXEL_TOLERANCE, atol=0):
        found.append(
            f'The model was trained with object pixels of {_nanometres(before)} (height x width), this scan has '
            f'{_nanometres(now)}: probe and features have another size in pixels. Check photon energy, detector '
            'distance and binning, or train with this pixel size.'
        )
    photons = model.header.photons_per_frame
    if photons > 0 and scan.photons > 0 and not 1 / DOSE_FACTOR < scan.photons / photons < DOSE_FACTOR:
        found.append(
            f'The scan has {in_words(scan.photons)} photons per pattern, the training had {in_words(photons)}: check '
            'the result, or train with this dose.'
        )
    return found


def in_words(photons: float) -> str:
    """Return a number of photons with two significant digits and without an exponent: ``780,000``."""
    return f'{float(f"{photons:.2g}"):,.0f}'


def _nanometres(pixel_m: tuple[float, float]) -> str:
    return ' x '.join(f'{side * 1e9:.4g}' for side in pixel_m) + ' nm'


def _overlap(first: npt.NDArray[np.complexfloating], second: npt.NDArray[np.complexfloating]) -> float:
    """Return the normalised overlap of the amplitudes of two probes, all modes together, at their best shift."""
    amplitudes = [np.sqrt(np.square(np.abs(probe)).sum(axis=0, dtype=np.float64)) for probe in (first, second)]
    transforms = [np.fft.fft2(amplitude) for amplitude in amplitudes]
    correlation = np.fft.ifft2(transforms[0] * transforms[1].conj()).real
    norm = np.linalg.norm(amplitudes[0]) * np.linalg.norm(amplitudes[1])
    return float(correlation.max() / norm) if norm > 0 else 0.0
