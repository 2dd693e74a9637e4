"""What is built and installed is what Ptychodus finds, and importing it stays cheap."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import ptychopinn_torch_plugin

ROOT = Path(__file__).parents[1]
SEAM_SOURCE = ROOT / 'ptychodus_plugins' / 'reconstructor_entry_points.py'
SEAM_TARGET = 'ptychodus/plugins/reconstructor_entry_points.py'


@pytest.fixture(scope='module')
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())


def build_wheel(folder: Path) -> Path:
    """Build the wheel into ``folder``, with a fixed time in the archive."""
    variables = os.environ | {'SOURCE_DATE_EPOCH': '1700000000'}
    command = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp('wheel')))


def test_wheel_holds_the_package_and_the_seam_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    roots = {name.split('/')[0] for name in names}
    assert roots == {'ptychopinn_torch_plugin', 'ptychodus', f'ptychopinn_torch_plugin-{version_here()}.dist-info'}
    assert [name for name in names if name.startswith('ptychodus/')] == [SEAM_TARGET]
    assert wheel.read(SEAM_TARGET) == SEAM_SOURCE.read_bytes()
    assert 'ptychopinn_torch_plugin/py.typed' in names


def test_wheel_holds_every_module(wheel: zipfile.ZipFile) -> None:
    package = ROOT / 'ptychopinn_torch_plugin'
    expected = {path.relative_to(ROOT).as_posix() for path in package.rglob('*.py')}
    assert expected <= set(wheel.namelist())


def test_wheel_names_its_entry_points_and_licence(wheel: zipfile.ZipFile) -> None:
    info = f'ptychopinn_torch_plugin-{version_here()}.dist-info'
    text = wheel.read(f'{info}/entry_points.txt').decode()
    assert '[ptychodus.reconstructors]\nptychopinn-pytorch = ptychopinn_torch_plugin.host.entry_point:plugin' in text
    assert 'ptychopinn-torch = ptychopinn_torch_plugin.cli:main' in text
    assert b'BSD 3-Clause' in wheel.read(f'{info}/licenses/LICENSE')


def test_the_same_sources_give_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    assert Path(str(wheel.filename)).read_bytes() == build_wheel(tmp_path).read_bytes()


def test_the_conda_recipe_requires_what_the_package_requires(project: dict[str, Any]) -> None:
    recipe = (ROOT / 'packaging' / 'conda' / 'meta.yaml').read_text()
    renamed = {'torch': 'pytorch', 'matplotlib': 'matplotlib-base'}
    for requirement in project['project']['dependencies']:
        name, bounds = re.fullmatch(r'([a-z0-9-]+)(.*)', requirement).groups()  # type: ignore[union-attr]
        assert f'    - {renamed.get(name, name)} {bounds}\n' in recipe


def version_here() -> str:
    return ptychopinn_torch_plugin.__version__


def test_one_version_everywhere() -> None:
    assert version('ptychopinn_torch_plugin') == version_here()
    assert '\nversion:' not in (ROOT / 'CITATION.cff').read_text(), 'the version is in __init__.py only'
    newest = re.findall(r'^## (\d\S*)(.*)$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)[0]
    assert newest[0] == version_here()
    assert re.fullmatch(r' - \d{4}-\d{2}-\d{2}', newest[1]), 'the day of the release stands beside it'
    assert f'## To {version_here()}' in (ROOT / 'docs' / 'upgrading.md').read_text()


def test_dependencies_are_ranges_and_pins_are_constraints(project: dict[str, Any]) -> None:
    extras = project['project']['optional-dependencies'].values()

    for requirement in [*project['project']['dependencies'], *(item for extra in extras for item in extra)]:
        assert re.fullmatch(r'[A-Za-z0-9-]+(\[[a-z]+\])?>=[0-9.]+(,<[0-9.]+)?', requirement), requirement

    # Older ones run code from a file that is loaded with weights_only=True (CVE-2025-32434, CVE-2026-24747).
    assert 'torch>=2.10' in project['project']['dependencies']
    assert re.search(r'^torch==', (ROOT / 'constraints.txt').read_text(), re.MULTILINE)


def test_installed_package_is_found_by_the_host() -> None:
    spec = find_spec('ptychodus.plugins.reconstructor_entry_points')
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).read_bytes() == SEAM_SOURCE.read_bytes(), 'reinstall: the installed seam is an old one'
    (entry,) = entry_points(group='ptychodus.reconstructors', name='ptychopinn-pytorch')
    assert entry.load().create_library is not None


@pytest.mark.parametrize(
    'module',
    [
        'ptychopinn_torch_plugin',
        'ptychopinn_torch_plugin.config',
        'ptychopinn_torch_plugin.doctor',
        'ptychopinn_torch_plugin.storage.model_file',
        'ptychopinn_torch_plugin.data.io.npz',
        'ptychopinn_torch_plugin.data.io.product',
        'ptychopinn_torch_plugin.data.io.workflow_folder',
        'ptychopinn_torch_plugin.host.library',
        'ptychopinn_torch_plugin.host.entry_point',
        'ptychopinn_torch_plugin.host.hooks',
        'ptychopinn_torch_plugin.worker.child',
        'ptychopinn_torch_plugin.worker.parent',
    ],
)
def test_module_of_the_host_process_imports_without_torch_and_qt(module: str) -> None:
    program = (
        'import importlib, json, sys\n'
        'for name in ("torch", "lightning", "pytorch_lightning", "PyQt5"):\n'
        '    sys.modules[name] = None\n'
        f'importlib.import_module({module!r})\n'
        'print(json.dumps("ok"))'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == 'ok'


POSIX_ONLY = [
    *('O_DIRECTORY', 'O_NOFOLLOW', 'fchmod', 'fork', 'geteuid', 'getuid', 'killpg', 'mkfifo', 'sched_getaffinity'),
    *('setpgid', 'setsid', 'statvfs', 'sysconf', 'uname'),
]
POSIX_SIGNALS = ['SIGHUP', 'SIGKILL', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU', 'pthread_sigmask', 'setitimer']
POSIX_MODULES = ['fcntl', 'grp', 'pwd', 'resource', 'termios']


def test_every_module_can_be_imported_without_what_only_posix_has() -> None:
    program = f"""
import importlib, os, pkgutil, signal, sys
import h5py, numpy, psutil, filelock, pydantic, scipy.ndimage, yaml, torch, lightning, matplotlib.figure, tqdm
import ptychodus.api.io
import ptychopinn_torch_plugin as package
for name in {POSIX_ONLY}:
    if hasattr(os, name):
        delattr(os, name)
for name in {POSIX_SIGNALS}:
    if hasattr(signal, name):
        delattr(signal, name)
for name in {POSIX_MODULES}:
    sys.modules[name] = None
for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
    if not module.name.endswith(('__main__', 'host.panel')):
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
