"""Trains in a process of its own.

``python -m tests.training.train_here FOLDER BATCH``: prints the number of every batch, and waits after ``BATCH``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ptychopinn_torch_plugin.training.run import train
from tests.helpers.scans import make_scan
from tests.training.runs import Recorder
from tests.training.test_resume import config_of


class WaitingRecorder(Recorder):
    """Waits for the end of the standard input after a batch."""

    def on_progress(self, done: int, goal: int) -> None:
        """Print the number of the batch."""
        print('batch', done, flush=True)
        if done == int(sys.argv[2]):
            sys.stdin.read()


if __name__ == '__main__':
    train([make_scan()[0]], config_of(), Path(sys.argv[1]), WaitingRecorder())
