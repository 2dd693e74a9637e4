"""Write to a disk without room: a program, started by ``test_files.py`` in a folder that takes 300 kB per file.

Prints one JSON object: for every writer of the package what it said, and whether the old file is still whole.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.data.io.output import write_product
from ptychopinn_torch_plugin.data.scan import make_raw_scan
from ptychopinn_torch_plugin.errors import OutputError
from ptychopinn_torch_plugin.storage.model_file import TrainedModel, save_model
from tests.helpers.products import random_product
from tests.host.fake_worker import make_header


def model(path: Path, side: int) -> None:
    """A model with a probe of ``side`` pixels."""
    probe = np.ones((1, side, side), dtype=np.complex64)
    save_model(path, TrainedModel(make_header(Config()), {}, probe))


def product(path: Path, side: int) -> None:
    """A product of Ptychodus."""
    write_product(path, random_product((side, side), modes=1, positions=3, seed=1))


def training_data(path: Path, side: int) -> None:
    """A training file."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(30.0, size=(5, side, side)).astype(np.uint16)
    write_training_npz(path, make_raw_scan(counts, rng.uniform(5, 9, (5, 2)), np.ones((side, side), dtype=complex)))


def attempt(write: Callable[[Path, int], None], path: Path) -> dict[str, object]:
    """Write a file with room for it, then a larger one."""
    write(path, 16)
    before = path.read_bytes()
    begun = time.monotonic()
    try:
        write(path, 300)
    except OutputError as error:
        said = str(error)
    else:
        said = 'nothing'
    seconds = time.monotonic() - begun
    kept = path.read_bytes() == before and sorted(file.name for file in path.parent.iterdir()) == [path.name]
    path.unlink()
    return {'said': said, 'kept': kept, 'seconds': seconds}


def main(folder: Path) -> None:
    """Try all writers."""
    writers = {'model.safetensors': model, 'product.h5': product, 'training.npz': training_data}
    print(json.dumps({name: attempt(write, folder / name) for name, write in writers.items()}))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
