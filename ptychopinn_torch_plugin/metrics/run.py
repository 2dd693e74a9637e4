"""One run of an engine, as its plot and its report describe it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..config import Config

if TYPE_CHECKING:
    from ..data.scan import RawScan

RunKind = Literal['reconstruct', 'refine']

TITLES: dict[RunKind, str] = {
    'reconstruct': 'Reconstruction with a model, then refinement',
    'refine': 'Refinement without a model',
}
LOSSES: dict[RunKind, str] = {
    'reconstruct': 'losses of the training of the model',
    'refine': 'losses of the refinement',
}
"""What the losses of a reconstruction are."""


@dataclass(frozen=True, eq=False)
class Run:
    """What is said of a reconstruction beside its result."""

    kind: RunKind
    scan: RawScan
    """The scan that was reconstructed: its name, and the probe and positions before the run."""
    config: Config
    started: datetime
    """Time at which the run began, with its time zone."""
    seconds: float
    """Duration of the run."""
    pixel_m: tuple[float, float] | None = None
    """Height and width of an object pixel in metres; None where they are not known."""
    warnings: tuple[str, ...] = ()
    """Warnings in the log of the run."""
    model_file: Path | None = None
    output: Path | None = None
    """The product or the arrays that were written; None where the result was returned only."""
    is_stopped: bool = False
    """Whether the run was stopped early."""


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


def duration(seconds: float) -> str:
    """Return a duration for people, for example ``'3 min 20 s'``."""
    if seconds < 10:
        return f'{seconds:.1f} s'
    whole = round(seconds)
    parts = [(whole // 3600, 'h'), (whole // 60 % 60, 'min'), (whole % 60, 's')]
    return ' '.join(f'{value} {unit}' for value, unit in parts if value) or '0 s'


def date_and_time(moment: datetime) -> str:
    """Return a time for people, for example ``'25 November 2026, 03:00'``."""
    return moment.strftime('%d %B %Y, %H:%M')


def scale_bar(width_px: int, pixel: float, unit: str) -> tuple[float, str]:
    """Return a scale bar: its length in pixels, and its text.

    It is the longest one of 1, 2 or 5 times a power of ten that is at most a third of the picture.

    Args:
        width_px: width of the picture in pixels.
        pixel: width of a pixel in ``unit``.
        unit: ``'m'``, which is written with a prefix, or any other.
    """
    largest = width_px * pixel / 3
    power = 10.0 ** math.floor(math.log10(largest))
    value = max(nice * power for nice in (1.0, 2.0, 5.0) if nice * power <= largest)
    text = f'{value:g} {unit}'
    if unit == 'm':
        for factor, name in ((1e-6, 'µm'), (1e-9, 'nm')):
            if value >= 0.999 * factor:
                text = f'{value / factor:g} {name}'
                break
    return value / pixel, text
