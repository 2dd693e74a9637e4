"""The real engine in the real worker."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.worker import messages
from ptychopinn_torch_plugin.worker.job import open_job, read_result
from ptychopinn_torch_plugin.worker.parent import run_job
from tests.helpers.scans import make_scan, phase_and_scale_free_error

CONFIG = parse_config(
    {
        'data': {'group_size': 12, 'neighbor_count': 14},
        'model': {'steps': 8, 'width': 4, 'levels': 2},
        'training': {'epochs': 2, 'threads': 1, 'accelerator': 'cpu', 'probe_trainable': False},
        'inference': {'threads': 1, 'accelerator': 'cpu', 'preview_interval': 4},
    }
)


def test_train_then_reconstruct(tmp_path: Path) -> None:
    scan, truth = make_scan()
    with open_job('train', [scan], CONFIG, output_folder=tmp_path) as job:
        received = list(run_job(job, entry='tests.worker.entries:train_and_compare'))
    losses = [message for message in received if isinstance(message, messages.Losses)]
    assert [message.epoch for message in losses] == [1, 2]
    texts = [message.text for message in received if isinstance(message, messages.LogRecord)]
    assert any('Epoch 2 of 2' in text for text in texts)
    assert [text for text in texts if text.startswith('on disk')] == [
        'on disk when epoch 1 is reported: model [1], log [1], resume state True',
        'on disk when epoch 2 is reported: model [1, 2], log [1, 2], resume state True',
    ]

    with open_job('reconstruct', [scan], CONFIG, model_file=tmp_path / 'model.safetensors') as job:
        received = list(run_job(job))
        result = read_result(job.folder)
    assert any(isinstance(message, messages.Preview) for message in received)
    assert [record.epoch for record in result.losses] == [1, 2]
    covered = result.coverage & (np.abs(truth) > 0)
    assert phase_and_scale_free_error(result.object_array, truth, covered) < 0.5


def test_sigterm_to_the_worker_ends_training_in_order(tmp_path: Path) -> None:
    """As SLURM sends it to every process of a job, in the middle of an epoch."""
    scan, _ = make_scan()
    config = CONFIG.model_copy(update={'training': CONFIG.training.model_copy(update={'epochs': 100_000})})
    with open_job('train', [scan], config, output_folder=tmp_path) as job, closing(run_job(job)) as received:
        for message in received:
            if isinstance(message, messages.Losses) and message.epoch == 2:
                os.kill(worker_of_this_process(), signal.SIGTERM)
    assert len(load_model(tmp_path / 'model.safetensors').losses) >= 2


def worker_of_this_process() -> int:
    import multiprocessing

    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    return child.pid
