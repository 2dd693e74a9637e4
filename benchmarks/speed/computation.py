"""Rows that are computed in this process: epochs of the solver, and predictions of the network."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Iterator
from itertools import pairwise

import torch

from ptychopinn_torch_plugin.config import Config, KernelChoice, RefinementConfig, parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines.network import Predictor, steps_of, windows_of
from ptychopinn_torch_plugin.engines.progress import ProgressReporter, Stage
from ptychopinn_torch_plugin.engines.solver import Solver
from ptychopinn_torch_plugin.models.registry import build_generator
from ptychopinn_torch_plugin.models.unrolled import UnrolledGenerator
from ptychopinn_torch_plugin.observer import SilentObserver

from .scans import make_scan
from .timing import REFERENCE_PAIR_US, Clock, Row, median, repeated, transform_pair_us

FIXED: dict[str, object] = {'refine_probe': False, 'refine_positions': False, 'likelihood': 'amplitude'}
PROBE: dict[str, object] = {'refine_positions': False, 'probe_start': 0, 'likelihood': 'amplitude'}
BOTH: dict[str, object] = {'probe_start': 0, 'positions_start': 0, 'likelihood': 'amplitude'}
MODES = BOTH | {'likelihood': 'poisson', 'probe_modes': 2}
SOLVER_ROWS: tuple[tuple[str, int, dict[str, object], int, float], ...] = (
    ('solver, probe and positions fixed', 64, FIXED, 1, 14.0),
    ('solver, probe', 64, PROBE, 2, 28.0),
    ('solver, probe and positions', 64, BOTH, 2, 32.0),
    ('solver, two modes, Poisson, probe and positions', 64, MODES, 4, 60.0),
    ('solver, probe and positions fixed', 128, FIXED, 1, 75.0),
    ('solver, probe', 128, PROBE, 2, 150.0),
    ('solver, probe and positions', 128, BOTH, 2, 165.0),
)
"""Name, side, settings, transform pairs per pattern, and the goal in microseconds per pattern."""
NETWORK_ROWS = ((64, 4000.0), (128, 700.0))
"""Side, and the goal in patterns per second."""
GPU_NETWORK_REACH = 50_000.0
EPOCHS = 6
ROWS_OF_SCAN = {64: 22, 128: 16}
GPU_ROWS_OF_SCAN = {64: 100, 128: 100}
PARTS = {
    'transforms': ('fft_fft2', 'fft_ifft2', 'fft_rfft2', 'fft_irfft2'),
    'loops over patterns': ('physics/kernels/loops.py',),
    'loops over the object': ('physics/kernels/object_loops.py',),
    'convolutions': ('conv2d', 'conv_transpose2d'),
}
"""What the time is divided into, by parts of the names that the profiler gives; the rest is "other"."""


def solver_rows(device: torch.device, kernels: KernelChoice, repetitions: int) -> Iterator[Row]:
    """Time an epoch of the solver, in microseconds per pattern."""
    for name, side, settings, pairs, reach in SOLVER_ROWS:
        scan = _scan(side, device)

        def epoch(
            scan: RawScan = scan, side: int = side, settings: dict[str, object] = settings, pairs: int = pairs
        ) -> tuple[float, float]:
            before = transform_pair_us(side, device)
            found = _epoch_us(scan, settings, device, kernels)
            return found, pairs * (before + transform_pair_us(side, device)) / 2

        value, transforms = repeated(epoch, repetitions)
        profile = cProfile.Profile()
        profile.runcall(_epoch_us, scan, settings, device, kernels)
        goal = reach if device.type == 'cpu' else None
        slowdown = transforms / (pairs * REFERENCE_PAIR_US[side]) if device.type == 'cpu' else 1.0
        yield Row(f'{name}, {side} px', value, 'us', goal, transforms, slowdown, _parts(profile))


def network_rows(device: torch.device, kernels: KernelChoice, repetitions: int) -> Iterator[Row]:
    """Time inference with the default network and steps, stitching included, in microseconds per pattern."""
    for side, reach in NETWORK_ROWS:
        scan = _scan(side, device)
        steps = UnrolledGenerator(parse_config({}).model).default_steps

        def prediction(scan: RawScan = scan, side: int = side, steps: int = steps) -> tuple[float, float]:
            before = transform_pair_us(side, device)
            found = 1e6 * _predict_s(scan, device, kernels)
            return found, steps * (before + transform_pair_us(side, device)) / 2

        value, transforms = repeated(prediction, repetitions)
        profile = cProfile.Profile()
        profile.runcall(_predict_s, scan, device, kernels)
        is_cpu = device.type == 'cpu'
        slowdown = transforms / (steps * REFERENCE_PAIR_US[side]) if is_cpu else 1.0
        note = f'{1e6 / value:,.0f} patterns/s, scaled {1e6 * slowdown / value:,.0f}; {_parts(profile)}'
        goal = 1e6 / (reach if is_cpu else GPU_NETWORK_REACH)
        yield Row(f'network, predict and stitch, {side} px', value, 'us', goal, transforms, slowdown, note)


def _scan(side: int, device: torch.device) -> RawScan:
    return make_scan(side, (ROWS_OF_SCAN if device.type == 'cpu' else GPU_ROWS_OF_SCAN)[side])


def _epoch_us(scan: RawScan, settings: dict[str, object], device: torch.device, kernels: KernelChoice) -> float:
    config = RefinementConfig.model_validate(settings | {'refine_epochs': EPOCHS})
    tensors = ScanTensors(scan, device, kernels)
    clock, times = Clock(device), list[float]()

    def listen(_epoch: int, _deviance: float) -> bool:
        times.append(clock.now())
        return False

    with torch.inference_mode():
        Solver(tensors, initial_state(tensors), config, 128).run(listen)
    differences = [later - earlier for earlier, later in pairwise(times)]
    return 1e6 * median(differences) / scan.size


def _predict_s(scan: RawScan, device: torch.device, kernels: KernelChoice) -> float:
    """Return the seconds per pattern."""
    config: Config = parse_config({})
    torch.manual_seed(0)
    tensors = ScanTensors(scan, device, kernels)
    generator = build_generator(config.model).to(device).eval()
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's types
    clock = Clock(device)
    with torch.inference_mode():
        state = initial_state(tensors)
        progress = ProgressReporter(SilentObserver(), [Stage('', 100, 100)], scan.object_shape, 0)
        begin = clock.now()
        windows = windows_of(state, generator, config.data.group_size, config.inference)
        steps = steps_of(generator, config.inference.steps)
        Predictor(tensors, state, generator, windows, steps, config.inference.batch_size, progress).predict()
        return (clock.now() - begin) / scan.size


def _parts(profile: cProfile.Profile) -> str:
    """Return the shares of the time of a profiled call."""
    entries = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    times = {f'{file}:{function}': own for (file, _, function), (_, _, own, _, _) in entries.items()}
    total = sum(times.values())
    shares = {
        part: sum(own for name, own in times.items() if any(sign in name for sign in signs)) / total
        for part, signs in PARTS.items()
    }
    shares['other'] = 1 - sum(shares.values())
    return ', '.join(f'{part} {100 * share:.0f} %' for part, share in shares.items() if share >= 0.005)
