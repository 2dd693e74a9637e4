"""Print the speed table, and write it as one JSON file.

    python -m benchmarks.speed [-o FILE] [--device cpu] [--kernels auto] [--repeat 5] [--quick] [--star FOLDER]

Times on a CPU are CPU seconds of one thread, medians of ``--repeat`` runs; "transforms alone" is the cost of the
pattern-sized Fourier transforms that the row needs, measured in the same run. The goals are for a machine whose pair of
transforms takes 6.5 us (64 pixels) or 37.5 us (128 pixels): "scaled" is the measured value divided by how much longer
the transforms took in this run, as on a machine that others use at the same time. On a GPU (``--device cuda``) times
are wall time, only the rows that are computed in this process are printed, and Ptychodus is not needed. ``--quick``
takes less than five minutes: three repetitions, and a smaller scan for the peak memory. ``--star`` names the folder of
the measured star.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import torch

from .computation import network_rows, solver_rows
from .processes import kept_worker, peak_memory, quality, star, start_up
from .timing import HEAD, REFERENCE_PAIR_US, Row, transform_pair_us


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.speed', description=__doc__)
    parser.add_argument('-o', '--output', type=Path, default=Path('build/speed.json'))
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--kernels', choices=('auto', 'numba', 'torch'), default='auto')
    parser.add_argument('--repeat', type=int, default=5)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--star', type=Path)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    machine = {
        'torch': torch.__version__,
        'device': torch.cuda.get_device_name(parsed.device) if parsed.device.startswith('cuda') else parsed.device,
        'processor': platform.processor() or platform.machine(),
        'kernels': parsed.kernels,
    }
    print(', '.join(f'{name} {value}' for name, value in machine.items()), f'\n\n{HEAD}', sep='')
    rows = []
    for row in _rows(parsed):
        print(row, flush=True)
        rows.append(asdict(row) | {'share': row.share, 'scaled': row.scaled, 'is_reached': row.is_reached})
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(json.dumps({'machine': machine, 'rows': rows}, indent=1))


def _rows(parsed: argparse.Namespace) -> Iterator[Row]:
    device, repeat = torch.device(parsed.device), min(parsed.repeat, 3) if parsed.quick else parsed.repeat
    computed = (rows(device, parsed.kernels, repeat) for rows in (solver_rows, network_rows))
    yield from chain.from_iterable(computed)
    if device.type != 'cpu':
        return
    yield from peak_memory(50 if parsed.quick else 100)
    timed = [start_up(repeat), kept_worker(repeat)]
    if find_spec('ptychodus') is not None:
        timed.append(quality(parsed.output.parent / 'quality' / 'scans', 1 if parsed.quick else repeat))
        if parsed.star is not None:
            timed.append(star(parsed.star, 1 if parsed.quick else repeat))
    before = transform_pair_us(64, device)
    for row in chain.from_iterable(timed):
        after = transform_pair_us(64, device)
        yield replace(row, slowdown=(before + after) / 2 / REFERENCE_PAIR_US[64])
        before = after


if __name__ == '__main__':
    main()
