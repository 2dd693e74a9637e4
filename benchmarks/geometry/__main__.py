"""``python -m benchmarks.geometry {inspect,verdict,faults,aps26id,rotation}``.

Geometry from patterns alone, wrong signs, named faults, the measured scan of APS 26-ID, and a measured scan rotated.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.positions import mapped, rotation_matrix
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.engines.verification import reversed_defocus, verify
from ptychopinn_torch_plugin.inspection.diagnosis import diagnose
from ptychopinn_torch_plugin.inspection.inspect import inspect
from ptychopinn_torch_plugin.inspection.reading import read_measurement

from .aps26id import run_aps26id
from .faults import FAULTS, faulty_scan
from .scans import DOSES, KINDS, known_scan, unknown_scan

Modes = npt.NDArray[np.complexfloating]

CPU = torch.device('cpu')
TURN_DEGREES = 5.0
NOISE = 1.1
"""R-factor over that of photon noise up to which a reconstruction was called explained by the R-factor alone."""


def numbered(kinds: list[str], doses: list[float], first: int) -> Iterator[tuple[int, str, float]]:
    """Yield number, kind and photons of the scans: a seed of its own for each."""
    for kind in kinds:
        for photons in doses:
            yield first + 10 * KINDS.index(kind) + round(math.log10(photons)), kind, photons


def inspect_all(scans: Iterator[tuple[int, str, float]]) -> None:
    """Inspect scans of unknown orientation, defocus and rotation."""
    right = count = 0
    print('| scan | found | score, rival | lead | curvature, true | rotation, true | modes | seconds |')
    print('| --- | --- | --- | --- | --- | --- | --- | --- |')
    for number, kind, photons in scans:
        scan = unknown_scan(number, photons, kind, rotated=True)
        start = time.process_time()
        result = inspect(scan.measurement, CPU)
        seconds = time.process_time() - start
        found = result.found
        count += 1
        if found is None:
            print(f'| {kind} {number}, {photons:.0e} | nothing | | | | | | {seconds:.0f} |')
            continue
        is_right = scan.is_found(found.best.orientation, found.best.curvature)
        right += is_right
        factor = (scan.measurement.shape[0] / found.side) ** 2
        sign = 1.0 if found.best.orientation == scan.orientation else -1.0
        print(
            f'| {kind} {number}, {photons:.0e} | {"right" if is_right else "WRONG"}'
            f'{"" if result.orientation == scan.orientation else ", conjugated"} | '
            f'{found.best.score:.3f}, {found.rival.score:.3f} | {found.lead:.1f} | '
            f'{sign * factor * found.curvature.value:.1f} +- {factor * found.curvature.error:.1f}, '
            f'{scan.curvature:.1f} | {math.degrees(found.rotation.value):.2f} +- '
            f'{math.degrees(found.rotation.error):.2f}, {math.degrees(scan.rotation):.2f} | {found.modes} | '
            f'{seconds:.0f} |',
            flush=True,
        )
    print(f'\n{right} of {count} right')


def verify_all(scans: Iterator[tuple[int, str, float]]) -> None:
    """Reconstruct with the right and the reversed defocus, and verify both."""
    print('| scan | defocus | R / noise | R alone says | correlation, allowed | credibility | verdict | cost |')
    print('| --- | --- | --- | --- | --- | --- | --- | --- |')
    config = parse_config({'inference': {'threads': 1}})
    rejected = accepted = blamed = count = wrong = 0
    for number, kind, photons in scans:
        _, scan = known_scan(number, photons, kind)
        for name, probe in (('right', scan.probe), ('reversed', reversed_defocus(scan.probe))):
            start = time.process_time()
            result = refine(replace(scan, probe=probe), config)
            middle = time.process_time()
            verdict = verify(scan, result.probe, result.positions, CPU).credibility
            cost = (time.process_time() - middle) / (middle - start)
            ratio = math.nan if result.metrics is None else result.metrics.r_factor / result.metrics.noise_r_factor
            # At low dose, the refinement of the probe may turn a wrong sign around by itself.
            is_right = overlap(result.probe, scan.probe) > overlap(result.probe, reversed_defocus(scan.probe))
            wrong += not is_right
            rejected += not is_right and verdict.colour == 'red'
            count += is_right
            accepted += is_right and verdict.colour == 'green'
            blamed += is_right and verdict.colour == 'red'
            print(
                f'| {kind} {number}, {photons:.0e} | {name}, ends {"right" if is_right else "wrong"} | {ratio:.3f} | '
                f'{"explained" if ratio <= NOISE else "not explained"} | {verdict.correlation:.3f}, '
                f'{verdict.allowed:.3f} | {verdict.value:.2f} +- {verdict.error:.2f} | {verdict.colour}, '
                f'{verdict.cause or "-"} ({verdict.lead:.1f}) | {100 * cost:.0f} % |',
                flush=True,
            )
    print(f'\nsign right: {accepted} of {count} green, {blamed} red; sign wrong: {rejected} of {wrong} red')


def diagnose_all(first: int, seeds: int, healthy: int) -> None:
    """Diagnose scans with one fault each, and healthy ones: a seed of its own for each."""
    print('| injected | seed | causes named, most likely first | seconds |')
    print('| --- | --- | --- | --- |')
    ranks: dict[str, list[int]] = {fault: [] for fault in FAULTS}
    blamed = count = 0
    number = first
    for _ in range(seeds):
        for fault in [*FAULTS, *[None] * healthy]:
            scan = faulty_scan(fault, number)
            start = time.process_time()
            named = [cause.key for cause in diagnose(scan, CPU).causes]
            seconds = time.process_time() - start
            print(f'| {fault or "none"} | {number} | {", ".join(named) or "none"} | {seconds:.1f} |', flush=True)
            if fault is None:
                count, blamed = count + 1, blamed + bool(named)
            else:
                ranks[fault].append(1 + named.index(FAULTS[fault]) if FAULTS[fault] in named else 0)
            number += 1
    print('\n| injected | scans | first guess | second guess |\n| --- | --- | --- | --- |')
    for fault, places in ranks.items():
        print(f'| {fault} | {len(places)} | {places.count(1)} | {places.count(2)} |')
    every = [place for places in ranks.values() for place in places]
    right = sum(place in (1, 2) for place in every)
    print(f'\n{right} of {len(every)} in the first two; {blamed} of {count} healthy blamed')


def find_rotation(folder: Path) -> None:
    """Inspect a measured scan as given and with its positions rotated by ``TURN_DEGREES``."""
    given = read_measurement(folder)
    for degrees in (0.0, TURN_DEGREES):
        turned = mapped(given.positions, rotation_matrix(-math.radians(degrees)))
        found = inspect(replace(given, positions=turned), CPU).found
        if found is None:
            print(f'{degrees:.0f} degrees: nothing found', flush=True)
            continue
        print(
            f'{degrees:.0f} degrees: orientation {found.best.orientation.name}, rotation '
            f'{math.degrees(found.rotation.value):.2f} +- {math.degrees(found.rotation.error):.2f}',
            flush=True,
        )


def overlap(probe: Modes, other: Modes) -> float:
    """Return the largest overlap of the strongest modes over all shifts, 0 to 1."""
    first, second = (modes[int(np.argmax(np.square(np.abs(modes)).sum(axis=(1, 2))))] for modes in (probe, other))
    product = np.fft.ifft2(np.fft.fft2(first) * np.fft.fft2(second).conj())
    return float(np.abs(product).max() / np.linalg.norm(first) / np.linalg.norm(second))


def main() -> None:
    """Run one of the tables."""
    parser = argparse.ArgumentParser(description='Geometry from patterns alone.')
    parser.add_argument('table', choices=('inspect', 'verdict', 'faults', 'aps26id', 'rotation'))
    parser.add_argument('--kinds', nargs='+', default=list(KINDS))
    parser.add_argument('--doses', type=float, nargs='+', default=list(DOSES))
    parser.add_argument('--first', type=int, default=0, help='added to the numbers (seeds) of the scans')
    parser.add_argument('--seeds', type=int, default=5, help='scans of every fault')
    parser.add_argument('--healthy', type=int, default=4, help='healthy scans for each scan of a fault')
    parser.add_argument('--data', type=Path, help='folder of the scan (aps26id, rotation)')
    parser.add_argument('--picture', type=Path, help='PNG file to draw (aps26id)')
    parser.add_argument('--threads', type=int, default=2, help='threads (aps26id)')
    parsed = parser.parse_args()
    if parsed.table == 'aps26id':
        if parsed.data is None:
            parser.error('aps26id needs the folder of the scan: --data FOLDER')
        for line in run_aps26id(parsed.data, parsed.picture, parsed.threads):
            print(line, flush=True)
        return
    torch.set_num_threads(1)
    np.set_printoptions(precision=3)
    if parsed.table == 'rotation':
        if parsed.data is None:
            parser.error('rotation needs the folder of a scan: --data FOLDER')
        find_rotation(parsed.data)
        return
    if parsed.table == 'faults':
        diagnose_all(parsed.first, parsed.seeds, parsed.healthy)
        return
    scans = numbered(parsed.kinds, parsed.doses, parsed.first)
    (inspect_all if parsed.table == 'inspect' else verify_all)(scans)


if __name__ == '__main__':
    main()
