"""Make a scan larger than the memory, a block of patterns at a time, and print how much memory a command takes.

python -m benchmarks.big_scan make scan --gigabytes 20
python -m benchmarks.big_scan run -- ptychopinn-torch refine scan -o out --set refinement.refine_epochs=3
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.data.io.product import scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, products_of

BLOCK = 2048
"""Positions that are simulated at a time."""
BATCH = 64
COUNT_BYTES = 4
"""Bytes of a count: uint32."""


def make(folder: Path, gigabytes: float, side: int) -> None:
    """Write a workflow folder of ``gigabytes`` of patterns of ``side`` pixels: 32-bit counts, not compressed."""
    import h5py
    from ptychodus.api.io import DiffractionFileKeys as Key
    from ptychodus.api.io import StandardFileLayout, save_product

    rows = math.ceil(math.sqrt(gigabytes * 1e9 / (COUNT_BYTES * side**2)))
    plan = ScanPlan(sample='texture', rows=rows, columns=rows, step_px=3.0, pattern_shape=(side, side), photons=1e5)
    rng = np.random.default_rng(plan.seed)
    truth, given = products_of(plan, rng)
    folder.mkdir(parents=True, exist_ok=True)
    save_product(folder / StandardFileLayout.PRODUCT, given)
    with h5py.File(folder / StandardFileLayout.DIFFRACTION, 'w') as file:
        file.create_dataset(Key.INDEXES, data=truth.probe_positions.get_indexes())
        file.create_dataset(Key.BAD_PIXELS, data=np.zeros(plan.pattern_shape, dtype=np.bool_))
        patterns = file.create_dataset(Key.PATTERNS, (plan.positions, side, side), dtype=np.uint32)
        patterns.attrs[Key.DETECTOR_PIXEL_WIDTH] = patterns.attrs[Key.DETECTOR_PIXEL_HEIGHT] = plan.detector_pixel_m
        for first in range(0, plan.positions, BLOCK):
            last = min(first + BLOCK, plan.positions)
            patterns[first:last] = simulated(truth, first, last, rng)
            sys.stderr.write(f'\r{last} of {plan.positions} patterns')
    sys.stderr.write('\n')


def simulated(truth: object, first: int, last: int, rng: np.random.Generator) -> np.ndarray:
    """Return the counts of the positions from ``first`` to ``last`` of a product, ``(n, H, W)`` uint32."""
    import torch
    from ptychodus.api.probe_positions import ProbePositionSequence
    from ptychodus.api.product import Product
    from ptychodus.api.reconstruct import ReconstructInput

    from ptychopinn_torch_plugin.physics.forward import simulate

    assert isinstance(truth, Product)  # noqa: S101 - Ptychodus is imported here only
    points = [truth.probe_positions[number] for number in range(first, last)]
    shape = truth.probes.height_px, truth.probes.width_px
    part = replace(truth, probe_positions=ProbePositionSequence(points))
    ones = np.ones((len(points), *shape), dtype=np.uint8)
    scan = scan_from_reconstruct_input(ReconstructInput(ones, np.zeros(shape, dtype=np.bool_), part))
    tensors = ScanTensors(scan, torch.device('cpu'))
    state = initial_state(tensors, scale=1.0)
    sample = torch.from_numpy(truth.object_.get_layer(0).astype(np.complex64))
    counts = np.empty(ones.shape, dtype=np.uint32)
    with torch.inference_mode():
        for start in range(0, len(points), BATCH):
            numbers = np.arange(start, min(start + BATCH, len(points)))
            batch = tensors.batch(state, numbers, (0, 0))
            expected = simulate(sample[None], batch.probes, batch.patch_origins).expected[0]
            counts[numbers] = rng.poisson(np.fft.fftshift(expected.numpy(), axes=(-2, -1)))
    return counts


def run(command: list[str]) -> int:
    """Run ``command``, print its time and the largest memory of it and its children, and return its exit code."""
    import resource

    start = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    sys.stderr.write(f'{time.perf_counter() - start:.0f} s, {peak:.2f} GiB in memory at most\n')
    return code


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True, dest='action')
    making = actions.add_parser('make', help='write a workflow folder')
    making.add_argument('folder', type=Path)
    making.add_argument('--gigabytes', type=float, default=20.0, help='size of the patterns (default: 20)')
    making.add_argument('--side', type=int, default=128, help='side of a pattern in pixels (default: 128)')
    running = actions.add_parser('run', help='run a command and print its time and memory')
    running.add_argument('words', nargs='+')
    parsed = parser.parse_args()
    if parsed.action == 'run':
        return run(parsed.words)
    make(parsed.folder, parsed.gigabytes, parsed.side)
    return 0


if __name__ == '__main__':
    sys.exit(main())
