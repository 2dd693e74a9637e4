"""The data of a report as values of JSON: ``specs/report.schema.json``."""

from __future__ import annotations

import math
import platform
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..metrics.output import numbers
from ..metrics.run import Run, changed_settings, date_and_time, mode_shares, position_shifts
from ..storage.model_file import package_versions
from ..types import Reconstruction, ReconstructionMetrics
from .advice import advice

FORMAT_VERSION: Final = 1

Facts = dict[str, Any]


def facts_of(reconstruction: Reconstruction, run: Run) -> Facts:
    """Return what the report says in numbers and words."""
    probe, scan = reconstruction.probe, run.scan
    shifts = position_shifts(scan.positions, reconstruction.positions)
    facts: Facts = {
        'format_version': FORMAT_VERSION,
        'kind': run.kind,
        'scan': scan.name,
        'started': run.started.isoformat(timespec='seconds'),
        'seconds': round(run.seconds, 3),
        'is_stopped': run.is_stopped,
        'patterns': scan.size,
        'pattern_shape': list(scan.pattern_shape),
        'object_shape': list(reconstruction.object_array.shape),
        'object_pixel_m': None if run.pixel_m is None else list(run.pixel_m),
        'photons_per_pattern': float(np.sum(np.abs(probe) ** 2, dtype=np.float64)),
        'probe_modes': len(probe),
        'probe_mode_shares': mode_shares(probe),
        'positions': _shift_statistics(shifts),
        'intensity_spread': float(np.std(reconstruction.intensities[scan.lit], dtype=np.float64)),
        'losses': [[record.epoch, record.training, record.validation] for record in reconstruction.losses],
        'metrics': None if reconstruction.metrics is None else numbers(reconstruction.metrics, run.pixel_m),
        'credibility': _credibility(reconstruction.metrics),
        'changed_settings': changed_settings(run.config),
        'model': None if run.model_file is None else str(run.model_file),
        'output': None if run.output is None else str(run.output),
        'warnings': list(run.warnings),
        'versions': versions(),
    }
    return facts | {'advice': advice(facts, run.config)}


def versions() -> dict[str, str]:
    """Return the versions of packages, Python and operating system that a report lists."""
    return {**package_versions(), 'python': platform.python_version(), 'system': platform.system()}


def when(facts: Facts) -> str:
    """Return the time at which the run began, for people."""
    return date_and_time(datetime.fromisoformat(facts['started']))


def length(pixels: float, pixel_m: tuple[float, float] | list[float] | None) -> str:
    """Return a length in pixels and, where the pixel size is known, in metres along the longer side of a pixel."""
    text = f'{pixels:.2g} px'
    return text if pixel_m is None else f'{text} ({metres(pixels * max(pixel_m))})'


def metres(value: float) -> str:
    """Return a length with three digits and a prefix of the unit, for example ``'28.6 nm'``."""
    for factor, unit in ((1.0, 'm'), (1e-3, 'mm'), (1e-6, 'µm')):
        if value >= factor:
            return f'{value / factor:.3g} {unit}'
    return f'{value / 1e-9:.3g} nm'


def _shift_statistics(shifts: npt.NDArray[np.float64]) -> dict[str, Any]:
    distances = np.hypot(shifts[:, 0], shifts[:, 1])
    return {
        'mean_shift_px': float(distances.mean()),
        'largest_shift_px': float(distances.max()),
        'are_moved': bool(distances.max() > 1e-6),
    }


def _credibility(metrics: ReconstructionMetrics | None) -> dict[str, Any] | None:
    if metrics is None or metrics.credibility is None:
        return None
    found = metrics.credibility
    return {
        'colour': found.colour,
        'value': found.value if math.isfinite(found.value) else None,
        'error': found.error if math.isfinite(found.error) else None,
        'cause': found.cause,
        'sentence': found.sentence,
        'map': found.map,
        'setting': found.setting,
    }
