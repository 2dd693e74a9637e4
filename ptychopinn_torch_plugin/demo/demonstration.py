"""The demonstration: a training and a reconstruction by the ``ptychodus`` command, as a script would run them.

A scan is simulated (or a given workflow folder is copied), used for a training and reconstructed; product, plot, model
and scores are written into one folder.
"""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE, load_workflow_folder
from ..errors import InputError, PtychoPINNError
from ..storage.model_file import MODEL_FILE
from .simulate import TRUTH_FILE, ScanPlan, simulate_scan

ALGORITHM = 'PtychoPINN (PyTorch)_PINN'
PLOT_FILE = 'picture.png'
SCORES_FILE = 'scores.json'
SETTINGS_FILE = 'settings.ini'

BAR = '{desc:<15}{bar:30} {n_fmt}/{total_fmt} {elapsed}'

_EPOCH = re.compile(r'Epoch (\d+) of (\d+)')


class DemoError(PtychoPINNError, RuntimeError):
    """A step of the demonstration failed; the message names the log."""


@dataclass(frozen=True)
class DemoResult:
    """Paths of the results, and the scores by name."""

    product: Path
    plot: Path
    scores: dict[str, float]


def run_demo(folder: Path, scan: Path | None = None) -> DemoResult:
    """Run the demonstration into ``folder``; the files of an earlier run there are replaced.

    Args:
        folder: output folder.
        scan: a Ptychodus workflow folder (``diffraction.h5`` and ``product.h5``, optionally ``settings.ini`` and
            ``truth.h5``) to use instead of the simulated scan; nothing is written into it.

    Raises:
        InputError: ``scan`` is not a workflow folder.
        DemoError: Ptychodus failed; the message names its log.
    """
    work = folder / 'work'
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if scan is None:
        simulate_scan(work, ScanPlan())
    else:
        _copy_scan(scan, work)
    _select_algorithm(work / SETTINGS_FILE)
    seconds = {}
    tic = time.perf_counter()
    _ptychodus('train', work, work / 'trained', 'Training')
    shutil.copy(work / 'trained' / MODEL_FILE, work)
    seconds['train_s'] = time.perf_counter() - tic
    tic = time.perf_counter()
    _ptychodus('reconstruct', work, work / 'result', 'Reconstructing')
    seconds['reconstruct_s'] = time.perf_counter() - tic
    product = folder / PRODUCT_FILE
    shutil.copy(sorted((work / 'result').glob('product*.h5'))[-1], product)
    shutil.copy(work / MODEL_FILE, folder)
    scores = _score(work, product, folder / PLOT_FILE) | {name: round(value, 1) for name, value in seconds.items()}
    (folder / SCORES_FILE).write_text(json.dumps(scores, indent=2) + '\n')
    return DemoResult(product, folder / PLOT_FILE, scores)


def _copy_scan(scan: Path, work: Path) -> None:
    for name in (DIFFRACTION_FILE, PRODUCT_FILE):
        if not (scan / name).is_file():
            raise InputError(f'{scan} holds no {name}: choose a Ptychodus workflow folder.')
    for name in (DIFFRACTION_FILE, PRODUCT_FILE, SETTINGS_FILE, TRUTH_FILE):
        if (scan / name).is_file():
            shutil.copyfile(scan / name, work / name)


def _select_algorithm(settings: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(settings)
    parser['Processing'] = {'Algorithm': ALGORITHM}
    with settings.open('w') as file:
        parser.write(file)


def _ptychodus(action: str, source: Path, target: Path, title: str) -> None:
    """Run ``ptychodus -b action`` with a progress bar of the epochs in its log.

    Raises:
        DemoError: Ptychodus failed; the message names its log.
    """
    log = source / f'{action}.log'
    command = [sys.executable, '-m', 'ptychodus', '-b', action, '-i', str(source), '-o', str(target)]
    with (
        log.open('w') as file,
        tqdm(desc=title, total=1, unit='epoch', bar_format=BAR, disable=None) as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,  # noqa: S603
    ):
        try:
            for line in process.stdout or ():
                file.write(line)
                if found := _EPOCH.search(line):
                    bar.total = int(found[2])
                    bar.update(int(found[1]) - bar.n)
        except BaseException:  # a signal ended this process: Ptychodus is not waited for
            process.terminate()
            raise
        if process.wait() == 0 and action == 'reconstruct':
            bar.update(bar.total - bar.n)
    if process.returncode != 0:
        raise DemoError(f'Ptychodus could not {action} (exit code {process.returncode}): see {log}.')


def _score(work: Path, product_file: Path, plot: Path) -> dict[str, float]:
    """Score the product, plot it, and return the scores by name."""
    from ptychodus.api.io import load_product

    from ..metrics import compare_with_truth, r_factor, scoring_region
    from .plots import draw_objects

    product = load_product(product_file)
    parameters = load_workflow_folder(work)
    scores = {'r_factor': r_factor(replace(parameters, product=product))}
    title = f'R-factor {scores["r_factor"]:.3f}'
    arrays = [('PtychoPINN (PyTorch)', scoring_region(product).crop(product.object_.get_layers_flattened()))]
    if (work / TRUTH_FILE).is_file():
        pair = compare_with_truth(load_product(work / TRUTH_FILE), product)
        scores |= pair.scores.as_dict()
        title += f', amplitude SSIM {pair.scores.amplitude_ssim:.3f}, phase SSIM {pair.scores.phase_ssim:.3f}'
        arrays = [('truth', pair.truth), ('PtychoPINN (PyTorch)', pair.product)]
    pixel = product.object_.get_pixel_geometry()
    draw_objects(arrays, (pixel.height_m, pixel.width_m), title, plot)
    return {name: round(value, 4) for name, value in scores.items()}
