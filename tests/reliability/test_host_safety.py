"""The host: broken parts of this package cost its own algorithms, and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from tests.helpers.fault_report import FaultReport

ROOT = Path(__file__).parents[2]
OURS = 'ptychopinn (pytorch)'

RAISING_IMPORT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == 'NAME':
            raise ERROR
sys.meta_path.insert(0, Refuse())
"""
RENAMED_ARGUMENT = """
from ptychodus.model.processing import core
known = core.ProcessingCore.__init__
core.ProcessingCore.__init__ = lambda self, tasks, registry, products, engines: known(
    self, tasks, registry, products, engines
)
"""
RENAMED_CLASS = """
import ptychodus.model.processing.monitor as monitor, ptychodus.model.processing.api as api
monitor.LearnBackgroundTask = monitor.TrainBackgroundTask
del monitor.TrainBackgroundTask
"""


def import_fails(name: str, error: str) -> str:
    return RAISING_IMPORT.replace('NAME', name).replace('ERROR', error)


@dataclass(frozen=True)
class Case:
    """A way to break the package."""

    breakage: str = ''
    settings: str = ''
    hides_torch: bool = False
    words: tuple[str, ...] = ()
    """What the log says."""
    lists_ours: bool = False
    refine_code: str = 'FAILURE'
    """Whether our "Refine" works all the same."""


PACKAGE = 'ptychopinn_torch_plugin'
CASES = {
    'an import fails inside the plug-in': Case(
        import_fails(f'{PACKAGE}.host.library', 'ImportError("cannot import name x")'), words=('cannot import name x',)
    ),
    'a module of the plug-in raises': Case(
        import_fails(f'{PACKAGE}.config', 'RuntimeError("broken on purpose")'), words=('broken on purpose',)
    ),
    'the hooks cannot be imported': Case(
        import_fails(f'{PACKAGE}.host.hooks', 'SyntaxError("invalid syntax")'), words=('invalid syntax',)
    ),
    'an argument of the host is renamed': Case(
        RENAMED_ARGUMENT, words=('takes no argument "settings_registry"', 'Ptychodus is left alone')
    ),
    'a class of the host is renamed': Case(RENAMED_CLASS, words=('TrainBackgroundTask was not found',)),
    'torch is missing': Case(
        hides_torch=True, words=('torch is needed', 'pip install torch lightning'), lists_ours=True
    ),
    'the settings file has unknown keys': Case(
        settings='[PtychoPINNPyTorchTraining]\nno_such = 1\n[PtychoPINNPyTorchNothing]\nx = 1\n'
        '[PtychoPINNPyTorchRefinement]\nrefine_epochs = 2\n',
        words=('There is no setting "no_such"', 'There is no settings group [PtychoPINNPyTorchNothing]'),
        lists_ours=True,
        refine_code='USAGE',
    ),
    'the settings file is of another version': Case(
        settings='[PtychoPINNPyTorchTraining]\nepochs = many\n[PtychoPINNPyTorchRefinement]\nlikelihood = gaussian\n'
        '[PtychoPINNPyTorchModel]\nwidth = 1\n',
        words=('epochs = many', 'likelihood = gaussian', 'width = 1', 'Change these settings'),
        lists_ours=True,
    ),
}


def prepare(folder: Path, scan: Path, case: Case) -> dict[str, str]:
    """Lay a scan and the settings of ``case`` into ``folder``; return what the program needs to know."""
    folder.mkdir()
    for name in ('diffraction.h5', 'product.h5'):
        (folder / name).write_bytes((scan / name).read_bytes())
    if case.settings:
        (folder / 'settings.ini').write_text(case.settings)
    if case.hides_torch:
        (folder / 'hidden').mkdir()
        error = 'raise ModuleNotFoundError("No module named \'torch\'", name="torch")\n'
        (folder / 'hidden' / 'torch.py').write_text(error)
    path = str(folder / 'hidden') if case.hides_torch else ''
    return {'folder': str(folder), 'breakage': case.breakage, 'path': path}


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The host's life in every case: its folder holds ``answer.json`` and ``log.txt``."""
    if not hasattr(os, 'fork'):
        pytest.skip('the program forks the host')
    root = tmp_path_factory.mktemp('hosts')
    scan = root / 'scan'
    simulate_scan(scan, ScanPlan(rows=4, columns=4, step_px=4.0, pattern_shape=(32, 32), photons=1e5))
    found = {fault: root / str(number) for number, fault in enumerate(CASES)}
    cases = [prepare(folder, scan, CASES[fault]) for fault, folder in found.items()]
    done = subprocess.run(
        [sys.executable, '-m', 'tests.reliability.broken_host'],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        input=json.dumps(cases),
        stderr=subprocess.PIPE,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize('fault', CASES)
def test_the_host_starts_and_its_own_algorithms_work(
    fault: str, folders: dict[str, Path], fault_report: FaultReport
) -> None:
    case, folder = CASES[fault], folders[fault]
    log = (folder / 'log.txt').read_text()
    assert (folder / 'answer.json').is_file(), log
    found: dict[str, Any] = json.loads((folder / 'answer.json').read_text())
    assert len([key for key in found['keys'] if not key.startswith(OURS)]) > 5, 'the algorithms of the host'
    assert found['codes'].pop('other') == 'SUCCESS'
    assert list((folder / 'other').glob('product*.h5'))
    assert [word for word in case.words if word not in log] == []
    assert any(key.startswith(OURS) for key in found['keys']) == case.lists_ours
    expected = {'refine': case.refine_code} if case.lists_ours else {}
    assert found['codes'] == expected
    fault_report.record(fault, sentence_of(log), 'Ptychodus starts, and every other algorithm works', 0.0)


def sentence_of(log: str) -> str:
    """What the user reads of it: the last warning or error of this package, else of the host."""
    lines = [line for line in log.splitlines() if line.startswith(('WARNING', 'ERROR'))]
    ours = [line for line in lines if 'ptychopinn_torch_plugin' in line.split(':')[0] or 'entry_points:' in line]
    chosen = ours or [line for line in lines if 'PtychoPINN' in line] or ['nothing']
    return re.sub(r'^[A-Z]+ [\w.]+: ', '', chosen[-1])
