"""LSQ-ML of pty-chi through the ``ptychodus`` command of an environment of its own, to compare with.

python -m venv ptychi && ptychi/bin/pip install 'ptychodus[ptychi]==1.7.0'
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ptychodus.api.io import load_product
from ptychodus.api.product import Product

from ptychopinn_torch_plugin.data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE

EPOCHS = 100
EPOCHS_TO_MATCH = (4, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60)
"""Epochs of the refinement that are tried in turn until it is as good as LSQ-ML."""
UNCHECKED = {'verify': False, 'calibrate': False}
"""Inference settings for a time to compare: pty-chi computes no verdict and no uncertainty."""


def run_ptychi(python: Path, scan: Path, folder: Path, epochs: int = EPOCHS) -> tuple[Product, float]:
    """Reconstruct ``scan`` in ``folder``; the product, and the wall seconds less those of a run of one epoch.

    The one epoch stands for starting Ptychodus, reading and writing, which the other lines do not count either.
    """
    product, seconds = _run(python, scan, folder, epochs)
    _, start = _run(python, scan, folder, 1)
    return product, (seconds - start) * epochs / (epochs - 1)


def time_to_match(reaches: Callable[[int], tuple[bool, float]]) -> str:
    """Return the fewest epochs of ``EPOCHS_TO_MATCH`` for which ``reaches`` returns True, and their seconds, as text.

    Args:
        reaches: refines for so many epochs; whether the result is as good as that of LSQ-ML, and the seconds.
    """
    for epochs in EPOCHS_TO_MATCH:
        is_reached, seconds = reaches(epochs)
        if is_reached:
            return f'reached in {seconds:.2f} s by {epochs} epochs of refinement'
    return f'not reached by {EPOCHS_TO_MATCH[-1]} epochs of refinement'


def _run(python: Path, scan: Path, folder: Path, epochs: int) -> tuple[Product, float]:
    source, target = folder / f'in-{epochs}', folder / f'out-{epochs}'
    for made in (source, target):
        shutil.rmtree(made, ignore_errors=True)
    source.mkdir(parents=True)
    for name in (DIFFRACTION_FILE, PRODUCT_FILE):
        shutil.copy(scan / name, source / name)
    settings = configparser.ConfigParser(interpolation=None)
    settings.optionxform = str  # type: ignore[assignment,method-assign]
    settings['Processing'] = {'Algorithm': 'pty-chi_LSQML'}
    settings['PtyChi'] = {'NumEpochs': str(epochs), 'UseDevices': 'False'}
    with (source / 'settings.ini').open('w') as file:
        settings.write(file)
    tic = time.perf_counter()
    command = [str(python.parent / 'ptychodus'), '-b', 'reconstruct', '-i', str(source), '-o', str(target)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {'PYTHONPATH': ''})
    seconds = time.perf_counter() - tic
    return load_product(max(target.glob('product*.h5'))), seconds
