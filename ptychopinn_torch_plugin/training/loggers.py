"""Lightning's loggers of a run: a CSV file, TensorBoard, MLflow, or none. All write into the output folder only."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from ..config import Config
from ..dependencies import missing
from ..errors import OutputError
from ..storage.atomic import write_atomically
from ..types import LossRecord
from .preview import encode_png
from .state import TRAINING_LOSS, VALIDATION_LOSS

LOG_FOLDER = 'training_log'
CSV_FILE = 'metrics.csv'
COLUMNS = ('epoch', TRAINING_LOSS, VALIDATION_LOSS)
MLFLOW_FOLDER = 'mlruns'
PICTURE_FILE = 'reconstruction.png'
EXPERIMENT = 'PtychoPINN'

_REPLACED = ('events.out.tfevents.*', TensorBoardLogger.NAME_HPARAMS_FILE)
"""Files of an earlier run in the folder: TensorBoard would mix its curves with those of this one."""


class CSVFileLogger(Logger):
    """Writes ``training_log/metrics.csv``: one row for an epoch, counted from 1.

    Lightning's own CSV logger adds columns, and puts the file elsewhere.

    Args:
        folder: the output folder.

    Raises:
        OutputError: something that is not a file has the name, or it cannot be written.
    """

    name = LOG_FOLDER
    version = ''

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / LOG_FOLDER / CSV_FILE
        if self._path.exists() and not self._path.is_file():
            raise OutputError(
                f'{self._path} is not a regular file, and the losses of every epoch go there: remove it, choose '
                "another output folder, or set execution.logger to 'none'."
            )
        write_atomically(self._path, _row(COLUMNS))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the row of the epoch ``step``."""
        with self._path.open('ab') as file:
            file.write(_row((step, *(metrics.get(name, '') for name in COLUMNS[1:]))))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's own signature
        """Do nothing: the settings are in the model file."""


def _row(values: Sequence[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().encode()


def make_logger(folder: Path, config: Config, scans: Sequence[str]) -> Logger | None:
    """Return the logger that ``config.execution.logger`` names; the settings are logged where it has a place for them.

    Args:
        folder: the output folder.
        config: the configuration tree.
        scans: names of the scans.

    Raises:
        MissingDependencyError: the logger needs a package that is not installed.
        OutputError: its file cannot be written.
    """
    kind = config.execution.logger
    if kind == 'none':
        return None
    if kind == 'csv':
        return CSVFileLogger(folder)
    logger = _tensorboard(folder) if kind == 'tensorboard' else _mlflow(folder, scans)
    tree = config.model_dump()
    logger.log_hyperparams({f'{group}.{name}': value for group, part in tree.items() for name, value in part.items()})
    return logger


def _tensorboard(folder: Path) -> TensorBoardLogger:
    try:
        import tensorboard  # type: ignore[import-untyped]  # noqa: F401 - Lightning would take another package instead
    except ImportError as error:
        raise missing(error) from error
    for pattern in _REPLACED:
        for path in (folder / LOG_FOLDER).glob(pattern):
            path.unlink(missing_ok=True)
    return TensorBoardLogger(folder, name=LOG_FOLDER, version='', default_hp_metric=False)


def _mlflow(folder: Path, scans: Sequence[str]) -> MLFlowLogger:
    # Newer versions ask for consent to write files, and would report their use to their makers.
    os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')
    os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
    try:
        import mlflow  # noqa: F401 - Lightning reports a missing package without the command that installs it
    except ImportError as error:
        raise missing(error) from error
    address = (folder.absolute() / MLFLOW_FOLDER).as_uri()
    return MLFlowLogger(EXPERIMENT, run_name=', '.join(scans), tracking_uri=address)


def named_losses(record: LossRecord) -> dict[str, float]:
    """Return the losses of an epoch by the names they have in every log."""
    losses = {TRAINING_LOSS: record.training}
    return losses if record.validation is None else {**losses, VALIDATION_LOSS: record.validation}


def shows_pictures(logger: Logger) -> bool:
    """Return whether the logger has a place for a picture."""
    return isinstance(logger, TensorBoardLogger | MLFlowLogger)


def log_result(logger: Logger, folder: Path, model_file: Path, picture: npt.NDArray[np.uint8] | None) -> None:
    """Log the model file (MLflow copies it) and the final picture, a grey image ``(h, w)``."""
    if isinstance(logger, TensorBoardLogger) and picture is not None:
        logger.experiment.add_image(Path(PICTURE_FILE).stem, picture, dataformats='HW')
    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(model_file))
        if picture is not None:
            path = folder / LOG_FOLDER / PICTURE_FILE
            write_atomically(path, encode_png(picture))
            logger.experiment.log_artifact(logger.run_id, str(path))


def mark_stopped(logger: Logger) -> None:
    """Mark a run that was stopped, where the logger distinguishes it from a finished one."""
    if isinstance(logger, MLFlowLogger):
        logger.finalize('KILLED')
