"""``ptychopinn-torch doctor``: check the installation as Ptychodus uses it, and name the command that repairs it.

torch and Ptychodus are started in processes of their own, so that a broken library is a line of the report and does
not end it.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from typing import Final

from packaging.requirements import Requirement

from .host.contract import ENTRY_POINT_GROUP

PACKAGE: Final = 'ptychopinn_torch_plugin'
PLUGIN_MODULE: Final = 'ptychodus.plugins.reconstructor_entry_points'
ALGORITHM_KEYS: Final = (
    'ptychopinn (pytorch)_pinn',
    'ptychopinn (pytorch)_supervised',
    'ptychopinn (pytorch)_refine',
)

_TIMEOUT_S: Final = 180.0
_INSTALL: Final = f'{sys.executable} -m pip install'
_REINSTALL: Final = f'{_INSTALL} --force-reinstall --no-deps {PACKAGE}'

_HOST_PROGRAM: Final = """
import json, sys
from ptychodus.model import ModelCore
keys = list(ModelCore().processing_core.algorithm_parameter.available_reconstructors())
loaded = [name for name in ('torch', 'lightning', 'PyQt5') if name in sys.modules]
print(json.dumps({'keys': keys, 'loaded': loaded}))
"""

_TORCH_PROGRAM: Final = """
import json, torch, lightning
gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
mps = torch.backends.mps.is_available()
print(json.dumps({'torch': torch.__version__, 'gpus': gpus, 'mps': mps, 'threads': torch.get_num_threads()}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str
    remedy: str = ''
    """The command that repairs it; empty where nothing is wrong."""

    required: bool = True
    """False where the package works without it."""


class ProbeError(Exception):
    """A program in a process of its own failed; the message is the last line that it printed."""


def collect() -> list[Check]:
    """Run every check, the quick ones first; a failure is a line of the report, not an exception."""
    return [
        _check_python(),
        *(_check_package(requirement) for requirement in _requirements().values()),
        _check_plugin_file(),
        _check_entry_point(),
        *_check_torch(),
        _check_host(),
        _check_gui(),
    ]


def is_healthy(checks: Iterable[Check]) -> bool:
    """Return whether everything that is required is there."""
    return all(check.ok for check in checks if check.required)


def report(checks: Iterable[Check]) -> str:
    """Return the checks as text: one line each, below a failed one the command that repairs it, and a summary."""
    checks = list(checks)
    width = max((len(check.name) for check in checks), default=0)
    lines = []

    for check in checks:
        mark = 'ok  ' if check.ok else 'FAIL' if check.required else 'none'
        lines.append(f'[{mark}] {check.name:<{width}}  {check.detail}')

        if not check.ok and check.remedy:
            lines.append(f'       {"":<{width}}  -> {check.remedy}')

    summary = 'Everything is in place.' if is_healthy(checks) else 'Something is missing: see the lines marked FAIL.'
    return '\n'.join([*lines, summary])


def _check_python() -> Check:
    found = f'{platform.python_version()} ({sys.executable})'
    return Check(
        'python', sys.version_info >= (3, 11), found, 'install Python 3.11 or newer and start again from there'
    )


def _requirements() -> dict[str, Requirement]:
    """Return what this package declares that it needs in every case, by name."""
    try:
        declared = [Requirement(text) for text in requires(PACKAGE) or ()]
    except PackageNotFoundError:  # a copy on the path of Python that was never installed: reported as such below
        declared = []
    return {item.name: item for item in declared if item.marker is None or item.marker.evaluate({'extra': ''})}


def _quoted(name: str) -> str:
    """Return a required package with its versions, as a word of the shell."""
    return f'"{_requirements().get(name, name)}"'


def _check_package(requirement: Requirement) -> Check:
    name, remedy = requirement.name, f'{_INSTALL} "{requirement}"'
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, False, 'not installed', remedy)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(name, False, f'{found}, but {requirement} is needed', remedy)
    return Check(name, True, found)


def _check_plugin_file() -> Check:
    name = 'plug-in file'

    try:
        spec = find_spec(PLUGIN_MODULE)
    except ImportError as error:
        return Check(name, False, f'{PLUGIN_MODULE}: {error}', f'{_INSTALL} {_quoted("ptychodus")}')

    if spec is None:
        return Check(name, False, f'{PLUGIN_MODULE} is not installed', _REINSTALL)

    return Check(name, True, str(spec.origin))


def _check_entry_point() -> Check:
    found = [item for item in entry_points(group=ENTRY_POINT_GROUP) if item.value.startswith(f'{PACKAGE}.')]

    if not found:
        return Check('entry point', False, f'this package has none in the group {ENTRY_POINT_GROUP}', _REINSTALL)

    return Check('entry point', True, f'{found[0].name} = {found[0].value}')


def _check_torch() -> list[Check]:
    try:
        found, _ = _probe(_TORCH_PROGRAM)
    except ProbeError as error:
        packages = f'{_quoted("torch")} {_quoted("lightning")}'
        return [Check('torch works', False, str(error), f'{_INSTALL} --force-reinstall {packages}')]

    gpus = found['gpus']
    devices = [f'{len(gpus)} GPU: {", ".join(gpus)}'] if isinstance(gpus, list) and gpus else []
    devices += ['mps'] if found['mps'] else []
    devices.append(f'cpu ({found["threads"]} threads)')
    return [Check('torch works', True, str(found['torch'])), Check('devices', True, '; '.join(devices))]


def _check_host() -> Check:
    name = 'algorithms'

    try:
        found, log = _probe(_HOST_PROGRAM)
    except ProbeError as error:
        remedy = f'{_INSTALL} --force-reinstall {_quoted("ptychodus")}'
        return Check(name, False, f'Ptychodus does not start: {error}', remedy)

    keys = found['keys'] if isinstance(found['keys'], list) else []
    missing = [key for key in ALGORITHM_KEYS if key not in keys]

    if missing:
        detail = f'Ptychodus does not list {", ".join(missing)}; its log: {log or "empty"}'
        return Check(name, False, detail, _REINSTALL)

    if found['loaded']:
        return Check(name, False, f'the Ptychodus process loads {found["loaded"]} at start', _REINSTALL)

    return Check(name, True, ', '.join(ALGORITHM_KEYS))


def _check_gui() -> Check:
    if find_spec('PyQt5') is None:
        remedy = f'{_INSTALL} "ptychodus[gui]"'
        return Check('window', False, 'PyQt5 is not installed; batch mode does not need it', remedy, required=False)

    return Check('window', True, f'PyQt5 {version("PyQt5")}', required=False)


def _probe(program: str) -> tuple[dict[str, object], str]:
    """Run a Python program that prints one JSON object as its last line; return it, and all else that was printed.

    Raises:
        ProbeError: it failed, took too long or printed something else.
    """
    command = [sys.executable, '-c', program]

    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter with a program written above
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f'no result within {_TIMEOUT_S:.0f} s') from error

    errors = done.stderr.strip()

    if done.returncode != 0:
        raise ProbeError(errors.splitlines()[-1] if errors else f'exit code {done.returncode}')

    *log, last = done.stdout.strip().splitlines() or ['']

    try:
        found = json.loads(last)
    except ValueError as error:
        raise ProbeError(f'unexpected output {last!r}') from error

    if not isinstance(found, dict):
        raise ProbeError(f'unexpected output {last!r}')

    return found, ' '.join([*log, errors]).strip()
