"""Commands and options of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final, get_args

from .. import __version__
from ..data.diffraction_quantity import DiffractionQuantity
from ..storage.model_file import MODEL_FILE
from . import batch, commands
from .codes import MEANINGS
from .inputs import HELP
from .inspect import add_inspect
from .names import PROGRAM, suggestion
from .results import add_result_commands
from .settings import add_settings

EXAMPLES: Final = {
    'train': ('train scan -o trained', 'train monday tuesday/scan7 more.npz -o trained --set data.hold_out_scan=true'),
    'reconstruct': (
        'reconstruct scan -m trained/model.safetensors -o result',
        'reconstruct scan -m model.safetensors --set refinement.refine_epochs=0 -o network_alone.h5',
    ),
    'refine': (
        'refine scan -o refined',
        'refine scan -s settings.ini --set refinement.refine_epochs=200 --set inference.half_scans=true -o refined',
    ),
    'batch': ('batch day -o results', 'batch day -m trained/model.safetensors -o results --shard 3/16'),
    'export': (
        'export scan -o scan.npz',
        'export scan -o for_ptychopinn.npz --dialect amplitude',
        'export result -o star.tiff',
        'export result/product.h5 -o star.png',
    ),
    'convert': (
        'convert theirs.npz -o folder --photon-energy-ev 8800 --detector-distance-m 1.92 --detector-pixel-m 75e-6',
        'convert folder -o back.npz',
    ),
    'info': (
        'info trained/model.safetensors --probe probe.png',
        'info scan --json',
        'info models',
    ),
    'inspect': ('inspect scan', 'inspect raw.cxi --apply -o corrected'),
    'doctor': ('doctor',),
    'demo': ('demo -o demo',),
    'compare': ('compare result1 result2 -o comparison.html', 'compare results/*/report.html'),
    'settings': ('settings', 'settings refinement', 'settings training.epochs --json'),
    'bundle': ('bundle result -o support.zip',),
    'completion': ('completion bash >> ~/.bashrc',),
}
"""Examples of every command, without the program's name."""


