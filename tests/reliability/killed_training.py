"""Kill trainings at random moments: a program, started by ``test_random_kills.py``.

``python -m tests.reliability.killed_training FOLDER KILLS SEED`` trains once without a kill; then, so many times, it
kills a training after a random part of that time, and resumes it. torch is imported once: every training runs in a fork
of this process. Prints one JSON object: how many kills left a model, and what was found wrong.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from ptychopinn_torch_plugin.errors import PtychoPINNError
from ptychopinn_torch_plugin.storage.model_file import MODEL_FILE, load_model
from ptychopinn_torch_plugin.training.run import train
from tests.helpers.scans import make_scan
from tests.training.runs import small

CONFIG = small(
    model={'steps': 1, 'width': 4, 'levels': 1},
    training={'epochs': 6, 'probe_trainable': True},
    execution={'checkpoint_top_k': 2},
)


def train_in_fork(folder: Path, kill_after_s: float | None = None) -> float:
    """Train in another process, kill it after so many seconds, and return the seconds that it ran.

    Raises:
        RuntimeError: the training failed.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train([make_scan()[0]], CONFIG, folder)
            code = 0
        except BaseException:  # the child must never return to the code of its parent
            traceback.print_exc()
        finally:
            os._exit(code)
    begun = time.monotonic()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f'The training in {folder} failed.')
    return time.monotonic() - begun


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the models in ``folder`` by name; all that a finished training leaves but its log."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*.safetensors')}


def main(folder: Path, kills: int, seed: int) -> None:
    """Compare every training that was killed and resumed with the one that was not."""
    moments = random.Random(seed)  # noqa: S311 - moments of kills, not secrets
    seconds = train_in_fork(folder / 'whole')
    expected = files_of(folder / 'whole')
    wrong, models = [], 0
    for number in range(kills):
        killed = folder / str(number)
        moment = moments.uniform(0.0, seconds)
        train_in_fork(killed, moment)
        try:
            if (killed / MODEL_FILE).exists():
                models += 1
                load_model(killed / MODEL_FILE).build()
        except PtychoPINNError as error:
            wrong.append(f'kill after {moment:.3f} s: {error}')
        train_in_fork(killed)
        if files_of(killed) != expected:
            wrong.append(f'kill after {moment:.3f} s: the resumed training has another result')
    print(json.dumps({'kills': kills, 'models': models, 'wrong': wrong}))


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
