"""Trains in a process of its own.

``python -m tests.training.train_here FOLDER SECONDS``: sleeps after every batch, prints its number, and ends with the
hashes of the model and of the object made with it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.engines.pipeline import reconstruct
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.training.run import train
from tests.helpers.scans import make_scan
from tests.training.runs import Recorder
from tests.training.test_resume import config_of


class Talker(Recorder):
    """Says how far it is."""

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self._pause_s = pause_s

    def on_progress(self, done: int, goal: int) -> None:
        """Say so, and give the other side time."""
        print('batch', done, flush=True)
        time.sleep(self._pause_s)


def main() -> None:
    """Train, then reconstruct."""
    talker = Talker(float(sys.argv[2]))
    scan, _ = make_scan()
    model = train([scan], config_of(), Path(sys.argv[1]), talker)
    print('model', hashlib.sha256(model.read_bytes()).hexdigest(), flush=True)
    config = parse_config({'refinement': {'refine_epochs': 2}, 'inference': {'accelerator': 'cpu', 'threads': 1}})
    answer = reconstruct(scan, load_model(model), config).object_array
    print('object', hashlib.sha256(answer.tobytes()).hexdigest(), flush=True)


if __name__ == '__main__':
    main()
