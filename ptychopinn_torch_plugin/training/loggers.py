"""Where a run's losses go beside the model: a CSV file, TensorBoard, MLflow, or nowhere.

All of them write into the run's own output folder; nothing is sent anywhere.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..dependencies import missing
from ..storage.atomic import write_atomically
from ..types import LossRecord
from .preview import encode_png

LOG_FOLDER = 'training_log'
CSV_FILE = 'metrics.csv'
MLFLOW_FOLDER = 'mlruns'
PICTURE_FILE = 'reconstruction.png'
EXPERIMENT = 'PtychoPINN'

Ending = Literal['finished', 'stopped', 'failed']
Image = npt.NDArray[np.uint8]


class RunLog:
    """One run's log: losses come epoch by epoch, the rest at the end. This one takes nothing down."""

    wants_picture = False
    """Whether a picture of the first scan is worth making for this log."""

    def losses(self, record: LossRecord) -> None:
        """Enter the losses of one epoch; they are on disk when this returns."""

    def result(self, model_file: Path, picture: Image | None) -> None:
        """Enter the model file and the final picture, a grey image ``(h, w)``; by default they are not."""

    def close(self, ending: Ending) -> None:
        """No more will come."""


class CSVLog(RunLog):
    """``training_log/metrics.csv`` with the columns ``epoch`` (from 1), ``loss``, ``validation_loss``."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOG_FOLDER / CSV_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open('w', newline='', encoding='utf-8')
        self._writer = csv.writer(self._file)
        self._writer.writerow(('epoch', 'loss', 'validation_loss'))
        self._file.flush()

    def losses(self, record: LossRecord) -> None:
        """Add a line."""
        self._writer.writerow((record.epoch, record.training, '' if record.validation is None else record.validation))
        self._file.flush()

    def close(self, ending: Ending) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardLog(RunLog):
    """Event files in ``training_log``: losses, settings, and the final picture.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """

    wants_picture = True

    def __init__(self, folder: Path, config: Config) -> None:
        try:
            # First, because the error of torch's own import does not name it.
            import tensorboard  # type: ignore[import-untyped]  # noqa: F401
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing(error) from error
        target = folder / LOG_FOLDER
        # The curves of an earlier run in this folder would be drawn into those of this one.
        for path in target.glob('events.out.tfevents.*'):
            path.unlink(missing_ok=True)
        self._writer = SummaryWriter(str(target))
        table = '\n'.join(f'    {name} = {value}' for name, value in settings(config).items())
        self._writer.add_text('settings', table)

    def losses(self, record: LossRecord) -> None:
        """Add a point to each curve."""
        for name, value in named_losses(record).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def result(self, model_file: Path, picture: Image | None) -> None:
        """Enter the picture; the model file stays beside the log."""
        if picture is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        # Not by add_image(), which needs another package to make a PNG.
        height, width = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=1, encoded_image_string=encode_png(picture))
        value = Summary.Value(tag=Path(PICTURE_FILE).stem, image=image)
        writer: Any = self._writer.file_writer
        writer.add_summary(Summary(value=[value]))

    def close(self, ending: Ending) -> None:
        """Close the event file."""
        self._writer.close()


class MLflowLog(RunLog):
    """A run in a local MLflow file store, ``mlruns``: settings, losses, the model file and the final picture.

    Raises:
        MissingDependencyError: MLflow is not installed.
    """

    wants_picture = True

    _STATUS: ClassVar = {'finished': 'FINISHED', 'stopped': 'KILLED', 'failed': 'FAILED'}

    def __init__(self, folder: Path, config: Config, scans: Sequence[str]) -> None:
        # Newer versions ask for consent to write files, and would report their use to their makers.
        os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')
        os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
        try:
            from mlflow.entities import Param
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise missing(error) from error
        self._folder = folder
        self._client: Any = MlflowClient(tracking_uri=(folder.absolute() / MLFLOW_FOLDER).as_uri())
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = self._client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
        self._run = self._client.create_run(number, run_name=', '.join(scans)).info.run_id
        self._client.log_batch(self._run, params=[Param(name, str(value)) for name, value in settings(config).items()])

    def losses(self, record: LossRecord) -> None:
        """Add a point to each metric."""
        for name, value in named_losses(record).items():
            self._client.log_metric(self._run, name, value, step=record.epoch)

    def result(self, model_file: Path, picture: Image | None) -> None:
        """Copy the files into the store; the picture is ``training_log/reconstruction.png``."""
        self._client.log_artifact(self._run, str(model_file))
        if picture is not None:
            path = self._folder / LOG_FOLDER / PICTURE_FILE
            write_atomically(path, encode_png(picture))
            self._client.log_artifact(self._run, str(path))

    def close(self, ending: Ending) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run, self._STATUS[ending])


def open_log(folder: Path, config: Config, scans: Sequence[str], history: Sequence[LossRecord]) -> RunLog:
    """The log that ``config.execution.logger`` names, with the epochs of a run that goes on already in it.

    Args:
        folder: the run's output folder.
        config: written into the log where it has a place for settings.
        scans: names of the scans.
        history: epochs that were finished before.

    Raises:
        MissingDependencyError: the log needs a package that is not installed.
    """
    kind = config.execution.logger
    log: RunLog
    if kind == 'csv':
        log = CSVLog(folder)
    elif kind == 'tensorboard':
        log = TensorBoardLog(folder, config)
    elif kind == 'mlflow':
        log = MLflowLog(folder, config, scans)
    else:
        log = RunLog()
    for record in history:
        log.losses(record)
    return log


def named_losses(record: LossRecord) -> dict[str, float]:
    """The losses of an epoch by the names they have in every log."""
    losses = {'loss': record.training}
    return losses if record.validation is None else {**losses, 'validation_loss': record.validation}


def settings(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name."""
    return {
        f'{section}.{name}': value for section, fields in config.model_dump().items() for name, value in fields.items()
    }
