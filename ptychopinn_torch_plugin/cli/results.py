"""Commands on results and settings: ``compare``, ``settings``, ``bundle`` and ``completion``."""

from __future__ import annotations

import argparse
import json
import platform
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ..config import Config
from ..errors import ConfigurationError, InputError, ModelFileError
from ..report import REPORT_FILE, read_report, write_comparison
from ..report.compare import distinct_names
from ..storage.atomic import open_atomically
from ..storage.json_values import plain
from ..storage.model_file import MODEL_SUFFIX, package_versions, read_model_header
from .context import CommandContext
from .names import PROGRAM, suggestion
from .outputs import refuse_unwritable
from .result import CommandResult

TEXT_SUFFIXES: Final = ('.json', '.html', '.csv', '.ini', '.txt', '.log', '.yaml', '.png')
"""Files that a bundle takes: settings, logs, numbers, reports and their pictures."""
DATA_SUFFIXES: Final = ('.h5', '.hdf5', '.npz', MODEL_SUFFIX)
"""Files that a bundle takes with ``--with-data`` only: patterns, products, arrays and models."""
MAX_FILE_BYTES: Final = 2**27
"""Largest file that a bundle takes without ``--with-data``."""
SHELLS: Final = ('bash', 'zsh', 'fish')


def add_result_commands(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the commands to the parser."""
    action = actions.add_parser('compare', help='make one page that compares the reports of several results')
    action.add_argument(
        'results', nargs='+', type=Path, metavar='RESULT', help=f'folder of a result, or its {REPORT_FILE}'
    )
    action.add_argument(
        '-o', '--output', type=Path, default=Path('comparison.html'), help='page to write (default: comparison.html)'
    )
    action.set_defaults(run=compare)
    action = actions.add_parser('settings', help='list all settings with default, unit and help')
    action.add_argument('name', nargs='?', help='a section, or one setting, for example refinement or training.epochs')
    action.set_defaults(run=settings)
    action = actions.add_parser(
        'bundle', help='make a zip file for a support request: settings, logs, versions, report'
    )
    action.add_argument('result', type=Path, metavar='FOLDER', help='folder of a result or a training')
    action.add_argument(
        '-o', '--output', type=Path, default=Path('support.zip'), help='file to write (default: support.zip)'
    )
    action.add_argument('--with-data', action='store_true', help='also pack patterns, products, arrays and models')
    action.set_defaults(run=bundle)
    action = actions.add_parser('completion', help='print the code that completes commands and options in a shell')
    action.add_argument('shell', choices=SHELLS)
    action.set_defaults(run=completion)


def compare(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Write one page that compares several results."""
    if len(parsed.results) < 2:
        raise ConfigurationError('compare needs at least two results.')
    refuse_unwritable(parsed.output)
    reports = [read_report(path) for path in parsed.results]
    context.written.watch(parsed.output)
    write_comparison(parsed.output, reports)
    names = distinct_names(reports)
    lines = [
        f'{name}: {"no metrics" if report.facts["metrics"] is None else report.facts["metrics"]["verdict"]}'
        for name, report in zip(names, reports, strict=True)
    ]
    document = {'output': parsed.output, 'results': [report.facts | {'report': report.path} for report in reports]}
    return CommandResult(document, '\n'.join([*lines, f'The comparison is {parsed.output}.']))


def settings(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """List settings with their defaults, units and help."""
    found = [item for item in _all_settings() if parsed.name in (None, item['name'], item['section'])]
    if not found:
        known = [*Config.model_fields, *(item['name'] for item in _all_settings())]
        raise ConfigurationError(f'There is no setting or section "{parsed.name}".{suggestion(parsed.name, known)}')
    lines = []
    for item in found:
        unit = f' {item["unit"]}' if item['unit'] else ''
        choices = f' (one of {", ".join(item["choices"])})' if item['choices'] else ''
        lines += [f'{item["name"]} = {item["default"]}{unit}{choices}', f'    {item["label"]}: {item["help"]}']
    return CommandResult({'settings': found}, '\n'.join(lines))


def _all_settings() -> list[dict[str, Any]]:
    from ..host.settings import SECTIONS, iter_setting_fields

    return [
        {
            'name': f'{section}.{field.name}',
            'section': section,
            'label': field.label,
            'type': field.kind.__name__,
            'default': field.default,
            'unit': field.unit,
            'minimum': field.minimum,
            'maximum': field.maximum,
            'choices': list(field.choices),
            'help': field.tip,
        }
        for section in SECTIONS
        for field in iter_setting_fields(section)
    ]


def bundle(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Write a zip file with what a support request needs; measured data only if asked for."""
    if not parsed.result.is_dir():
        raise InputError(f'{parsed.result} is not a folder: give the folder of a result or a training.')
    refuse_unwritable(parsed.output)
    packed = sorted(_packed(parsed.result, parsed.output, with_data=parsed.with_data))
    if not packed:
        raise InputError(f'{parsed.result} holds nothing to pack: no settings, logs, reports or metrics.')
    context.written.watch(parsed.output)
    size = sum(file.stat().st_size for file in packed)
    names = [file.relative_to(parsed.result).as_posix() for file in packed]
    with (
        open_atomically(parsed.output, size) as stream,
        zipfile.ZipFile(stream, 'w', compression=zipfile.ZIP_DEFLATED) as archive,
    ):
        for file, name in zip(packed, names, strict=True):
            archive.write(file, name)
        archive.writestr('environment.json', json.dumps(plain(_environment()), indent=2))
        for file in sorted(parsed.result.rglob(f'*{MODEL_SUFFIX}')):
            archive.writestr(f'{file.relative_to(parsed.result).as_posix()}.header.json', _model_header(file))
    document = {'output': parsed.output, 'files': names, 'with_data': parsed.with_data}
    text = (
        f'The bundle is {parsed.output}: {len(names)} files of {parsed.result}, versions and the state of the '
        'installation. It holds names of folders and of this computer; look through it before you send it.'
    )
    return CommandResult(document, text)


def _packed(folder: Path, output: Path, *, with_data: bool) -> Iterator[Path]:
    """Yield the files of a folder that go into a bundle; links are left out, and the bundle itself."""
    for file in folder.rglob('*'):
        if file.is_symlink() or not file.is_file() or (output.exists() and file.samefile(output)):
            continue
        if file.suffix in DATA_SUFFIXES:
            if with_data:
                yield file
        elif file.suffix in TEXT_SUFFIXES and (with_data or file.stat().st_size <= MAX_FILE_BYTES):
            yield file


def _model_header(file: Path) -> str:
    """Return the header of a model file as JSON: settings, history and versions, without the weights."""
    try:
        return read_model_header(file).model_dump_json(indent=2)
    except ModelFileError as error:
        return json.dumps({'error': str(error)})


def _environment() -> dict[str, Any]:
    from .. import doctor

    return {
        'made': datetime.now(UTC).isoformat(timespec='seconds'),
        'versions': package_versions() | {'python': platform.python_version()},
        'system': platform.platform(),
        'checks': [asdict(check) for check in doctor.collect()],
    }


def completion(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Print shell code that completes commands, options and names of settings."""
    from argcomplete.shell_integration import shellcode

    code = shellcode([PROGRAM], shell=parsed.shell).strip()
    return CommandResult({'shell': parsed.shell, 'code': code}, code)
