"""The quick check of the selected data: what a run would refuse, and what is unusual. Without torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from ..data.io.product import scan_from_reconstruct_input
from ..errors import InputError, MemoryLimitError
from ..storage.model_facts import in_words

if TYPE_CHECKING:
    from ptychodus.api.reconstruct import ReconstructInput

    from ..data.scan import RawScan

FAINT_PHOTONS: Final = 1e4
"""Mean photons per pattern below which the preset "Faint" is advised."""


def check_data(parameters: ReconstructInput) -> tuple[bool, list[str]]:
    """Check the input of a run as the run itself would, and describe it.

    Returns:
        Whether a run can begin, and the findings as sentences: first what is wrong or unusual, then what the data are.
    """
    with _collected_warnings() as warnings:
        try:
            scan = scan_from_reconstruct_input(parameters)
        except (InputError, MemoryLimitError) as error:
            return False, [str(error)]
    return True, [*warnings, *_unusual(scan), *_description(scan, parameters)]


def _unusual(scan: RawScan) -> Iterator[str]:
    photons = scan.mean_photons()
    if photons < FAINT_PHOTONS:
        yield f'{photons:,.0f} photons per pattern are few: choose the preset "Faint".'
    if scan.empty.size:
        yield f'{scan.empty.size} patterns hold no photon; they are skipped.'
    if len(np.unique(np.round(scan.positions, 3), axis=0)) < scan.size:
        yield 'Some positions are given twice.'
    if scan.fresnel_numbers == (0.0, 0.0):
        yield 'Photon energy or detector distance is unknown.'


def _description(scan: RawScan, parameters: ReconstructInput) -> Iterator[str]:
    height, width = scan.pattern_shape
    pixel = parameters.product.object_.get_pixel_geometry()
    bad = int(scan.bad_pixels.sum())
    yield f'{scan.size:,} patterns of {height} x {width} pixels, {in_words(scan.mean_photons())} photons per pattern.'
    yield f'{bad:,} pixels of the detector are masked ({100 * bad / scan.bad_pixels.size:.2g} %).'
    yield f'Probe with {len(scan.probe)} incoherent mode{"" if len(scan.probe) == 1 else "s"}.'
    yield (
        f'Object grid of {scan.object_shape[0]} x {scan.object_shape[1]} pixels of {pixel.height_m * 1e9:.3g} x '
        f'{pixel.width_m * 1e9:.3g} nm; the object is {"flat" if scan.is_flat else "an earlier reconstruction"}.'
    )


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings of this package inside."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    collector, package = Collector(logging.WARNING), logging.getLogger(__name__.partition('.')[0])
    package.addHandler(collector)
    try:
        yield found
    finally:
        package.removeHandler(collector)
