"""Print how well the uncertainty map predicts the actual error, with the default settings.

    python -m benchmarks.uncertainty [--objects discs ...] [--photons 1e3 ...] [--seeds 21 31] [--positions 196]

The actual error is the difference to the known object after factor, phase ramp and shift are removed, in the well
illuminated pixels. Printed are the root mean square of actual over predicted error without the calibration and with it,
the share of the real and imaginary errors within 1 and 1.96 standard deviations (68 % and 95 % are expected), and the
CPU time of the calibration over that of the refinement. The method was chosen on ``TUNED``; ``HELD_BACK`` was measured
afterwards.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.demo.simulate import ScanPlan
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.metrics import aligned, window_of

from .faint.objects import clean_scan
from .quality.table import configure

OBJECTS = ('discs', 'texture', 'photograph', 'text', 'grass', 'star')
PHOTONS = (1e3, 1e4, 1e5, 1e6)
TUNED, HELD_BACK = (7, 21), (31,)
"""Seeds of positions, objects and counts."""
REACH = (0.85, 1.15)
HEAD = (
    '| photons | sample | seed | not calibrated | calibrated | 68 % | 95 % | added time | |\n'
    '| --- | --- | --- | --- | --- | --- | --- | --- | --- |'
)


@dataclass(frozen=True)
class Calibration:
    """Actual against predicted error."""

    ratio: float
    """Root mean square of actual over predicted error."""
    within_1: float
    """Share of the real and imaginary errors within one standard deviation."""
    within_2: float
    """Share within 1.96 standard deviations."""
    seconds: float
    """CPU time of the reconstruction and its metrics."""


def measured(scan: RawScan, truth: npt.NDArray[np.complexfloating], *, calibrate: bool) -> Calibration:
    """Refine ``scan`` with the defaults and compare the error against ``truth`` with the uncertainty map."""
    config = configure({'inference': {'calibrate': calibrate, 'verify': False}})
    begin = time.process_time()
    result = refine(scan, config)
    seconds = time.process_time() - begin
    if result.metrics is None:
        raise RuntimeError('The refinement has no metrics.')
    window = window_of(result.metrics.photons_map)
    inside = window > 0.5
    error = (aligned(result.object_array.astype(np.complex128), truth, window) - truth)[inside]
    sigma = result.metrics.uncertainty_map[inside]
    scores = np.abs(np.concatenate([error.real, error.imag]) / np.tile(sigma / np.sqrt(2), 2))
    return Calibration(
        ratio=float(np.sqrt(np.square(np.abs(error) / sigma).mean(dtype=np.float64))),
        within_1=float((scores < 1).mean()),
        within_2=float((scores < 1.96).mean()),
        seconds=seconds,
    )


def lines(kind: str, seed: int, photons: list[float], side: int) -> Iterator[tuple[bool, str]]:
    """Yield for each number of photons whether the goal is reached, and the line of the table."""
    clean = clean_scan(kind, seed, ScanPlan(rows=side, columns=side))
    truth = clean.truth.object_.get_layers_flattened().astype(np.complex128)
    for number in photons:
        scan = clean.raw(number, 1000 + seed)
        plain, found = (measured(scan, truth, calibrate=calibrate) for calibrate in (False, True))
        is_reached = REACH[0] <= round(found.ratio, 2) <= REACH[1]
        added = 100 * (found.seconds / plain.seconds - 1)
        yield (
            is_reached,
            f'| {number:.0e} | {kind} | {seed} | {plain.ratio:.2f} | {found.ratio:.2f} | {100 * found.within_1:.0f} | '
            f'{100 * found.within_2:.0f} | {added:.0f} % | {"reached" if is_reached else "**missed**"} |',
        )


def main() -> None:
    """Measure and print the table, and how many scans reach the goal."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.uncertainty', description=__doc__)
    parser.add_argument('--objects', nargs='+', choices=OBJECTS, default=list(OBJECTS))
    parser.add_argument('--photons', type=float, nargs='+', default=list(PHOTONS), help='per pattern')
    parser.add_argument('--seeds', type=int, nargs='+', default=[*TUNED, *HELD_BACK])
    parser.add_argument('--positions', type=int, choices=(196, 484), default=196)
    parsed = parser.parse_args()
    small = clean_scan('discs', 1, ScanPlan(rows=4, columns=4))
    truth = small.truth.object_.get_layers_flattened().astype(np.complex128)
    measured(small.raw(PHOTONS[0], 1), truth, calibrate=True)  # compiles what is timed below
    print(HEAD)
    reached = []
    for seed in parsed.seeds:
        for kind in parsed.objects:
            for is_reached, line in lines(kind, seed, parsed.photons, round(parsed.positions**0.5)):
                reached.append(is_reached)
                print(line, flush=True)
    print(f'\n{sum(reached)} of {len(reached)} scans between {REACH[0]} and {REACH[1]}.')


if __name__ == '__main__':
    main()
