"""The page of a report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..metrics.plots import cropped, limits_of, width_of
from ..metrics.run import LOSSES, TITLES, Run, duration, mode_shares
from ..metrics.verdict import fit_in_words, light_of
from ..types import Reconstruction, ReconstructionMetrics
from .facts import Facts, facts_of, length, metres, when
from .images import MapImage, draw_map
from .plots import plot_frc, plot_losses, plot_positions

if TYPE_CHECKING:
    from jinja2 import Environment

DATA_ID: Final = 'report-data'
"""Identifier of the element of the page that holds the data."""
_WELL_LIT: Final = 0.05
"""Share of the largest number of photons from which on a pixel counts for the colours."""

Real = npt.NDArray[np.floating]
PixelSize = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A picture with curves."""

    name: str
    title: str
    url: str
    note: str = ''


def render_report(reconstruction: Reconstruction, run: Run) -> str:
    """Return the report as one HTML page that refers to nothing outside of itself.

    Raises:
        ImportError: matplotlib or Jinja is not installed or does not work here.
    """
    facts = facts_of(reconstruction, run)
    return environment().get_template('report.html.jinja').render(
        facts=facts,
        data=data_text(facts),
        title=TITLES[run.kind],
        rows=_summary_rows(facts),
        misfit_light=None if facts['metrics'] is None else light_of(facts['metrics']['misfit']),
        misfit_words=None if facts['metrics'] is None else fit_in_words(facts['metrics']['misfit']),
        object_maps=object_maps(
            reconstruction.object_array, reconstruction.coverage, _well_lit(reconstruction), run.pixel_m
        ),
        given_probe=probe_maps(run.scan.probe, run.pixel_m, 'given'),
        found_probe=probe_maps(reconstruction.probe, run.pixel_m, 'found'),
        quality_maps=[] if reconstruction.metrics is None else _quality_maps(reconstruction.metrics, run.pixel_m),
        curves=_curves(reconstruction, run),
    )  # fmt: skip


