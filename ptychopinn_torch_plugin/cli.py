"""The ``ptychopinn-torch`` command: a door to the same engine that Ptychodus uses, and the doctor.

Exit codes: 0 done, 1 failed with a message, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import configparser
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from . import __version__
from .config import Config, parse_config
from .errors import InputError, PtychoPINNError
from .observer import SilentObserver
from .persistence import MODEL_FILE

if TYPE_CHECKING:
    from .data.scan import RawScan
    from .types import Reconstruction

SETTINGS_FILE = 'settings.ini'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(format='%(message)s', level=logging.WARNING, stream=sys.stderr)
    logging.getLogger(__package__).setLevel(logging.WARNING if parsed.quiet else logging.INFO)
    try:
        code: int = parsed.run(parsed)
    except PtychoPINNError as error:
        print(f'ptychopinn-torch: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='ptychopinn-torch', description=__doc__.splitlines()[0])
    parser.add_argument('--version', action='version', version=f'ptychopinn_torch_plugin {__version__}')
    parser.add_argument('-q', '--quiet', action='store_true', help='print warnings and errors only')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    doctor = commands.add_parser('doctor', help='check the installation and say what mends it')
    doctor.add_argument('--json', action='store_true', help='print the report as JSON')
    doctor.set_defaults(run=_doctor)

    demo = commands.add_parser(
        'demo', help='simulate a scan, train and reconstruct through Ptychodus, score the result'
    )
    demo.add_argument('-o', '--output', type=Path, default=Path('demo'), help='folder for the results (default: demo)')
    demo.add_argument('--scan', type=Path, help='a Ptychodus workflow folder to take instead of a simulated scan')
    demo.set_defaults(run=_demo)

    train = commands.add_parser('train', help='train a model on scans')
    train.add_argument('scans', nargs='+', type=Path, help='workflow folders or training NPZ files')
    train.add_argument('-o', '--output', type=Path, required=True, help='folder for the model and the training log')
    train.add_argument('--supervised', action='store_true', help="learn from the products' objects instead of patterns")
    _add_settings(train)
    train.set_defaults(run=_train)

    reconstruct = commands.add_parser('reconstruct', help='reconstruct a scan with a trained model')
    reconstruct.add_argument('scan', type=Path, help='workflow folder or training NPZ file')
    reconstruct.add_argument('-m', '--model', type=Path, help=f'model file (default: {MODEL_FILE} in the scan folder)')
    reconstruct.add_argument(
        '-o', '--output', type=Path, required=True, help='product.h5 (from a folder) or reconstruction.npz to write'
    )
    _add_settings(reconstruct)
    reconstruct.set_defaults(run=_reconstruct)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '-s', '--settings', type=Path, help='a Ptychodus settings file to read the PtychoPINNPyTorch groups of'
    )
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='SECTION.NAME=VALUE',
        help='one setting, for example training.epochs=5; may be repeated, and wins over the settings file',
    )


def _doctor(parsed: argparse.Namespace) -> int:
    from . import doctor

    return doctor.run(json=parsed.json)


def _demo(parsed: argparse.Namespace) -> int:
    from .demo.run import run_demo

    result = run_demo(parsed.output, parsed.scan)
    for name, value in result.scores.items():
        print(f'{name:<20}{value:>10.4f}')
    print(f'The product is {result.product}, the picture {result.picture}.')
    return 0


def _train(parsed: argparse.Namespace) -> int:
    config = _read_config(parsed, 'supervised' if parsed.supervised else 'pinn')
    scans = [_read_scan(path) for path in parsed.scans]
    train = _engine().train
    with _listening('Training', 'step') as observer:
        model = train(scans, config, parsed.output, observer)
    print(f'The model is {model}.')
    return 0


def _reconstruct(parsed: argparse.Namespace) -> int:
    model_file = parsed.model or parsed.scan / MODEL_FILE
    config = _read_config(parsed, 'pinn')
    scan = _read_scan(parsed.scan)
    engine = _engine()
    model = engine.load_model(model_file)
    with _listening('Reconstructing', 'step') as observer:
        reconstruction = engine.reconstruct(scan, model, config, observer)
    _write_reconstruction(parsed.scan, parsed.output, reconstruction)
    print(f'The reconstruction is {parsed.output}.')
    return 0


class _Engine:
    """The functions that need torch, imported together: a missing torch is one message."""

    def __init__(self) -> None:
        from .persistence import load_model
        from .reconstruction import reconstruct
        from .training.run import train

        self.load_model = load_model
        self.reconstruct = reconstruct
        self.train = train


def _engine() -> _Engine:
    from .errors import MissingDependencyError

    try:
        engine = _Engine()
    except ImportError as error:
        raise MissingDependencyError(
            f'{error.name or "A package"} cannot be imported ({error}): run "{sys.executable} -m pip install torch '
            'lightning", then "ptychopinn-torch doctor".'
        ) from error
    # Lightning announces devices and products on its own logger; what matters is in ours.
    logging.getLogger('lightning.pytorch').setLevel(logging.WARNING)
    return engine


def _read_config(parsed: argparse.Namespace, model_type: str) -> Config:
    from .host.settings import SECTIONS, group_name

    tree: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    if parsed.settings is not None:
        if not parsed.settings.is_file():
            raise InputError(f'There is no settings file {parsed.settings}.')
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(parsed.settings)
        for section in SECTIONS:
            if parser.has_section(group_name(section)):
                tree[section].update(parser[group_name(section)])
    for item in parsed.set:
        path, equals, value = item.partition('=')
        section, dot, name = path.partition('.')
        if not (equals and dot and section in SECTIONS):
            raise InputError(f'--set {item}: write SECTION.NAME=VALUE with SECTION one of {", ".join(SECTIONS)}.')
        tree[section][name] = value
    tree['model']['model_type'] = model_type
    return parse_config(tree)


def _read_scan(path: Path) -> RawScan:
    from .data.npz import read_training_npz
    from .data.workflow import read_workflow_folder

    if path.is_dir():
        return read_workflow_folder(path)
    if path.suffix == '.npz':
        return read_training_npz(path)
    raise InputError(f'{path} is neither a Ptychodus workflow folder nor a training NPZ file.')


def _write_reconstruction(scan: Path, output: Path, reconstruction: Reconstruction) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    if scan.is_dir():
        from ptychodus.api.io import save_product

        from .data.product import product_from_reconstruction
        from .data.workflow import load_workflow_folder

        save_product(output, product_from_reconstruction(load_workflow_folder(scan), reconstruction))
        return
    import numpy as np

    np.savez(
        output,
        object=reconstruction.object_array,
        probe=reconstruction.probe,
        coverage=reconstruction.coverage,
        losses=np.array([record.training for record in reconstruction.losses]),
    )


class _BarObserver(SilentObserver):
    """Shows progress and the latest losses on a bar, and stops when told."""

    def __init__(self, bar: Any) -> None:  # noqa: ANN401 - tqdm has no types
        self._bar = bar
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def on_progress(self, done: int, goal: int) -> None:
        self._bar.total = goal
        self._bar.update(done - self._bar.n)

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        self._bar.set_postfix(epoch=epoch, loss=f'{training:.4f}')

    def should_stop(self) -> bool:
        return self._stopped


@contextmanager
def _listening(title: str, unit: str) -> Iterator[_BarObserver]:
    """An observer for the terminal; SIGINT and SIGTERM end the run after the current batch, with what it has."""
    with tqdm(desc=title, unit=unit, total=1, file=sys.stderr) as bar:
        observer = _BarObserver(bar)

        def stop(_number: int, _frame: FrameType | None) -> None:
            observer.stop()

        before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {
            number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield observer
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


if __name__ == '__main__':
    sys.exit(main())
