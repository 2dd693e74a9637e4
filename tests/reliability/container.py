"""Reconstruct in the worker as in a container: a program, started by ``test_environment.py`` with the output folder.

Prints one JSON object: the files written, and the permissions of the job's folder.
"""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.worker.job import open_job, read_result
from ptychopinn_torch_plugin.worker.parent import run_job
from tests.worker.conftest import make_scan

CONFIG = parse_config(
    {'refinement': {'refine_epochs': 1, 'refine_positions': False}, 'inference': {'threads': 1, 'accelerator': 'cpu'}}
)


def main(folder: Path) -> None:
    """Refine a scan of noise for one epoch; its metrics, with a picture, go into ``folder``."""
    with open_job('refine', [make_scan()], CONFIG, output_folder=folder) as job:
        permissions = stat.S_IMODE(job.folder.stat().st_mode)
        list(run_job(job))
        is_finite = bool(abs(read_result(job.folder).object_array).max() < 1e6)
    files = sorted(path.name for path in folder.rglob('*') if path.is_file())
    print(json.dumps({'files': files, 'permissions': oct(permissions), 'is_finite': is_finite}))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