@cache
def environment() -> Environment:
    """Return the environment of the templates, with the functions that they use."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {'when': when, 'duration': duration, 'light': light_of, 'metres': metres}
    return made


def data_text(value: Any) -> str:  # noqa: ANN401 - a JSON tree
    """Return JSON that can stand in a ``script`` element: no character of it ends the element."""
    text = json.dumps(value, indent=1, allow_nan=False)
    return text.replace('&', '\\u0026').replace('<', '\\u003c').replace('>', '\\u003e')


def _summary_rows(facts: Facts) -> list[tuple[str, str]]:
    pixel_m, metrics = facts['object_pixel_m'], facts['metrics']
    height, width = facts['pattern_shape']
    rows = [
        ('Scan', f'{facts["scan"]}: {facts["patterns"]:,} patterns of {height} x {width} pixels'),
        ('Begun', when(facts)),
        ('Took', duration(facts['seconds']) + (', stopped early' if facts['is_stopped'] else '')),
        ('Photons per pattern', f'{facts["photons_per_pattern"]:,.0f}'),
        ('Object pixel', 'not known' if pixel_m is None else ' x '.join(metres(side) for side in pixel_m)),
        ('Model', facts['model'] or 'none'),
    ]
    if metrics is None:
        return rows
    if 'resolution_px' in metrics:
        found = metrics['resolution_px']
        rows.append(
            ('Resolution (half scans)', 'none: they do not correlate' if found is None else length(found, pixel_m))
        )
    if metrics['uncertainty'] is not None:
        rows.append(('Uncertainty of a pixel', f'{metrics["uncertainty"]:.2g} of the incident amplitude'))
    rows += [
        ('Covered', f'{100 * metrics["covered_share"]:.0f} % of the object grid'),
        ('Overlap', f'{metrics["overlap"]:.1f} positions per pixel'),
        ('R-factor', f'{metrics["r_factor"]:.3f} (photon noise alone: {metrics["noise_r_factor"]:.3f})'),
    ]
    return rows


def object_maps(
    object_array: npt.NDArray[np.complexfloating],
    covered: npt.NDArray[np.bool_],
    lit: npt.NDArray[np.bool_],
    pixel_m: PixelSize | None,
) -> list[MapImage]:
    """Return amplitude and phase of an object ``(h, w)``.

    Args:
        object_array: the transmission.
        covered: where it is known.
        lit: where its values set the colours.
        pixel_m: height and width of a pixel in metres, where known.
    """
    array = object_array * np.exp(-1j * np.angle(object_array[covered].sum()))
    amplitude, phase = np.abs(array), np.angle(array)
    low, high = limits_of(phase[lit], False)
    is_narrow = high - low < np.pi
    phase_map = draw_map(
        'phase', 'Phase [rad]', cropped(np.where(covered, phase, np.nan), covered),
        'gray' if is_narrow else 'twilight', (low, high) if is_narrow else (-np.pi, np.pi),
        labels=None if is_narrow else ('-π', 'π'), pixel=width_of(pixel_m),
        note='The mean phase is zero.' if is_narrow else 'Both ends of the colours are one phase. The mean is zero.',
    )  # fmt: skip
    amplitude_map = draw_map(
        'amplitude', 'Amplitude', cropped(np.where(covered, amplitude, np.nan), covered), 'gray',
        limits_of(amplitude[lit], False), pixel=width_of(pixel_m),
    )  # fmt: skip
    return [amplitude_map, phase_map]


def probe_maps(probe: npt.NDArray[np.complexfloating], pixel_m: PixelSize | None, name: str) -> list[MapImage]:
    """Return amplitude and phase of the first mode, and the amplitudes of the others."""
    found = []
    shares = mode_shares(probe)
    for number, mode in enumerate(probe):
        amplitude = np.abs(mode).astype(np.float64)
        largest = float(amplitude.max()) or 1.0
        title = f'Mode {number + 1}: {100 * shares[number]:.1f} %'
        found.append(
            draw_map(
                f'probe-{name}-{number + 1}', title, amplitude / largest, 'viridis', (0.0, 1.0),
                labels=('0', 'largest amplitude'), pixel=width_of(pixel_m),
            )
        )  # fmt: skip
        if number == 0:
            phase = np.where(amplitude > _WELL_LIT * largest, np.angle(mode), np.nan)
            found.append(
                draw_map(
                    f'probe-{name}-phase', 'Phase of mode 1 [rad]', phase, 'twilight', (-np.pi, np.pi),
                    labels=('-π', 'π'), pixel=width_of(pixel_m),
                )
            )  # fmt: skip
    return found


def _quality_maps(metrics: ReconstructionMetrics, pixel_m: PixelSize | None) -> list[MapImage]:
    covered = metrics.photons_map > 0
    photons = np.where(covered, metrics.photons_map, np.nan)
    lit = covered & (metrics.photons_map > _WELL_LIT * max(float(metrics.photons_map.max()), 1e-30))
    with np.errstate(divide='ignore', invalid='ignore'):
        log_photons, log_uncertainty = np.log10(photons), np.log10(metrics.uncertainty_map)
    found = []
    for name, title, image, colours, is_logarithmic, note in (
        ('coverage', 'Coverage: photons per pixel', log_photons, 'viridis', True, ''),
        ('uncertainty', 'Uncertainty over the incident amplitude', log_uncertainty, 'cividis', True, ''),
        ('object-residual', 'R-factor on the object', metrics.object_r_map, 'magma', False,
         'Where the patterns that a pixel contributed to are not explained.'),
    ):  # fmt: skip
        shown = cropped(np.where(covered, image, np.nan), covered)
        limits = limits_of(image[lit], not is_logarithmic)
        found.append(
            draw_map(
                name, title, shown, colours, limits, pixel=width_of(pixel_m),  # type: ignore[arg-type] # names of the table above
                labels=(_of_log(limits[0]), _of_log(limits[1])) if is_logarithmic else None,
                note='Logarithmic colours.' if is_logarithmic else note,
            )
        )  # fmt: skip
    low, high = limits_of(metrics.detector_r_map, True)
    found.append(
        draw_map(
            'detector-residual', 'R-factor on the detector', metrics.detector_r_map, 'magma',
            # Where almost no photons arrive, photon noise alone gives R-factors above 1.
            (low, min(high, max(1.0, 2 * low))), pixel=(1.0, 'px'), note='Hatched: bad, or without photons.',
        )
    )  # fmt: skip
    return found


def _of_log(logarithm: float) -> str:
    """Return a number with two significant digits, of its decimal logarithm."""
    return f'{float(f"{10**logarithm:.2g}"):,.10g}'


def _curves(reconstruction: Reconstruction, run: Run) -> list[Curve]:
    found = [Curve('positions', 'Positions', plot_positions(reconstruction, run), 'Without their common shift.')]
    if reconstruction.losses:
        found.append(
            Curve(
                'losses', LOSSES[run.kind].capitalize(), plot_losses(reconstruction.losses),
                'At 1 (dotted), photon noise is the only difference where counts are many; where they are few, the '
                'loss is below 1. The misfit above is the comparable number.',
            )
        )  # fmt: skip
    frc = None if reconstruction.metrics is None else reconstruction.metrics.frc
    if frc is not None:
        found.append(Curve('frc', 'Fourier ring correlation of the half scans', plot_frc(frc, run.pixel_m)))
    return found


def _well_lit(reconstruction: Reconstruction) -> npt.NDArray[np.bool_]:
    if reconstruction.metrics is None:
        return reconstruction.coverage
    photons = reconstruction.metrics.photons_map
    return np.asarray(reconstruction.coverage & (photons > _WELL_LIT * photons.max()))
