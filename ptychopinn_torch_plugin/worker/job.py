"""The job of a worker, and the temporary folder through which its arrays travel.

Arrays are ``.npy`` files written and read with ``allow_pickle=False``; everything else is JSON beside them. The counts
of a scan, by far the largest array, are memory-mapped by the reader and so exist once, in the page cache.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..config import Config, InferenceConfig, TrainingConfig
from ..data.scan import RawScan
from ..errors import ConfigurationError, MemoryLimitError, WorkerError
from ..storage.atomic import is_abandoned, writer_tag
from ..storage.checked_files import read_bytes
from ..types import Credibility, FourierRingCorrelation, LossRecord, Reconstruction, ReconstructionMetrics

logger = logging.getLogger(__name__)

JobKind = Literal['train', 'reconstruct', 'refine']

_PREFIX = 'ptychopinn-'
_MARKER = '.ptychopinn-job'
"""File in a job folder that holds the tag of the process that made it (``storage.atomic.writer_tag``)."""
_MARKER_BYTES = 64
"""Longest marker that is read."""
_OWNER = re.compile(r'[0-9a-f]{8}-\d+')
_SCANS = 'scans'
_RESULT = 'result'
_METRICS = 'metrics'
_FRC = 'frc'


@dataclass(frozen=True)
class Job:
    """One training or one reconstruction; plain values that any start method of a process can pass on."""

    kind: JobKind
    folder: Path
    """Temporary folder of this job, absolute: holds scans, previews and the result; removed after the call."""

    config: Config
    output_folder: Path | None
    """Where training writes ``model.safetensors``, and a reconstruction its metrics, absolute; None for a
    reconstruction that writes no files."""

    model_file: Path | None
    """Model to reconstruct with, absolute; None for training."""

    pixel_m: tuple[float, float] | None = None
    """Height and width of an object pixel in metres, for the metrics; None where it is not known."""

    keeps_previews: bool = False
    """Whether every preview is kept until the reader removes it, instead of the newest two only."""

    @property
    def section(self) -> TrainingConfig | InferenceConfig:
        """Return the section of the settings that chooses device and threads for this kind of job."""
        return self.config.training if self.kind == 'train' else self.config.inference


@dataclass(frozen=True)
class Call:
    """What the parent passes to a worker: one job, and whether the worker then waits for another one."""

    entry: str
    """``'module:function'`` to call with ``(job, channel, stop_flag)``."""

    job: Job
    is_kept: bool


@contextmanager
def open_job(
    kind: JobKind,
    scans: Sequence[RawScan],
    config: Config,
    *,
    output_folder: Path | None = None,
    model_file: Path | None = None,
    pixel_m: tuple[float, float] | None = None,
    keeps_previews: bool = False,
) -> Iterator[Job]:
    """Write ``scans`` into a new temporary folder and yield the job; the folder is removed at exit.

    The arguments are the fields of :class:`Job`.

    Raises:
        ConfigurationError: training without an output folder or without a scan, or a reconstruction without a model
            file or with another number of scans than one.
        WorkerError: the scans cannot be written (no room, no permission).
    """
    if kind == 'train' and (output_folder is None or not scans):
        raise ConfigurationError(
            f'Training needs an output folder and at least one scan, not output_folder = {output_folder} and '
            f'{len(scans)} scans.'
        )
    if kind == 'reconstruct' and model_file is None:
        raise ConfigurationError('A reconstruction with a network needs a model file.')
    if kind != 'train' and len(scans) != 1:
        raise ConfigurationError(f'A reconstruction needs exactly one scan, not {len(scans)}.')
    _sweep_jobs(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        (folder / _MARKER).write_text(writer_tag(), encoding='ascii')
        for number, scan in enumerate(scans):
            write_scan(folder / _SCANS / f'{number:03d}', scan)
        yield Job(kind, folder, config, _absolute(output_folder), _absolute(model_file), pixel_m, keeps_previews)


def _sweep_jobs(folder: Path) -> None:
    """Remove job folders in ``folder``, of this user, whose processes were all killed before they could do so."""
    try:
        candidates = list(folder.glob(f'{_PREFIX}*'))
    except OSError as error:
        logger.debug('%s cannot be listed: %s', folder, error)
        return
    for candidate in candidates:
        try:
            owner = _owner_of(candidate)
            if owner is not None and is_abandoned(owner, candidate):
                shutil.rmtree(candidate, ignore_errors=True)
        except (OSError, WorkerError) as error:  # not a marker, or removed in the meantime
            logger.debug('%s is left alone: %s', candidate, error)


def _owner_of(folder: Path) -> str | None:
    """Return the tag in the marker of a job folder; None where folder and marker are not what this package writes.

    The temporary folder is shared: its entries may be links, pipes, endless files, or another user's. So owner and kind
    are checked first, and no more bytes are read than a marker has.

    Raises:
        WorkerError: the marker is not a regular file, or too large.
        OSError: the folder or the marker cannot be examined.
    """
    marker = folder / _MARKER
    if not (_is_own(folder.lstat()) and stat.S_ISDIR(folder.lstat().st_mode) and _is_own(marker.lstat())):
        return None
    owner = read_bytes(marker, _MARKER_BYTES, WorkerError, follow_links=False).decode('ascii', errors='replace')
    return owner if _OWNER.fullmatch(owner) else None


def _is_own(status: os.stat_result) -> bool:
    """Return whether a file belongs to this user."""
    return not hasattr(os, 'getuid') or status.st_uid == os.getuid()


def remove_orphan(folder: Path) -> None:
    """Remove a job folder whose parent process has died; a folder that :func:`open_job` did not make is kept."""
    if (folder / _MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)


def write_scan(folder: Path, scan: RawScan) -> None:
    """Write every field of ``scan`` into ``folder``, which is created.

    Raises:
        WorkerError: the disk is full or the folder cannot be written.
    """
    _write_record(folder, 'scan', scan)


def read_scan(folder: Path) -> RawScan:
    """Read what :func:`write_scan` wrote; ``counts`` is a read-only memory map.

    Raises:
        WorkerError: the folder holds no scan.
        MemoryLimitError: the process may not map so much memory.
    """
    return RawScan(**_read_record(folder, 'scan', mapped=frozenset({'counts'})))


def read_scans(folder: Path) -> tuple[RawScan, ...]:
    """Return all scans of the job in ``folder``, in the order in which :func:`open_job` got them."""
    return tuple(read_scan(path) for path in sorted((folder / _SCANS).iterdir(), key=lambda path: int(path.name)))


def write_result(folder: Path, reconstruction: Reconstruction) -> None:
    """Write ``reconstruction`` into the job's folder; its metrics come last, without them it is complete as well.

    Called a second time for the same reconstruction, it replaces the metrics only: the result stays complete.

    Raises:
        WorkerError: the disk is full or the folder cannot be written.
    """
    result = folder / _RESULT
    if not has_result(folder):
        _write_record(result, _RESULT, dataclasses.replace(reconstruction, metrics=None))
    metrics = reconstruction.metrics
    if metrics is not None:
        if metrics.frc is not None:
            _write_record(result / _FRC, _FRC, metrics.frc)
        _write_record(result / _METRICS, _METRICS, dataclasses.replace(metrics, frc=None))


def has_result(folder: Path) -> bool:
    """Return whether the job's folder holds a complete result; metrics may be missing."""
    return _header(folder / _RESULT, _RESULT).is_file()