class Parser(argparse.ArgumentParser):
    """A parser whose messages name what was probably meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 - argparse's types
        """Parse ``args``; an option that is not known is refused with the most similar one.

        Raises:
            SystemExit: the words do not parse (code 2), or help or version were asked for (code 0).
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._of_command(parsed)
            known = [name for action in parser._actions for name in action.option_strings]
            options = [word.partition('=')[0] for word in unknown if word.startswith('-')]
            meant = [suggestion(option, known) for option in options]
            parser.error(f'unrecognized arguments: {" ".join(unknown)}.{next(filter(None, meant), "")}')
        return parsed

    def _of_command(self, parsed: argparse.Namespace) -> argparse.ArgumentParser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parser: argparse.ArgumentParser = action.choices[parsed.command]
                return parser
        return self

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401 - argparse's type
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f'there is no "{value}".{suggestion(str(value), choices)} Choose from {", ".join(choices)}.'
            )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; ``run`` of what it parses is the function of the command."""
    codes = '\n'.join(f'  {int(code):>3}  {meaning}' for code, meaning in MEANINGS.items())
    parser = Parser(
        prog=PROGRAM,
        description='PtychoPINN (PyTorch) without a window: the same training and reconstruction as in Ptychodus.',
        epilog=f'exit codes:\n{codes}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'ptychopinn_torch_plugin {__version__}')
    parser.add_argument('-q', '--quiet', action='store_true', help='print warnings and errors only')
    actions = parser.add_subparsers(required=True, metavar='COMMAND', dest='command')
    _add_engine(actions)
    _add_batch(actions)
    _add_files(actions)
    _add_checks(actions)
    add_result_commands(actions)
    for name, action in actions.choices.items():
        action.formatter_class = argparse.RawDescriptionHelpFormatter
        action.epilog = 'examples:\n' + '\n'.join(f'  {PROGRAM} {example}' for example in EXAMPLES[name])
        action.add_argument('--json', action='store_true', help='print exactly one JSON document on stdout')
    return parser


def _add_engine(actions: argparse._SubParsersAction[Any]) -> None:
    train = actions.add_parser('train', help='train a model on one scan or several')
    train.add_argument('scans', nargs='+', type=Path, metavar='SCAN', help=f'{HELP}; or a folder of several of them')
    train.add_argument('-o', '--output', type=Path, required=True, help='folder for the model and the training log')
    train.add_argument('--supervised', action='store_true', help="learn from the products' objects, not the patterns")
    reconstruct = actions.add_parser('reconstruct', help='reconstruct a scan with a trained model, then refine it')
    reconstruct.add_argument('-m', '--model', type=Path, help=f'model file (default: {MODEL_FILE} beside the scan)')
    refine = actions.add_parser('refine', help='reconstruct a scan by refinement alone, without a model')
    for action in (reconstruct, refine):
        action.add_argument('scan', type=Path, metavar='SCAN', help=HELP)
        action.add_argument(
            '-o', '--output', type=Path, required=True, help='product (.h5), arrays (.npz), or a folder for either'
        )
    for action, run in ((train, commands.train), (reconstruct, commands.reconstruct), (refine, commands.refine)):
        add_settings(action)
        _add_read_as(action)
        action.set_defaults(run=run)


def _add_batch(actions: argparse._SubParsersAction[Any]) -> None:
    action = actions.add_parser('batch', help='reconstruct many scans; started again, it skips those that are done')
    action.add_argument('scans', nargs='+', type=Path, metavar='SCAN', help=f'{HELP}; or a folder of several of them')
    action.add_argument(
        '-m', '--model', type=Path, help='model file; without it, every scan is refined without a network'
    )
    action.add_argument(
        '-o', '--output', type=Path, required=True, help='folder; the results of each scan are in a folder of its name'
    )
    action.add_argument(
        '--shard',
        type=batch.read_shard,
        default=batch.Shard(),
        metavar='I/N',
        help='only every N-th scan from the I-th on, I from 1 to N: for the tasks of a job array',
    )
    action.add_argument('--again', action='store_true', help='also reconstruct the scans that are done')
    add_settings(action)
    _add_read_as(action)
    action.set_defaults(run=batch.batch)


def _add_files(actions: argparse._SubParsersAction[Any]) -> None:
    export = actions.add_parser('export', help='write a training file (.npz) of a scan, or pictures of a result')
    export.add_argument(
        'source', type=Path, metavar='SCAN', help=f'{HELP}; for pictures a result: product, arrays, or their folder'
    )
    export.add_argument(
        '-o',
        '--output',
        type=Path,
        required=True,
        help='training file (.npz) to write; or NAME.tiff (values as float32, for ImageJ) or NAME.png for pictures of '
        'object and probe: NAME-amplitude.tiff and so on',
    )
    convert = actions.add_parser('convert', help='convert a training file into a workflow folder, or back')
    convert.add_argument('source', type=Path, metavar='SCAN', help=HELP)
    convert.add_argument(
        '-o', '--output', type=Path, required=True, help='training file (.npz) or workflow folder (any other) to write'
    )
    _add_geometry(convert, 'geometry that a training file may lack (for a workflow folder)')
    convert.add_argument(
        '--nominal',
        action='store_true',
        help='use placeholders for what is not known (10 keV, 1 m, pixels of 1 mm); lengths are then meaningless',
    )
    for action, run in ((export, commands.export), (convert, commands.convert)):
        _add_read_as(action)
        action.add_argument(
            '--dialect',
            choices=('counts', 'amplitude'),
            default='counts',
            help="values of diff3d in the training file: photon counts, or their square roots as in PtychoPINN's own "
            'files (default: counts)',
        )
        action.set_defaults(run=run)
    info = actions.add_parser('info', help='print the header of a model, a scan or a product')
    info.add_argument('path', type=Path, help=f'model file, {HELP}, or a folder of several of them')
    info.add_argument(
        '--probe', type=Path, metavar='FILE.png', help='also draw the probe of a model or a product into this file'
    )
    info.set_defaults(run=commands.info)


def _add_geometry(action: argparse.ArgumentParser, title: str) -> None:
    group = action.add_argument_group(title)
    group.add_argument('--photon-energy-ev', type=float, metavar='EV', help='photon energy in electronvolts')
    group.add_argument('--detector-distance-m', type=float, metavar='M', help='sample to detector, in metres')
    for name, what in (('detector', 'a detector pixel (after binning)'), ('object', 'an object pixel')):
        group.add_argument(
            f'--{name}-pixel-m',
            type=float,
            nargs='+',
            metavar='M',
            help=f'side of {what} in metres, or height and width',
        )


def _add_checks(actions: argparse._SubParsersAction[Any]) -> None:
    _add_geometry(add_inspect(actions), 'geometry that the file lacks')
    doctor = actions.add_parser('doctor', help='check the installation and name the command that repairs it')
    doctor.set_defaults(run=commands.doctor)
    demo = actions.add_parser('demo', help='simulate a scan, train and reconstruct through Ptychodus, score the result')
    demo.add_argument('-o', '--output', type=Path, default=Path('demo'), help='folder for the results (default: demo)')
    demo.add_argument('--scan', type=Path, help='a Ptychodus workflow folder to use instead of a simulated scan')
    demo.set_defaults(run=commands.demo)


def _add_read_as(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--read-as',
        choices=get_args(DiffractionQuantity),
        default='auto',
        help='values of diff3d in a training file; auto applies a rule that the log names (default: auto)',
    )
    parser.add_argument(
        '--nphotons', type=float, metavar='N', help='mean photons per pattern, where diff3d holds normalised amplitudes'
    )
