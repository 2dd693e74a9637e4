"""The data of a report as values of JSON: ``specs/report.schema.json``."""

from __future__ import annotations

import math
import platform
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..metrics.output import numbers
from ..storage.model_file import package_versions
from ..types import Reconstruction, ReconstructionMetrics
from .advice import advice
from .run import Run

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
        'versions': {**package_versions(), 'python': platform.python_version(), 'system': platform.system()},
    }
    return facts | {'advice': advice(facts, run.config)}


def position_shifts(given: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how far each position moved beyond the common shift, ``(n, 2)`` as (y, x), object pixels."""
    shifts = found - given
    return np.asarray(shifts - shifts.mean(axis=0))


def mode_shares(probe: npt.NDArray[np.complexfloating]) -> list[float]:
    """Return the share of the photons in each mode, 0 to 1."""
    power = [float(np.sum(np.abs(mode) ** 2, dtype=np.float64)) for mode in probe]
    return [one / max(sum(power), 1e-30) for one in power]


def changed_settings(config: Config) -> list[dict[str, Any]]:
    """Return the settings that differ from their defaults, with name, label, value, default and unit."""
    found = []
    default = Config()
    for section in type(config).model_fields:
        values, fields = getattr(config, section), type(getattr(config, section)).model_fields
        for name, field in fields.items():
            value, usual = getattr(values, name), getattr(getattr(default, section), name)
            if value != usual:
                extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
                found.append(
                    {
                        'name': f'{section}.{name}',
                        'label': field.title or name,
                        'value': value,
                        'default': usual,
                        'unit': str(extra.get('unit', '')),
                    }
                )
    return found


def when(facts: Facts) -> str:
    """Return the time at which the run began, for people."""
    return datetime.fromisoformat(facts['started']).strftime('%d %B %Y, %H:%M')


def duration(seconds: float) -> str:
    """Return a duration for people, for example ``'3 min 20 s'``."""
    if seconds < 10:
        return f'{seconds:.1f} s'
    whole = round(seconds)
    parts = [(whole // 3600, 'h'), (whole // 60 % 60, 'min'), (whole % 60, 's')]
    return ' '.join(f'{value} {unit}' for value, unit in parts if value) or '0 s'


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
