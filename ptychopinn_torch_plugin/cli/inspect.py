"""The command ``inspect``: which geometry and probe explain raw data."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE
from ..errors import ConfigurationError
from .commands import engine_imports, given_geometry
from .context import CommandContext
from .outputs import refuse_unwritable
from .result import CommandResult

if TYPE_CHECKING:
    from ..inspection.inspect import Inspection

logger = logging.getLogger(__name__)

SCAN_HELP = (
    f'a workflow folder ({DIFFRACTION_FILE} and {PRODUCT_FILE}), a training file (.npz), an archive (.npz) of patterns '
    '(n, H, W) and positions (n, 2), or a CXI file (.cxi)'
)


def add_inspect(actions: argparse._SubParsersAction[Any]) -> argparse.ArgumentParser:
    """Add the command to the parser and return its own parser, which still needs the options of the geometry."""
    action: argparse.ArgumentParser = actions.add_parser(
        'inspect', help='find orientation, defocus and faults of raw data, and propose'
    )
    action.add_argument('scan', type=Path, metavar='SCAN', help=SCAN_HELP)
    action.add_argument('--apply', action='store_true', help='write a new workflow folder with what is proposed')
    action.add_argument('-o', '--output', type=Path, help='workflow folder for --apply; what is read does not change')
    action.add_argument(
        '--accept',
        nargs='+',
        metavar='NAME',
        help='proposals to apply, by name (default: those that are not marked otherwise)',
    )
    action.add_argument(
        '--positions-unit',
        choices=('auto', 'm', 'px'),
        default='auto',
        help='unit of the positions in an archive; auto takes an extent below 1 cm as metres, and the log says so',
    )
    action.add_argument(
        '--faults',
        action='store_true',
        help='also search for the cause of a bad reconstruction with the probe and the positions of the file',
    )
    action.add_argument('--threads', type=int, default=0, help='threads on a CPU; 0 uses all cores (default)')
    action.set_defaults(run=inspect)
    return action


def inspect(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Inspect raw data, and write a workflow folder with the accepted proposals if asked for."""
    if parsed.apply and parsed.output is None:
        raise ConfigurationError('--apply writes a new workflow folder: name it with -o.')
    if not parsed.apply and (parsed.output is not None or parsed.accept):
        raise ConfigurationError('-o and --accept belong to --apply: without it, nothing is written.')
    if parsed.apply:
        refuse_unwritable(parsed.output / PRODUCT_FILE)
        if parsed.output.exists() and parsed.scan.exists() and parsed.output.samefile(parsed.scan):
            raise ConfigurationError(f'-o {parsed.output} is the scan to read: give another folder.')
    with engine_imports(context.signals):
        from ..engines.devices import select_device, use_threads
        from ..inspection.apply import usual, write_accepted
        from ..inspection.inspect import inspect as inspect_measurement
        from ..inspection.reading import read_measurement
    use_threads(parsed.threads)
    device = select_device('cpu')
    measurement = read_measurement(parsed.scan, given_geometry(parsed), parsed.positions_unit)
    inspection: Inspection = inspect_measurement(measurement, device, faults=parsed.faults)
    document, text = inspection.report.document(), inspection.report.text()
    if parsed.apply:
        accepted = tuple(parsed.accept) if parsed.accept else usual(inspection)
        context.written.watch(parsed.output / DIFFRACTION_FILE, parsed.output / PRODUCT_FILE)
        write_accepted(parsed.output, inspection, accepted, device)
        document |= {'output': parsed.output, 'applied': list(accepted)}
        text += f'\n\nApplied: {", ".join(accepted) or "nothing"}. The workflow folder is {parsed.output}.'
    return CommandResult(document, text)
