"""Loggers: each writes what it promises into the output folder, and says so when its package is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptychopinn_torch_plugin.errors import MissingDependencyError, OutputError
from ptychopinn_torch_plugin.training.preview import encode_png, grey_picture
from ptychopinn_torch_plugin.training.run import train
from tests.helpers.scans import make_scan

from .runs import Recorder, small


def test_none_writes_no_log(tmp_path: Path) -> None:
    train([make_scan()[0]], small(execution={'logger': 'none'}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['model.safetensors']


def test_csv_holds_the_epochs_before_a_stop_too(tmp_path: Path) -> None:
    scan, _ = make_scan()
    train([scan], small(), tmp_path, Recorder(stop_after=3))
    train([scan], small(), tmp_path)
    lines = (tmp_path / 'training_log' / 'metrics.csv').read_text().splitlines()
    assert lines[0] == 'epoch,loss,validation_loss'
    assert [line.split(',')[0] for line in lines[1:]] == ['1', '2', '3']


def test_a_log_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    """Opening a named pipe to write would wait for a reader."""
    (tmp_path / 'training_log').mkdir()
    os.mkfifo(tmp_path / 'training_log' / 'metrics.csv')
    recorder = Recorder()
    with pytest.raises(OutputError, match=r'metrics.csv is not a regular file.*remove it'):
        train([make_scan()[0]], small(), tmp_path, recorder)
    assert not recorder.progress


def test_tensorboard_holds_losses_and_picture(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    scan, _ = make_scan()
    train([scan], small(execution={'logger': 'tensorboard'}), tmp_path, Recorder(stop_after=3))
    recorder = Recorder()
    train([scan], small(execution={'logger': 'tensorboard'}), tmp_path, recorder)
    events = EventAccumulator(str(tmp_path / 'training_log'))
    events.Reload()
    for name, place in (('loss', 1), ('validation_loss', 2)):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(record[0], pytest.approx(record[place], rel=1e-6)) for record in recorder.losses]
    (image,) = events.Images('reconstruction')
    assert image.encoded_image_string.startswith(b'\x89PNG')
    assert 'training.learning_rate' in (tmp_path / 'training_log' / 'hparams.yaml').read_text()
    assert (image.height, image.width) == picture_shape()


def test_mlflow_holds_parameters_losses_model_and_picture(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    scan, _ = make_scan()
    recorder = Recorder()
    folder = tmp_path / 'a folder with blanks'
    model = train([scan], small(execution={'logger': 'mlflow'}), folder, recorder)
    client = MlflowClient(tracking_uri=(folder / 'mlruns').as_uri())
    experiment = client.get_experiment_by_name('PtychoPINN')
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == 'FINISHED'
    assert run.data.params['training.epochs'] == '3'
    assert run.data.params['model.generator'] == 'unrolled'
    for name, place in (('loss', 1), ('validation_loss', 2)):
        points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        assert points == [(record[0], record[place]) for record in recorder.losses]
    artifacts = Path(client.download_artifacts(run.info.run_id, '', str(tmp_path)))
    assert (artifacts / 'model.safetensors').read_bytes() == model.read_bytes()
    with Image.open(artifacts / 'reconstruction.png') as picture:
        assert (picture.height, picture.width) == picture_shape()
        assert np.asarray(picture).std() > 10


def test_a_failed_run_is_marked_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    class Failing(Recorder):
        def on_progress(self, done: int, goal: int) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train([make_scan()[0]], small(execution={'logger': 'mlflow'}), tmp_path, Failing())
    train([make_scan()[0]], small(execution={'logger': 'mlflow'}), tmp_path, Recorder(stop_after=1))
    client = MlflowClient(tracking_uri=(tmp_path / 'mlruns').as_uri())
    experiment = client.get_experiment_by_name('PtychoPINN')
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=['start_time'])
    assert [run.info.status for run in runs] == ['FAILED', 'KILLED']


@pytest.mark.parametrize(('logger', 'module'), [('tensorboard', 'tensorboard'), ('mlflow', 'mlflow')])
def test_a_missing_package_is_named_before_training(
    logger: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition('.')[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    recorder = Recorder()
    with pytest.raises(MissingDependencyError, match=rf'pip install .*ptychopinn_torch_plugin\[{logger}\]'):
        train([make_scan()[0]], small(execution={'logger': logger}), tmp_path, recorder)
    assert not recorder.progress


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    object_array = np.linspace(0.5, 1, 20 * 30).reshape(20, 30) * np.exp(1j * np.linspace(0, 1, 30))
    grey = grey_picture(object_array)
    (tmp_path / 'a.png').write_bytes(encode_png(grey))
    with Image.open(tmp_path / 'a.png') as picture:
        assert picture.mode == 'L'
        assert np.array_equal(np.asarray(picture), grey)
    assert grey.shape == (20, 60)
    assert grey[0, 0] == grey.min() == 0
    assert grey.max() == 255
    assert grey_picture(np.ones((4, 4), dtype=np.complex64)).shape == (4, 8)


def picture_shape() -> tuple[int, int]:
    """Height and width of the picture of the test scan: its extent, twice side by side."""
    from ptychopinn_torch_plugin.data.scan import patch_bounds

    scan, _ = make_scan()
    patch_origins, _ = patch_bounds(scan.positions, scan.pattern_shape)
    height, width = patch_origins.max(axis=0) - patch_origins.min(axis=0) + np.array(scan.pattern_shape)
    return int(height), 2 * int(width)
