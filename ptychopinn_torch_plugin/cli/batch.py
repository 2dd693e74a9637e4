"""Reconstruction of many scans in one process, which can be ended and started again.

Every scan has a folder of its own below the output folder, with the product, its metrics and ``record.json``. A scan is
done once its record says so; the record is written last and in one step, so a process that is killed leaves no scan
half done. A batch that is started again skips the scans that are done.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ..config import Config
from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE
from ..errors import ConfigurationError, InputError, MissingDependencyError, OutputError, PtychoPINNError
from ..metrics import write_metrics
from ..metrics.output import numbers
from ..metrics.run import RunKind
from ..observer import SilentObserver
from ..report import REPORT_FILE, STATUS_FILE, Run, StatusFile, collected_warnings, write_report
from ..storage.atomic import write_atomically
from ..storage.folder_lock import locked
from ..storage.json_values import plain
from .codes import ExitCode
from .commands import engine_imports
from .context import CommandContext
from .inputs import NPZ_SUFFIX, Loaded, find_scans, load_scan
from .outputs import resolve_output, write_reconstruction
from .result import CommandResult
from .settings import read_config
from .signals import StopSignals
from .terminal import progress_bar
from .torchrun import is_one_of_several

if TYPE_CHECKING:
    from ..observer import Observer
    from ..types import Reconstruction

logger = logging.getLogger(__name__)

RECORD_FILE: Final = 'record.json'
PROGRESS_STEPS: Final = 1000
"""Steps of the progress bar for each scan."""

_MAX_RECORD_BYTES: Final = 2**24
_TECHNICAL: Final = frozenset(
    {'accelerator', 'devices', 'threads', 'batch_size', 'preview_interval', 'batch_interval', 'half_scans'}
)
"""Settings of the section ``inference`` that do not change the object: a batch may continue with other ones."""

State = Literal['started', 'done', 'failed']
RunScan = Callable[['Loaded', 'Observer'], 'Reconstruction']


@dataclass(frozen=True)
class Shard:
    """A part of the scans: number ``number`` of ``count``, from 1."""

    number: int = 1
    count: int = 1

    def select(self, items: Sequence[BatchScan]) -> list[BatchScan]:
        """Return every ``count``-th item, from the ``number``-th on."""
        return list(items[self.number - 1 :: self.count])


@dataclass(frozen=True)
class BatchScan:
    """One scan of a batch and the folder of its results."""

    path: Path
    folder: Path

    @property
    def record_file(self) -> Path:
        """The file that says how the scan ended."""
        return self.folder / RECORD_FILE


@dataclass(frozen=True)
class Recipe:
    """How every scan of a batch is reconstructed."""

    run: RunScan
    config: Config
    model_file: Path | None
    made_with: dict[str, Any]
    """Model and settings that decide the result, for the record."""


@dataclass
class Summary:
    """Records of the scans of one run."""

    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)


def batch(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Reconstruct many scans; a signal ends the batch, and the same command continues it."""
    if is_one_of_several():
        raise ConfigurationError(
            'batch shares scans by --shard: start it without torchrun, for example as a job array.'
        )
    config = read_config(parsed.settings, parsed.set, preset=parsed.preset)
    if parsed.model is None and config.refinement.refine_epochs == 0:
        raise ConfigurationError('refinement.refine_epochs = 0: a batch without a model (-m) needs at least one epoch.')
    if parsed.output.is_file() or parsed.output.suffix:
        raise ConfigurationError(f'-o {parsed.output}: a batch writes into a folder, give a name without a suffix.')
    scans = parsed.shard.select(list_scans(parsed.scans, parsed.output))
    signals = context.signals
    recipe = _prepare(parsed.model, config, signals)
    waiting, summary = _divide(scans, recipe.made_with, again=parsed.again)
    start = time.perf_counter()
    with signals.deferred(), StatusFile(parsed.output / _status_name(parsed.shard), 'batch') as status:
        with progress_bar('Batch', signals, quiet=parsed.quiet) as bar:
            observer = status.observer(bar)
            for number, scan in enumerate(waiting, 1):
                if observer.should_stop():
                    break
                context.written.watch(scan.record_file)
                status.begin(f'scan {number} of {len(waiting)}: {scan.path}')
                part = _ScanObserver(observer, number - 1, len(waiting))
                record = _reconstruct(scan, recipe, parsed, part)
                if record is None:  # a signal came
                    break
                (summary.done if record['state'] == 'done' else summary.failed).append(record)
                _log_line(record, number, len(waiting))
        status.finish(context.written.paths(), is_stopped=signals.received is not None)
        left = len(scans) - len(summary.done) - len(summary.skipped) - len(summary.failed)
        document = {
            'output': parsed.output,
            'model': parsed.model,
            'shard': [parsed.shard.number, parsed.shard.count],
            'reconstructed': len(summary.done),
            'done_before': len(summary.skipped),
            'failed': len(summary.failed),
            'left': left,
            'scans': [_without_log(record) for record in (*summary.skipped, *summary.done, *summary.failed)],
            'seconds': round(time.perf_counter() - start, 3),
            'interrupted_by': signals.received,
        }
        code = signals.exit_code or (ExitCode.FAILED if summary.failed else ExitCode.DONE)
        return CommandResult(document, _text(summary, left, signals.received), code)


