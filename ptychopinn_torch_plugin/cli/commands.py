"""The commands: each takes the parsed words and returns what it has done."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.io.conversion import BeamGeometry, complete_geometry, write_npz, write_workflow_folder
from ..errors import ConfigurationError
from ..metrics import FOLDER, verdict, write_judgement
from ..metrics.output import figures
from ..storage.model_file import MODEL_FILE, read_model_header
from .codes import ExitCode
from .headers import describe
from .inputs import NPZ_SUFFIX, Loaded, load_scan, load_scans
from .outputs import resolve_output, write_reconstruction
from .result import Outcome, table
from .settings import read_config
from .terminal import BarObserver, listening

if TYPE_CHECKING:
    from ..types import Reconstruction

logger = logging.getLogger(__name__)


def train(parsed: argparse.Namespace) -> Outcome:
    """Train one model on all scans; a signal ends the run with the best model so far."""
    config = read_config(parsed.settings, parsed.set, 'supervised' if parsed.supervised else 'pinn')
    engine = _engine()
    scans = load_scans(parsed.scans, parsed.read_as, parsed.nphotons)
    start = time.perf_counter()
    with listening('Training', quiet=parsed.quiet) as observer:
        model = engine.train(scans, config, parsed.output, observer)
    header = read_model_header(model)
    last = header.losses[-1] if header.losses else None
    document = {
        'model': model,
        'scans': header.scans,
        'epochs': len(header.losses),
        'training_loss': last and last.training,
        'validation_loss': last and last.validation,
        'seconds': round(time.perf_counter() - start, 3),
    }
    text = f'The model is {model}.'
    if observer.interruption:
        text = f'{observer.interruption} after {len(header.losses)} whole epochs: the best model so far is {model}.'
        if parsed.output.joinpath(engine.resume_file).is_file():
            text += ' The same command goes on from there.'
    return Outcome(document | _ending(observer), text, observer.code)


def reconstruct(parsed: argparse.Namespace) -> Outcome:
    """Reconstruct a scan with a model; a signal ends the run with the object so far."""
    config = read_config(parsed.settings, parsed.set)
    engine = _engine()
    model_file = parsed.model or _folder_of(parsed.scan) / MODEL_FILE
    model = engine.load_model(model_file)
    loaded, output = _load_and_resolve(parsed)
    start = time.perf_counter()
    with listening('Reconstructing', quiet=parsed.quiet) as observer:
        result = engine.reconstruct(loaded.scan, model, config, observer)
    seconds = time.perf_counter() - start
    return _hand_over(loaded, result, output, observer, {'model': model_file, 'seconds': round(seconds, 3)})


def refine(parsed: argparse.Namespace) -> Outcome:
    """Reconstruct a scan by refinement alone; a signal ends the run with the object so far."""
    config = read_config(parsed.settings, parsed.set)
    if config.refinement.refine_epochs == 0:
        raise ConfigurationError('refinement.refine_epochs = 0: refine does nothing but refine, ask for epochs.')
    engine = _engine()
    loaded, output = _load_and_resolve(parsed)
    start = time.perf_counter()
    with listening('Refining', quiet=parsed.quiet) as observer:
        result = engine.refine(loaded.scan, config, observer)
    return _hand_over(loaded, result, output, observer, {'seconds': round(time.perf_counter() - start, 3)})


def export(parsed: argparse.Namespace) -> Outcome:
    """Write a training file of a scan."""
    if parsed.output.suffix != NPZ_SUFFIX:
        raise ConfigurationError(f'-o {parsed.output}: export writes a training file, give a name that ends in .npz.')
    return _to_npz(load_scan(parsed.source, parsed.read_as, parsed.nphotons), parsed)


def convert(parsed: argparse.Namespace) -> Outcome:
    """Turn a training file into a workflow folder, or any scan into a training file."""
    given = BeamGeometry(
        photon_energy_ev=parsed.photon_energy_ev,
        detector_distance_m=parsed.detector_distance_m,
        detector_pixel_m=_pair('detector_pixel_m', parsed.detector_pixel_m),
        object_pixel_m=_pair('object_pixel_m', parsed.object_pixel_m),
    )
    loaded = load_scan(parsed.source, parsed.read_as, parsed.nphotons)
    loaded = dataclasses.replace(loaded, geometry=given.or_else(loaded.geometry))
    if parsed.output.suffix == NPZ_SUFFIX:
        return _to_npz(loaded, parsed)
    if parsed.output.is_file():
        raise ConfigurationError(f'-o {parsed.output} is a file: give a folder, or a name that ends in .npz.')
    geometry = complete_geometry(loaded.geometry, loaded.scan, nominal=parsed.nominal)
    write_workflow_folder(parsed.output, loaded.scan, geometry, name=parsed.source.stem)
    return _converted(loaded, parsed.output, geometry, 'workflow folder')


def info(parsed: argparse.Namespace) -> Outcome:
    """Print the header of a model, a scan or a product, without torch and without reading patterns."""
    document, text = describe(parsed.path)
    return Outcome(document, text)


def doctor(parsed: argparse.Namespace) -> Outcome:
    """Look at the installation."""
    from .. import doctor as examination

    checks = examination.collect()
    code = ExitCode.DONE if examination.is_healthy(checks) else ExitCode.FAILED
    return Outcome({'checks': [dataclasses.asdict(check) for check in checks]}, examination.report(checks), code)


def demo(parsed: argparse.Namespace) -> Outcome:
    """Run the demonstration."""
    from ..demo.demonstration import run_demo

    result = run_demo(parsed.output, parsed.scan)
    scores = '\n'.join(f'{name:<20}{value:>10.4f}' for name, value in result.scores.items())
    text = f'{scores}\nThe product is {result.product}, the picture {result.picture}.'
    return Outcome({'product': result.product, 'picture': result.picture, 'scores': result.scores}, text)


class _Engine:
    """The functions that need torch, imported together: a missing torch is one message."""

    def __init__(self) -> None:
        from ..engines.pipeline import reconstruct, refine
        from ..storage.model_file import load_model
        from ..training.resume import RESUME_FILE
        from ..training.run import train

        self.resume_file = RESUME_FILE
        self.load_model = load_model
        self.reconstruct = reconstruct
        self.refine = refine
        self.train = train


def _engine() -> _Engine:
    from ..dependencies import missing

    try:
        engine = _Engine()
    except ImportError as error:
        raise missing(error) from error
    # Lightning announces devices and products on its own logger, loud from its import on; what matters is in ours.
    logging.getLogger('lightning.pytorch').setLevel(logging.WARNING)
    return engine


def _load_and_resolve(parsed: argparse.Namespace) -> tuple[Loaded, Path]:
    """Read the scan, after the output is known to make sense for it."""
    has_product = parsed.scan.is_dir() or parsed.scan.suffix != NPZ_SUFFIX
    output = resolve_output(parsed.output, has_product=has_product)
    return load_scan(parsed.scan, parsed.read_as, parsed.nphotons), output


def _hand_over(
    loaded: Loaded, result: Reconstruction, output: Path, observer: BarObserver, document: dict[str, Any]
) -> Outcome:
    """Write what was reconstructed, with its judgement beside it."""
    write_reconstruction(output, loaded, result)
    pixel_m = loaded.geometry.object_pixel_m
    is_judged = write_judgement(output.parent, result, pixel_m)
    document = {
        'output': output,
        'coverage': float(result.coverage.mean()),
        'losses': [record.training for record in result.losses],
        'judgement_folder': output.parent / FOLDER if is_judged else None,
        'judgement': None if result.metrics is None else figures(result.metrics, pixel_m),
    } | document
    text = f'The reconstruction is {output}.'
    if observer.interruption:
        text = f'{observer.interruption}: the object so far is {output}.'
    if result.metrics is not None:
        text += f'\n{verdict(result.metrics)}'
    return Outcome(document | _ending(observer), text, observer.code)


def _ending(observer: BarObserver) -> dict[str, Any]:
    return {'interrupted_by': observer.interruption}


def _folder_of(scan: Path) -> Path:
    return scan if scan.is_dir() else scan.parent


def _to_npz(loaded: Loaded, parsed: argparse.Namespace) -> Outcome:
    if parsed.output.exists() and parsed.output.samefile(parsed.source):
        raise ConfigurationError(f'-o {parsed.output} is what is read: give another name.')
    write_npz(parsed.output, loaded.scan, loaded.geometry, quantity=parsed.dialect)
    return _converted(loaded, parsed.output, loaded.geometry, f'training file ({parsed.dialect})')


def _converted(loaded: Loaded, output: Path, geometry: BeamGeometry, kind: str) -> Outcome:
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
    return Outcome(document, table(rows))


def _pair(name: str, values: list[float] | None) -> tuple[float, float] | None:
    if values is None:
        return None
    if len(values) > 2:
        raise ConfigurationError(f'{name} = {values}: give one number, or height and width.')
    return values[0], values[-1]