def read_result(folder: Path) -> Reconstruction:
    """Read what :func:`write_result` wrote, into memory: it remains valid when the folder is removed.

    Raises:
        WorkerError: the worker wrote no result.
    """
    values = _read_record(folder / _RESULT, _RESULT, mapped=frozenset())
    values['losses'] = tuple(LossRecord(**record) for record in values['losses'])
    values['metrics'] = _read_metrics(folder / _RESULT)
    return Reconstruction(**values)


def _read_metrics(folder: Path) -> ReconstructionMetrics | None:
    if not _header(folder / _METRICS, _METRICS).is_file():
        return None
    values = _read_record(folder / _METRICS, _METRICS, mapped=frozenset())
    if _header(folder / _FRC, _FRC).is_file():
        values['frc'] = FourierRingCorrelation(**_read_record(folder / _FRC, _FRC, mapped=frozenset()))
    if values.get('credibility') is not None:
        values['credibility'] = Credibility(**values['credibility'])
    return ReconstructionMetrics(**values)


def read_preview(path: Path) -> npt.NDArray[np.complex64] | None:
    """Return the object of a :class:`~.messages.Preview`, complex64 ``(h, w)``.

    None if newer previews have replaced it, or if it holds values that are not finite, which go into no product.
    """
    try:
        preview: npt.NDArray[np.complex64] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    return preview if np.isfinite(preview).all() else None


def _absolute(path: Path | None) -> Path | None:
    """Return ``path`` as an absolute path: the child may start in another working folder."""
    return None if path is None else Path(path).resolve()


def _write_record(
    folder: Path, name: str, record: RawScan | Reconstruction | ReconstructionMetrics | FourierRingCorrelation
) -> None:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    plain = {key: value for key, value in values.items() if key not in arrays}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _header(folder, name).unlink(missing_ok=True)
        for key, array in arrays.items():
            np.save(folder / f'{key}.npy', array, allow_pickle=False)
        header = {'arrays': list(arrays), 'values': plain}
        unfinished = folder / f'{name}.tmp'
        unfinished.write_text(json.dumps(header, default=_plain), encoding='utf-8')
        # The header appears last and at once: a record that has one is complete.
        unfinished.replace(_header(folder, name))
    except OSError as error:
        raise WorkerError(
            f'The {name} could not be written to {folder} ({error}); free some space or point the environment '
            'variable TMPDIR to a larger disk.'
        ) from error


def _read_record(folder: Path, name: str, *, mapped: frozenset[str]) -> dict[str, Any]:
    try:
        header = json.loads(_header(folder, name).read_text(encoding='utf-8'))
        values = {key: _with_tuples(value) for key, value in header['values'].items()}
        for key in header['arrays']:
            mode: Literal['r'] | None = 'r' if key in mapped else None
            values[key] = np.load(folder / f'{key}.npy', mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError as error:
        raise WorkerError(f'There is no {name} in the job folder {folder}: {error.filename} is missing.') from error
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryLimitError(
            f'The memory that this process may use is too small for the {name}: crop or bin the patterns, use fewer '
            'positions, or raise the limit (for example "ulimit -v", or the memory of the cluster job).'
        ) from error
    return values


def _header(folder: Path, name: str) -> Path:
    return folder / f'{name}.json'


def _plain(value: object) -> object:
    """Return a numpy scalar or a record as a value of JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Credibility | LossRecord):
        return dataclasses.asdict(value)
    raise TypeError(f'{type(value).__name__} is neither an array nor a plain value.')


def _with_tuples(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value with tuples in place of lists, as the frozen records hold them."""
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value
