"""The commands: each takes the parsed words and the context of the run, and returns its result."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config
from ..data.io.conversion import BeamGeometry, complete_geometry, write_npz, write_workflow_folder
from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE
from ..errors import ConfigurationError
from ..metrics import FOLDER, verdict, write_metrics
from ..metrics.output import metrics_files, numbers
from ..metrics.run import RunKind
from ..observer import WRITING
from ..report import (
    REPORT_FILE,
    STATUS_FILE,
    TRAINING_REPORT_FILE,
    Run,
    StatusFile,
    TrainingRun,
    collected_warnings,
    write_report,
    write_training_report,
)
from ..storage.atomic import write_atomically
from ..storage.model_file import MODEL_FILE, read_model_header
from ..storage.training_output import RESUME_FILE
from .codes import ExitCode
from .context import CommandContext
from .headers import describe, probe_of
from .inputs import NPZ_SUFFIX, Loaded, load_scan, load_scans
from .outputs import refuse_unwritable, resolve_output, write_reconstruction
from .pictures import PICTURE_SUFFIXES, export_pictures
from .result import CommandResult, table
from .settings import read_config
from .signals import StopSignals
from .terminal import progress_bar
from .torchrun import reporting_process

if TYPE_CHECKING:
    from ..observer import Observer
    from ..types import Reconstruction

logger = logging.getLogger(__name__)

_TITLES: dict[RunKind, str] = {'reconstruct': 'Reconstructing', 'refine': 'Refining'}


def train(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Train one model on all scans; a signal ends the run with the best model so far."""
    signals = context.signals
    config = read_config(
        parsed.settings, parsed.set, 'supervised' if parsed.supervised else 'pinn', preset=parsed.preset
    )
    with engine_imports(signals):
        from ..training.checkpoint import CHECKPOINT_FOLDER
        from ..training.run import train as train_model
    refuse_unwritable(parsed.output / MODEL_FILE)
    report = parsed.output / TRAINING_REPORT_FILE
    context.written.watch(*(parsed.output / name for name in (MODEL_FILE, RESUME_FILE, CHECKPOINT_FOLDER)), report)
    with collected_warnings() as warnings, reporting_process(parsed, trains=True) as reports:
        scans = load_scans(parsed.scans, parsed.read_as, parsed.nphotons)
        started, start = datetime.now(UTC).astimezone(), time.perf_counter()
        status_file = parsed.output / STATUS_FILE if reports else None
        with signals.deferred(), StatusFile(status_file, 'train') as status:
            status.plan('train', config)
            with progress_bar('Training', signals, quiet=parsed.quiet) as observer:
                observer.plan('train', config)
                model = train_model(scans, config, parsed.output, status.observer(observer))
            if not reports:
                return CommandResult()
            seconds = round(time.perf_counter() - start, 3)
            status.begin(WRITING)
            described = TrainingRun(
                scans, config, started, seconds, model, tuple(warnings), is_stopped=signals.received is not None
            )  # fmt: skip
            has_report = config.execution.report and write_training_report(report, described)
            status.finish(context.written.paths(), is_stopped=signals.received is not None)
            return _trained(model, report if has_report else None, seconds, signals)


def _trained(model: Path, report: Path | None, seconds: float, signals: StopSignals) -> CommandResult:
    ended_by, code = signals.received, signals.exit_code
    header = read_model_header(model)
    last = header.losses[-1] if header.losses else None
    document = {
        'model': model,
        'scans': header.scans,
        'epochs': len(header.losses),
        'training_loss': last and last.training,
        'validation_loss': last and last.validation,
        'seconds': seconds,
        'interrupted_by': ended_by,
        'report': report,
    }
    text = f'The model is {model}.'
    if ended_by:
        text = f'{ended_by}: ended after {len(header.losses)} whole epochs; the best model so far is {model}.'
        if model.with_name(RESUME_FILE).is_file():
            text += ' The same command continues from there.'
    return CommandResult(document, text, code)


