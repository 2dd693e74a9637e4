"""Rows that take a process of their own: start-up, peak memory, the measured star, and the time to a quality."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .timing import Row, median

STAR_EPOCHS = 48
STAR_R = 0.145
QUALITY_EPOCHS = 20
QUALITY = (0.970, 0.990)
MEGABYTE = 2**20

START = """
import time
from benchmarks.speed.scans import make_scan
from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.observer import SilentObserver
scan = make_scan(32, 5)
begin = time.process_time()
from ptychopinn_torch_plugin.engines.pipeline import refine
refine(scan, parse_config({'refinement': {'refine_epochs': 1}, 'inference': {'threads': 1, 'accelerator': 'cpu'}}))
print(time.process_time())
"""

KEPT = """
import tempfile, time
from pathlib import Path
import numpy as np
from benchmarks.speed.scans import make_scan
from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.models.registry import build_generator
from ptychopinn_torch_plugin.storage.model_file import BACKEND, FORMAT_VERSION, ModelHeader, TrainedModel, save_model
from ptychopinn_torch_plugin.worker.job import open_job
from ptychopinn_torch_plugin.worker.messages import Progress
from ptychopinn_torch_plugin.worker.parent import end_kept_worker, run_job
config = parse_config({'refinement': {'refine_epochs': 1}, 'inference': {'threads': 1, 'accelerator': 'cpu'}})
scan = make_scan(64, 16)
header = ModelHeader(format_version=FORMAT_VERSION, backend=BACKEND, config=config, history=(), photons_per_frame=1.0,
                     scans=(scan.name,), versions={})
weights = {name: tensor.numpy() for name, tensor in build_generator(config.model).state_dict().items()}
with tempfile.TemporaryDirectory() as folder:
    model_file = Path(folder, 'model.safetensors')
    save_model(model_file, TrainedModel(header, weights, scan.probe.astype(np.complex64)))
    for _ in range(REPETITIONS + 1):
        begin, first = time.monotonic(), None
        with open_job('reconstruct', [scan], config, model_file=model_file) as job:
            for message in run_job(job, keeps_worker=True):
                if first is None and isinstance(message, Progress):
                    first = time.monotonic() - begin
        print(first, flush=True)
end_kept_worker()
"""

MEMORY = """
import resource
from benchmarks.speed.scans import make_scan
from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.engines.pipeline import refine
scan = make_scan(128, ROWS)
tree = {'refinement': {'refine_epochs': 2, 'probe_start': 0, 'positions_start': 1}, 'inference': {'threads': 1}}
refine(scan, parse_config(tree))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - scan.counts.nbytes)
"""

QUALITY_RUN = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from benchmarks.quality.scans import KNOWN, ROWS, make_scan
from benchmarks.quality.table import Simulated, configure
from ptychopinn_torch_plugin.engines.pipeline import refine
row = next(row for row in ROWS if row.key == '4096')
simulated = Simulated.read(make_scan(row, Path(sys.argv[1])))
config = configure({'refinement': KNOWN | {'refine_epochs': int(sys.argv[2])}})
refine(simulated.scan, configure({'refinement': KNOWN | {'refine_epochs': 1}}))
begin = time.process_time()
result = refine(simulated.scan, config)
print(json.dumps([time.process_time() - begin, *simulated.scores(result)]))
"""


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    output: str
    cpu_s: float
    wall_s: float


def start_up(repetitions: int) -> Iterator[Row]:
    """Time from the start of a process to the end of its first epoch, with and without kernels in numba's cache."""
    times = [_run([sys.executable, '-c', START]) for _ in range(repetitions)]
    value = median([done.cpu_s for done in times])
    yield Row('start of a process to its first epoch, kernels in the cache', value, 's', note='imports, kernels')
    with tempfile.TemporaryDirectory() as folder:
        fresh = _run([sys.executable, '-c', START], NUMBA_CACHE_DIR=folder)
    yield Row('the same, kernels compiled', fresh.cpu_s, 's', note='once per installation')


def kept_worker(repetitions: int) -> Iterator[Row]:
    """Wall time from a call of the host to the first step of the network, in a new worker and in one that was kept."""
    done = _run([sys.executable, '-c', KEPT.replace('REPETITIONS', str(repetitions))])
    new, *kept = (float(line) for line in done.output.split())
    yield Row('new worker, call to first step', new, 's', note='wall time; start of Python, imports, kernels')
    yield Row('kept worker, call to first step', median(kept), 's', 0.3, note='wall time')


def peak_memory(rows: int) -> Iterator[Row]:
    """Peak memory of a refinement of ``rows * rows`` patterns of 128 pixels, less the patterns."""
    done = _run([sys.executable, '-c', MEMORY.replace('ROWS', str(rows))])
    reach = 1536.0 if rows == 100 else None
    name = f'peak memory beyond the patterns, {rows * rows:,} x 128 px'
    yield Row(name, float(done.output.split()[-1]) / MEGABYTE, 'MB', reach, note='amplitudes in float32 are kept')


def quality(folder: Path, repetitions: int) -> Iterator[Row]:
    """Time to the quality of the goal on 4,096 positions, metrics included; needs Ptychodus."""
    command = [sys.executable, '-c', QUALITY_RUN, str(folder), str(QUALITY_EPOCHS)]
    found = [json.loads(_run(command).output.splitlines()[-1]) for _ in range(repetitions)]
    seconds, amplitude, phase = (median([run[index] for run in found]) for index in range(3))
    enough = round(amplitude, 3) >= QUALITY[0] and round(phase, 3) >= QUALITY[1]
    note = f'{QUALITY_EPOCHS} epochs: {amplitude:.3f} / {phase:.3f}' + ('' if enough else ', not enough')
    yield Row('4,096 x 64 px to .970 / .990', seconds, 's', 1.6, note=note)


def star(folder: Path, repetitions: int) -> Iterator[Row]:
    """Time of a whole process that refines the measured star to the goal; needs Ptychodus."""
    runs, factor = [], float('nan')
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, '-m', 'ptychopinn_torch_plugin.cli', 'refine', str(folder), '--json', '-o']
        for number in range(repetitions):
            target = Path(output) / str(number)
            settings = ['--set', f'refinement.refine_epochs={STAR_EPOCHS}', '--set', 'inference.threads=1']
            done = _run([*command, str(target), *settings])
            runs.append(done.cpu_s)
            factor = _r_factor(json.loads(done.output))
    note = f'{STAR_EPOCHS} epochs: R {factor:.4f}' + ('' if factor < STAR_R else ', not enough')
    yield Row('"Refine" on the measured star to R < .145, whole process', median(runs), 's', 6.0, note=note)


def _r_factor(document: dict[str, object]) -> float:
    """Return the R-factor from the document that the command prints."""
    for key, value in document.items():
        if key == 'r_factor' and isinstance(value, float):
            return value
        if isinstance(value, dict) and (found := _r_factor(value)) == found:  # NaN differs from itself
            return found
    return float('nan')


def _run(command: list[str], **environment: str) -> Finished:
    """Run a process to its end with one thread.

    Raises:
        subprocess.CalledProcessError: it failed; its error output is printed by Python.
    """
    variables = os.environ | {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'} | environment
    before, begin = os.times(), time.perf_counter()
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Finished(done.stdout, cpu, time.perf_counter() - begin)
