"""What the plug-in adds to the start of Ptychodus: CPU seconds of a headless host model with and without it.

    python benchmarks/host_start.py [--rounds 7]

Each round starts one interpreter with the seam and one without, in turn; medians are printed. CPU time is taken because
wall time says more about the machine's other guests.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

PROGRAM = """
import sys, time
if sys.argv[1] == 'without':
    sys.modules['ptychopinn_torch_plugin'] = None
from ptychodus.model import ModelCore
core = ModelCore()
keys = list(core.processing_core.algorithm_parameter.available_reconstructors())
heavy = [name for name in ('torch', 'lightning', 'PyQt5') if name in sys.modules]
assert any('ptychopinn (pytorch)' in key for key in keys) == (sys.argv[1] == 'with'), keys
assert not heavy, heavy
print(time.process_time())
"""


def cpu_seconds(which: str) -> float:
    """Start a host model with or without the plug-in and return its CPU time."""
    done = subprocess.run([sys.executable, '-c', PROGRAM, which], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=7)
    rounds = parser.parse_args().rounds
    os.environ['OMP_NUM_THREADS'] = '1'
    for which in ('with', 'without'):
        cpu_seconds(which)  # warm the file cache
    pairs = [(cpu_seconds('with'), cpu_seconds('without')) for _ in range(rounds)]
    with_seam, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f'with {with_seam:.3f} s, without {without:.3f} s: the plug-in adds {1e3 * (with_seam - without):.0f} ms')


if __name__ == '__main__':
    main()