def reconstruct(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Reconstruct a scan with a model; a signal ends the run with the object so far."""
    config = read_config(parsed.settings, parsed.set, preset=parsed.preset)
    with engine_imports(context.signals):
        from ..engines.pipeline import reconstruct as reconstruct_scan
        from ..storage.model_file import load_model
    model_file = parsed.model or _folder_of(parsed.scan) / MODEL_FILE
    model = load_model(model_file)

    def run(loaded: Loaded, observer: Observer) -> Reconstruction:
        return reconstruct_scan(loaded.scan, model, config, observer)

    return _write_result_of(run, 'reconstruct', parsed, context, config, model_file)


def refine(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Reconstruct a scan by refinement alone; a signal ends the run with the object so far."""
    config = read_config(parsed.settings, parsed.set, preset=parsed.preset)
    if config.refinement.refine_epochs == 0:
        raise ConfigurationError('refinement.refine_epochs = 0: refine needs at least one epoch.')
    with engine_imports(context.signals):
        from ..engines.pipeline import refine as refine_scan

    def run(loaded: Loaded, observer: Observer) -> Reconstruction:
        return refine_scan(loaded.scan, config, observer)

    return _write_result_of(run, 'refine', parsed, context, config, None)


def export(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Write a training file of a scan, or pictures of a result."""
    if parsed.output.suffix.lower() in PICTURE_SUFFIXES:
        return export_pictures(parsed, context)
    if parsed.output.suffix != NPZ_SUFFIX:
        raise ConfigurationError(
            f'-o {parsed.output}: export writes a training file, give a name that ends in .npz; or pictures of a '
            'result, give a name that ends in .tiff or .png.'
        )
    return _to_npz(load_scan(parsed.source, parsed.read_as, parsed.nphotons), parsed, context)


def convert(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Turn a training file into a workflow folder, or any scan into a training file."""
    given = given_geometry(parsed)
    loaded = load_scan(parsed.source, parsed.read_as, parsed.nphotons)
    loaded = dataclasses.replace(loaded, geometry=given.or_else(loaded.geometry))
    if parsed.output.suffix == NPZ_SUFFIX:
        return _to_npz(loaded, parsed, context)
    if parsed.output.is_file():
        raise ConfigurationError(f'-o {parsed.output} is a file: give a folder, or a name that ends in .npz.')
    geometry = complete_geometry(loaded.geometry, loaded.scan, nominal=parsed.nominal)
    context.written.watch(parsed.output / DIFFRACTION_FILE, parsed.output / PRODUCT_FILE)
    write_workflow_folder(parsed.output, loaded.scan, geometry, name=parsed.source.stem)
    return _converted(loaded, parsed.output, geometry, 'workflow folder')


def info(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Print the header of a model, a scan or a product, without torch and without reading patterns."""
    document, text = describe(parsed.path)
    if parsed.probe is None:
        return CommandResult(document, text)
    from ..metrics.plots import draw_probe

    refuse_unwritable(parsed.probe)
    context.written.watch(parsed.probe)
    write_atomically(parsed.probe, draw_probe(*probe_of(parsed.path)))
    return CommandResult(
        document | {'probe_picture': parsed.probe}, f'{text}\nThe picture of the probe is {parsed.probe}.'
    )


def doctor(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Check the installation."""
    from .. import doctor as examination

    checks = examination.collect()
    code = ExitCode.DONE if examination.is_healthy(checks) else ExitCode.FAILED
    return CommandResult({'checks': [dataclasses.asdict(check) for check in checks]}, examination.report(checks), code)


def demo(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Run the demonstration."""
    from ..demo.demonstration import PLOT_FILE, SCORES_FILE, run_demo

    context.written.watch(*(parsed.output / name for name in (PRODUCT_FILE, MODEL_FILE, PLOT_FILE, SCORES_FILE)))
    result = run_demo(parsed.output, parsed.scan)
    scores = '\n'.join(f'{name:<20}{value:>10.4f}' for name, value in result.scores.items())
    text = f'{scores}\nThe product is {result.product}, the plot {result.plot}.'
    return CommandResult({'product': result.product, 'picture': result.plot, 'scores': result.scores}, text)


@contextmanager
def engine_imports(signals: StopSignals) -> Iterator[None]:
    """Import parts of the engine inside; a signal that comes meanwhile ends the command after it, not inside torch."""
    from ..dependencies import is_own, missing

    with signals.deferred():
        try:
            yield
        except ImportError as error:
            if is_own(error):
                raise
            raise missing(error) from error
        except MemoryError as error:
            raise missing(error) from error
        except SystemError as error:
            # Memory ran out while a compiled module was made, which gave Python no reason.
            if 'without exception set' not in str(error):
                raise
            raise missing(MemoryError(str(error))) from error
    signals.check()


def _write_result_of(
    run: Callable[[Loaded, Observer], Reconstruction],
    kind: RunKind,
    parsed: argparse.Namespace,
    context: CommandContext,
    config: Config,
    model_file: Path | None,
) -> CommandResult:
    """Read the scan, reconstruct it with ``run``, and write product, metrics and report, whatever signal comes."""
    has_product = parsed.scan.is_dir() or parsed.scan.suffix != NPZ_SUFFIX
    # Before the scan is read: an output that cannot be written is refused before hours of work.
    output = resolve_output(parsed.output, has_product=has_product)
    with reporting_process(parsed) as reports, collected_warnings() as warnings:
        loaded = load_scan(parsed.scan, parsed.read_as, parsed.nphotons, large_on_disk=True)
        report = output.parent / REPORT_FILE
        context.written.watch(output, *metrics_files(output.parent), report)
        started, start = datetime.now(UTC).astimezone(), time.perf_counter()
        signals = context.signals
        status_file = output.parent / STATUS_FILE if reports else None
        with signals.deferred(), StatusFile(status_file, kind) as status:
            status.plan(kind, config)
            with progress_bar(_TITLES[kind], signals, quiet=parsed.quiet) as observer:
                observer.plan(kind, config)
                result = run(loaded, status.observer(observer))
            if not reports:
                return CommandResult()
            ended_by, code = signals.received, signals.exit_code
            seconds = round(time.perf_counter() - start, 3)
            status.begin(WRITING)
            write_reconstruction(output, loaded, result)
            pixel_m = loaded.geometry.object_pixel_m
            described = Run(
                kind, loaded.scan, config, started, seconds, pixel_m, tuple(warnings), model_file, output,
                is_stopped=ended_by is not None,
            )  # fmt: skip
            has_metrics = write_metrics(output.parent, result, pixel_m, described)
            has_report = config.execution.report and write_report(report, result, described)
            status.finish(context.written.paths(), is_stopped=ended_by is not None)
            document = {
                'model': model_file,
                'seconds': seconds,
                'interrupted_by': ended_by,
                'output': output,
                'coverage': float(result.coverage.mean()),
                'losses': [record.training for record in result.losses],
                'judgement_folder': output.parent / FOLDER if has_metrics else None,
                'judgement': None if result.metrics is None else numbers(result.metrics, pixel_m),
                'report': report if has_report else None,
            }
            text = f'{ended_by}: the object so far is {output}.' if ended_by else f'The reconstruction is {output}.'
            if result.metrics is not None:
                text += f'\n{verdict(result.metrics)}'
            if signals.received and not ended_by:
                logger.warning(
                    '%s came after the reconstruction was complete: all files are written.', signals.received
                )
            return CommandResult(document, text, code)


def _folder_of(scan: Path) -> Path:
    return scan if scan.is_dir() else scan.parent


def _to_npz(loaded: Loaded, parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    if parsed.output.exists() and parsed.output.samefile(parsed.source):
        raise ConfigurationError(f'-o {parsed.output} is the file to read: give another name.')
    context.written.watch(parsed.output)
    write_npz(parsed.output, loaded.scan, loaded.geometry, quantity=parsed.dialect)
    return _converted(loaded, parsed.output, loaded.geometry, f'training file ({parsed.dialect})')


def _converted(loaded: Loaded, output: Path, geometry: BeamGeometry, kind: str) -> CommandResult:
    scan = loaded.scan
    document = {
        'output': output,
        'kind': kind,
        'positions': scan.size,
        'pattern_shape': scan.pattern_shape,
        'probe_modes': len(scan.probe),
        'bad_pixels': int(scan.bad_pixels.sum()),
        'geometry': dataclasses.asdict(geometry),
    }
    rows = {key: value for key, value in document.items() if key != 'geometry'} | geometry.known()
    return CommandResult(document, table(rows))


def given_geometry(parsed: argparse.Namespace) -> BeamGeometry:
    """Return the geometry that the command line gives; None where it says nothing."""
    return BeamGeometry(
        photon_energy_ev=parsed.photon_energy_ev,
        detector_distance_m=parsed.detector_distance_m,
        detector_pixel_m=_pair('detector_pixel_m', parsed.detector_pixel_m),
        object_pixel_m=_pair('object_pixel_m', parsed.object_pixel_m),
    )


def _pair(name: str, values: list[float] | None) -> tuple[float, float] | None:
    if values is None:
        return None
    if len(values) > 2:
        raise ConfigurationError(f'{name} = {values}: give one number, or height and width.')
    return values[0], values[-1]
