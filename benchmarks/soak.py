"""A long run: many reconstructions and short trainings in one host process, and what it has grown by.

    python -m benchmarks.soak [--reconstructions 200 --trainings 20]

A small simulated scan goes through Ptychodus' own calls (no window), with the real worker. Memory (resident, median of
five calls), open files, child processes, zombies among them, and temporary files are counted after a warm-up and at the
end. The exit code is 1 if one of them has grown by more than one per cent. For Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan

if TYPE_CHECKING:
    from ptychodus.model import ModelCore

LARGEST_GROWTH = 0.01
WARM_UP = 3
"""Calls of each kind before the first count: imports, caches of the host, the helper process of multiprocessing."""
MEDIAN_OF = 5
PINN = 'ptychopinn (pytorch)_pinn'
SETTINGS: dict[str, dict[str, int | str]] = {
    'Data': {'group_size': 8, 'neighbor_count': 10},
    'Model': {'width': 4, 'levels': 1, 'steps': 2},
    'Training': {'epochs': 2, 'threads': 1, 'accelerator': 'cpu', 'resume': 'never'},
    'Refinement': {'refine_epochs': 2},
    'Inference': {'steps': 2, 'threads': 1, 'accelerator': 'cpu'},
}


@dataclass(frozen=True)
class Load:
    """What this process holds at one time."""

    memory_bytes: float
    open_files: int
    processes: int
    zombies: int
    temporary_files: int

    def growth_to(self, later: Load) -> dict[str, float]:
        """Relative growth of every figure; from none to some counts as all of it."""
        pairs = {item.name: (getattr(self, item.name), getattr(later, item.name)) for item in fields(self)}
        return {name: (after - before) / max(before, 1) for name, (before, after) in pairs.items()}


def load_of_this_process(temporary_folder: Path) -> Load:
    """Count."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is no leak
    process = psutil.Process()
    children = process.children(recursive=True)
    return Load(
        memory_bytes=process.memory_info().rss,
        open_files=process.num_fds(),
        processes=len(children),
        zombies=sum(child.status() == psutil.STATUS_ZOMBIE for child in children),
        temporary_files=sum(1 for _ in temporary_folder.rglob('*')),
    )


class Soak:
    """A host with one scan, driven by its own calls."""

    def __init__(self, model: ModelCore, work: Path, temporary_folder: Path) -> None:
        self._api = model.processing_core.processing_api
        self._repository = model.product_core.product_repository
        self._work = work
        self._temporary_folder = temporary_folder
        self.loads: list[Load] = []
        data = model.workflow_api.load_assembled_diffraction_data(work / 'diffraction.h5')
        model.workflow_api.load_product(work / 'product.h5', diffraction=data)
        deadline = time.monotonic() + 60
        while len(self._repository) == 0 and time.monotonic() < deadline:
            model.run_tasks()
            time.sleep(0.05)

    def train(self) -> None:
        """One training into a folder of its own, which is removed; its model is moved away and loaded."""
        folder, kept = self._work / 'trained', self._work / 'kept.safetensors'
        self._api.train(self._work, folder, product_index=0, algorithm=PINN, block=True)
        (folder / 'model.safetensors').replace(kept)
        shutil.rmtree(folder)
        self._api.load_model_from_file(kept, PINN)
        self.loads.append(load_of_this_process(self._temporary_folder))

    def reconstruct(self) -> None:
        """One reconstruction; its product is taken out of the host's list again, as a user would."""
        index = self._api.reconstruct(product_index=0, algorithm=PINN, block=True)
        # In Ptychodus 1.7 a removed product stays among the observers of its dataset, and so in memory.
        self._repository[index].unbind_dataset()
        self._repository.remove_product(index)
        self.loads.append(load_of_this_process(self._temporary_folder))


def soak(reconstructions: int, trainings: int, *, warm_up: int = WARM_UP) -> tuple[Load, Load]:
    """Run, and return the load after the warm-up and at the end."""
    with tempfile.TemporaryDirectory() as name, _private_temporary_folder() as temporary_folder:
        work = Path(name)
        simulate_scan(work, ScanPlan(rows=4, columns=4, step_px=4.0, pattern_shape=(32, 32), photons=1e5))
        from ptychodus.model import ModelCore

        with ModelCore() as model:
            for section, values in SETTINGS.items():
                parameters = model.settings_registry[f'PtychoPINNPyTorch{section}'].parameters()
                for key, value in values.items():
                    parameters[key].set_value(value)
            run = Soak(model, work, temporary_folder)
            for _ in range(warm_up):
                run.train()
                run.reconstruct()
            run.loads.clear()
            for _ in range(MEDIAN_OF if warm_up > 1 else 1):
                run.reconstruct()
            before = _typical(run.loads)
            for number in range(reconstructions):
                if number * trainings // reconstructions != (number + 1) * trainings // reconstructions:
                    run.train()
                run.reconstruct()
            return before, _typical(run.loads[-MEDIAN_OF:])


@contextmanager
def _private_temporary_folder() -> Iterator[Path]:
    """A folder for temporary files that nobody else writes to."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as name:
        tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


def _typical(loads: list[Load]) -> Load:
    """The median memory, and the largest number of everything else."""
    return Load(
        statistics.median(load.memory_bytes for load in loads),
        *(max(getattr(load, item.name) for load in loads) for item in fields(Load)[1:]),
    )


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--reconstructions', type=int, default=200)
    parser.add_argument('--trainings', type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    logging.getLogger().setLevel(logging.ERROR)
    begun = time.monotonic()
    before, after = soak(arguments.reconstructions, arguments.trainings)
    growth = before.growth_to(after)
    print(f'{arguments.reconstructions} reconstructions, {arguments.trainings} trainings', end='')
    print(f' in {time.monotonic() - begun:.0f} s')
    print(f'{"":16} {"before":>14} {"after":>14} {"growth":>8}')
    for name, relative in growth.items():
        print(f'{name:16} {getattr(before, name):14,.0f} {getattr(after, name):14,.0f} {relative:8.2%}')
    return int(max(growth.values()) > LARGEST_GROWTH)


if __name__ == '__main__':
    sys.exit(main())
