"""What a worker is asked to do, and the folder its arrays travel through.

Arrays are ``.npy`` files written and read with ``allow_pickle=False``; everything else is JSON beside them. The counts
of a scan, by far the largest array, are memory-mapped by the reader and so exist once, in the page cache.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..data.scan import RawScan
from ..errors import ConfigurationError, WorkerError
from ..storage.atomic import is_abandoned, writer_tag
from ..types import FourierRingCorrelation, LossRecord, Reconstruction, ReconstructionMetrics

logger = logging.getLogger(__name__)

JobKind = Literal['train', 'reconstruct', 'refine']

_PREFIX = 'ptychopinn-'
_MARKER = '.ptychopinn-job'
"""File in a job folder that names the process it belongs to."""
_OWNER = re.compile(r'[0-9a-f]{8}-\d+')
_SCANS = 'scans'
_RESULT = 'result'
_JUDGEMENT = 'judgement'
_RINGS = 'rings'


@dataclass(frozen=True)
class Job:
    """One training or one reconstruction; plain data that any start method can hand to a child."""

    kind: JobKind
    folder: Path
    """Folder of this job, absolute: scans go in, previews and results come out; gone after the call."""

    config: Config
    output_folder: Path | None
    """Where training writes ``model.safetensors``, and a reconstruction its judgement, absolute; None for a
    reconstruction that leaves no files."""

    model_file: Path | None
    """Model to reconstruct with, absolute; None for training."""

    pixel_m: tuple[float, float] | None = None
    """Height and width of an object pixel in metres, for the judgement; None where it is not known."""

    keeps_previews: bool = False
    """Whether every preview reaches the reader, who removes it, instead of the newest ones only."""


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
    """Remove job folders in ``folder`` whose owners, host and worker, were killed together."""
    for candidate in folder.glob(f'{_PREFIX}*'):
        marker = candidate / _MARKER
        try:
            owner = marker.read_text(encoding='ascii') if marker.is_file() else ''
            if _OWNER.fullmatch(owner) and is_abandoned(owner, candidate):
                shutil.rmtree(candidate, ignore_errors=True)
        except (OSError, UnicodeDecodeError) as error:  # not ours, or gone by now
            logger.debug('%s is left alone: %s', candidate, error)


def remove_orphan(folder: Path) -> None:
    """Remove a job folder whose owner has died; a folder that :func:`open_job` did not make is left alone."""
    if (folder / _MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)


def write_scan(folder: Path, scan: RawScan) -> None:
    """Write every field of ``scan`` into ``folder``, which is made.

    Raises:
        WorkerError: the disk is full or the folder cannot be written.
    """
    _write_record(folder, 'scan', scan)


def read_scan(folder: Path) -> RawScan:
    """Read what :func:`write_scan` wrote; ``counts`` is a read-only memory map.

    Raises:
        WorkerError: the folder holds no scan.
    """
    return RawScan(**_read_record(folder, 'scan', mapped=frozenset({'counts'})))


def read_scans(folder: Path) -> tuple[RawScan, ...]:
    """All scans of the job in ``folder``, in the order in which :func:`open_job` got them."""
    return tuple(read_scan(path) for path in sorted((folder / _SCANS).iterdir(), key=lambda path: int(path.name)))


def write_result(folder: Path, reconstruction: Reconstruction) -> None:
    """Leave ``reconstruction`` in the job's folder.

    Raises:
        WorkerError: the disk is full or the folder cannot be written.
    """
    _write_record(folder / _RESULT, _RESULT, dataclasses.replace(reconstruction, metrics=None))
    judgement = reconstruction.metrics
    if judgement is not None:
        _write_record(folder / _RESULT / _JUDGEMENT, _JUDGEMENT, dataclasses.replace(judgement, frc=None))
        if judgement.frc is not None:
            _write_record(folder / _RESULT / _JUDGEMENT / _RINGS, _RINGS, judgement.frc)


def read_result(folder: Path) -> Reconstruction:
    """Read what :func:`write_result` wrote, into memory: it outlives the folder.

    Raises:
        WorkerError: the worker left no result.
    """
    values = _read_record(folder / _RESULT, _RESULT, mapped=frozenset())
    values['losses'] = tuple(LossRecord(**record) for record in values['losses'])
    values['metrics'] = _read_judgement(folder / _RESULT / _JUDGEMENT)
    return Reconstruction(**values)


def _read_judgement(folder: Path) -> ReconstructionMetrics | None:
    if not folder.is_dir():
        return None
    values = _read_record(folder, _JUDGEMENT, mapped=frozenset())
    if (folder / _RINGS).is_dir():
        values['frc'] = FourierRingCorrelation(**_read_record(folder / _RINGS, _RINGS, mapped=frozenset()))
    return ReconstructionMetrics(**values)


def read_preview(path: Path) -> npt.NDArray[np.complex64] | None:
    """The object of a :class:`~.messages.Preview`, complex64 ``(h, w)``.

    None if newer ones have replaced it, or it holds numbers that are not finite: those go into no product.
    """
    try:
        preview: npt.NDArray[np.complex64] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    return preview if np.isfinite(preview).all() else None


def _absolute(path: Path | None) -> Path | None:
    """``path`` seen from the root: a spawned child may start in another working folder."""
    return None if path is None else Path(path).resolve()


def _write_record(
    folder: Path, name: str, record: RawScan | Reconstruction | ReconstructionMetrics | FourierRingCorrelation
) -> None:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    plain = {key: value for key, value in values.items() if key not in arrays}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, array in arrays.items():
            np.save(folder / f'{key}.npy', array, allow_pickle=False)
        header = {'arrays': list(arrays), 'values': plain}
        (folder / f'{name}.json').write_text(json.dumps(header, default=_plain), encoding='utf-8')
    except OSError as error:
        raise WorkerError(
            f'The {name} could not be written to {folder} ({error}); free some space or point the environment '
            'variable TMPDIR to a larger disk.'
        ) from error


def _read_record(folder: Path, name: str, *, mapped: frozenset[str]) -> dict[str, Any]:
    try:
        header = json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))
        values = {key: _with_tuples(value) for key, value in header['values'].items()}
        for key in header['arrays']:
            mode: Literal['r'] | None = 'r' if key in mapped else None
            values[key] = np.load(folder / f'{key}.npy', mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError as error:
        raise WorkerError(f'There is no {name} in the job folder {folder}: {error.filename} is missing.') from error
    return values


def _plain(value: object) -> object:
    """What JSON takes for a numpy scalar or a record."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, LossRecord):
        return dataclasses.asdict(value)
    raise TypeError(f'{type(value).__name__} is neither an array nor a plain value.')


def _with_tuples(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """JSON knows lists only; the frozen records hold tuples."""
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value