def read_shard(text: str) -> Shard:
    """Return the shard of ``'i/n'``, ``i`` from 1.

    Raises:
        argparse.ArgumentTypeError: it is not written that way.
    """
    match = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is no part of a batch: write I/N, I from 1 to N, for example 3/16.")
    return Shard(int(match[1]), int(match[2]))


def list_scans(paths: Sequence[Path], output: Path) -> list[BatchScan]:
    """Return the scans that ``paths`` stand for, in this order, each with its folder below ``output``.

    A scan that is given itself has a folder of its own name. Scans in a folder that is given have folders below the
    name of that folder. A folder that holds no scan is listed, too: it fails when it is read, and the others do not.

    Raises:
        ConfigurationError: two scans would have the same folder.
    """
    scans: list[BatchScan] = []
    folders: dict[Path, Path] = {}
    for path in paths:
        try:
            found = find_scans(path)
        except InputError:
            found = [path]
        for item in found:
            name = _name_of(item)
            folder = output / name if item == path else output / _name_of(path) / name
            if folder in folders:
                raise ConfigurationError(
                    f'{folders[folder]} and {item} would both be written to {folder}: name the folders that hold them '
                    'instead, or give each batch an output folder of its own.'
                )
            folders[folder] = item
            scans.append(BatchScan(item, folder))
    return scans


def _name_of(path: Path) -> str:
    absolute = path.absolute()
    return absolute.name if absolute.is_dir() else absolute.stem


def _prepare(model_file: Path | None, config: Config, signals: StopSignals) -> Recipe:
    """Load the engine and the model once; return how every scan is reconstructed."""
    with engine_imports(signals):
        from ..engines import pipeline
        from ..storage.model_file import load_model
    settings = {
        section: getattr(config, section).model_dump(mode='json') for section in ('probe', 'inference', 'refinement')
    }
    for name in _TECHNICAL:
        settings['inference'].pop(name, None)
    if model_file is None:

        def refine(loaded: Loaded, observer: Observer) -> Reconstruction:
            return pipeline.refine(loaded.scan, config, observer)

        return Recipe(refine, config, None, {**settings, 'model': None})
    model = load_model(model_file)

    def reconstruct(loaded: Loaded, observer: Observer) -> Reconstruction:
        return pipeline.reconstruct(loaded.scan, model, config, observer)

    return Recipe(reconstruct, config, model_file, {**settings, 'model': {'sha256': _sha256(model_file)}})


def _status_name(shard: Shard) -> str:
    """Return the name of the status file: every task of a job array has one of its own."""
    return STATUS_FILE if shard.count == 1 else f'status-{shard.number}-of-{shard.count}.json'


def _sha256(file: Path) -> str:
    import hashlib

    with file.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def _divide(scans: Sequence[BatchScan], made_with: dict[str, Any], *, again: bool) -> tuple[list[BatchScan], Summary]:
    """Return the scans to reconstruct, and the records of those that are done.

    Scans that a process began and did not end come last: should one of them be the reason, the others are done before.

    Raises:
        ConfigurationError: a scan is done with another model or other settings.
    """
    fresh, begun, summary = [], [], Summary()
    for scan in scans:
        record = None if again else _read_record(scan.record_file)
        if record is None or record['state'] == 'failed':
            fresh.append(scan)
        elif record['state'] == 'started':
            begun.append(scan)
        elif record['inputs'] != _inputs_of(scan.path):
            logger.info('%s has changed since it was reconstructed: it is reconstructed again.', scan.path)
            fresh.append(scan)
        else:
            _refuse_other_settings(scan, record['made_with'], made_with)
            summary.skipped.append(record)
    if summary.skipped:
        logger.info('%d of %d scans are done already.', len(summary.skipped), len(scans))
    return fresh + begun, summary


def _refuse_other_settings(scan: BatchScan, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before == now:
        return
    changed = [
        f'{section}.{name}'
        for section in ('probe', 'inference', 'refinement')
        for name in now[section]
        if before.get(section, {}).get(name) != now[section][name]
    ]
    if before.get('model') != now['model']:
        changed.insert(0, 'the model')
    raise ConfigurationError(
        f'{scan.folder} holds a reconstruction with other values of {", ".join(changed)}: give another output folder, '
        'or --again to reconstruct every scan again.'
    )


def _reconstruct(
    scan: BatchScan, recipe: Recipe, parsed: argparse.Namespace, observer: _ScanObserver
) -> dict[str, Any] | None:
    """Reconstruct one scan and write its product, metrics and record; None if a signal ended it."""
    record: dict[str, Any] = {
        'state': 'started',
        'scan': str(scan.path.absolute()),
        'inputs': _inputs_of(scan.path),
        'made_with': recipe.made_with,
    }
    try:
        with locked(scan.folder, 'a reconstruction'):
            return _reconstruct_locked(scan, recipe, record, parsed, observer)
    except OutputError as error:  # another process works there, or the record cannot be written
        return record | _failure(error) | {'log': []}


def _reconstruct_locked(
    scan: BatchScan, recipe: Recipe, record: dict[str, Any], parsed: argparse.Namespace, observer: _ScanObserver
) -> dict[str, Any] | None:
    start = time.perf_counter()
    _write_record(scan.record_file, record)
    with _collected_log() as lines:
        try:
            record |= _result_of(scan, recipe, parsed, observer)
        except (ConfigurationError, MissingDependencyError):
            scan.record_file.unlink()
            raise  # every other scan would end the same way
        except Exception as error:  # one scan must not end the batch; what is no fault of the scan has its traceback
            if not isinstance(error, PtychoPINNError | OSError):
                lines.extend(traceback.format_exception(error))
            record |= _failure(error)
    if record['state'] == 'started' or (record['state'] == 'failed' and observer.should_stop()):
        scan.record_file.unlink()
        return None
    record |= {'seconds': round(time.perf_counter() - start, 3), 'log': lines}
    _write_record(scan.record_file, record)
    return record


def _failure(error: Exception) -> dict[str, Any]:
    message = str(error) or type(error).__name__
    return {'state': 'failed', 'error': {'type': type(error).__name__, 'message': message}}


def _result_of(scan: BatchScan, recipe: Recipe, parsed: argparse.Namespace, observer: _ScanObserver) -> dict[str, Any]:
    has_product = scan.path.is_dir() or scan.path.suffix != NPZ_SUFFIX
    output = resolve_output(scan.folder, has_product=has_product)
    started, start = datetime.now(UTC).astimezone(), time.perf_counter()
    with collected_warnings() as warnings:
        loaded = load_scan(scan.path, parsed.read_as, parsed.nphotons, large_on_disk=True)
        result = recipe.run(loaded, observer)
        if observer.should_stop():  # the object is not complete
            return {}
        seconds = time.perf_counter() - start
        write_reconstruction(output, loaded, result)
        pixel_m = loaded.geometry.object_pixel_m
        kind: RunKind = 'refine' if recipe.model_file is None else 'reconstruct'
        described = Run(
            kind, loaded.scan, recipe.config, started, seconds, pixel_m, tuple(warnings), recipe.model_file, output
        )  # fmt: skip
        write_metrics(scan.folder, result, pixel_m, described)
    report = scan.folder / REPORT_FILE
    has_report = recipe.config.execution.report and write_report(report, result, described)
    return {
        'state': 'done',
        'output': str(output.absolute()),
        'positions': loaded.scan.size,
        'coverage': float(result.coverage.mean()),
        'judgement': None if result.metrics is None else numbers(result.metrics, pixel_m),
        'report': str(report.absolute()) if has_report else None,
    }


class _ScanObserver(SilentObserver):
    """Observes one scan of a batch: each has the same share of the progress bar."""

    def __init__(self, observer: Observer, number: int, count: int) -> None:
        self._observer = observer
        self._number = number
        self._count = count

    def on_progress(self, done: int, goal: int) -> None:
        """Move the bar."""
        part = PROGRESS_STEPS * done // max(goal, 1)
        self._observer.on_progress(PROGRESS_STEPS * self._number + part, PROGRESS_STEPS * self._count)

    def should_stop(self) -> bool:
        """Return whether the batch ends."""
        return self._observer.should_stop()


class _ListHandler(logging.Handler):
    """Collects the lines of the log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f'{record.levelname}: {record.getMessage()}')


@contextmanager
def _collected_log() -> Iterator[list[str]]:
    """Collect the log of this package in a list, instead of printing it: a batch prints one line a scan."""
    package = logging.getLogger(__package__.partition('.')[0])
    handler, level = _ListHandler(), package.level
    package.addHandler(handler)
    package.propagate = False
    package.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        package.setLevel(level)
        package.propagate = True
        package.removeHandler(handler)


def _inputs_of(path: Path) -> dict[str, list[int]]:
    """Return size and time of change (ns) of the files of a scan: a scan whose files change is reconstructed again."""
    if path.is_dir():
        files = [path / DIFFRACTION_FILE, path / PRODUCT_FILE]
    else:
        files = [path] if path.suffix == NPZ_SUFFIX else [path.with_name(DIFFRACTION_FILE), path]
    found = {}
    for file in files:
        if file.is_file():
            status = file.stat()
            found[file.name] = [status.st_size, status.st_mtime_ns]
    return found


def _write_record(file: Path, record: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(plain(record), indent=2).encode() + b'\n')


def _read_record(file: Path) -> dict[str, Any] | None:
    """Return a record; None where there is none.

    Raises:
        InputError: the file is not a record of a batch.
    """
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > _MAX_RECORD_BYTES:
            raise ValueError('it is too large')
        record: dict[str, Any] = json.loads(file.read_bytes())
        if record['state'] not in ('started', 'done', 'failed') or not isinstance(record['inputs'], dict):
            raise ValueError('it has another layout')
        if not isinstance(record['made_with'], dict):
            raise ValueError('it has another layout')
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f'{file} is not a record of a batch ({error}): remove it to reconstruct the scan again, or give another '
            'output folder.'
        ) from error
    return record


def _without_log(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ('log', 'made_with', 'inputs')}


def _log_line(record: dict[str, Any], number: int, count: int) -> None:
    warnings = sum(line.startswith('WARNING') for line in record['log'])
    said = f', {warnings} warning{"s" if warnings > 1 else ""}' if warnings else ''
    if record['state'] == 'failed':
        logger.error('%d/%d %s: failed: %s', number, count, record['scan'], record['error']['message'])
        return
    metrics = record['judgement']
    quality = '' if metrics is None or metrics['misfit'] is None else f'misfit {metrics["misfit"]:.3g}, '
    logger.info(
        '%d/%d %s: %s%.0f %% covered, %.1f s%s: %s',
        number,
        count,
        record['scan'],
        quality,
        100 * record['coverage'],
        record['seconds'],
        said,
        record['output'],
    )


def _text(summary: Summary, left: int, ended_by: str | None) -> str:
    lines = [
        f'Scans: {len(summary.done)} reconstructed, {len(summary.skipped)} done before, {len(summary.failed)} failed, '
        f'{left} left.'
    ]
    lines += [f'failed: {record["scan"]}: {record["error"]["message"]}' for record in summary.failed]
    if ended_by:
        lines.append(f'{ended_by}: the same command continues the batch.')
    elif summary.failed:
        lines.append('The same command tries the failed scans again.')
    return '\n'.join(lines)
