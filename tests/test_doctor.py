"""The doctor reports what is installed, and names the command for what is not."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from packaging.requirements import Requirement

from ptychopinn_torch_plugin import doctor
from ptychopinn_torch_plugin.doctor import Check


@pytest.fixture(scope='module')
def checks() -> dict[str, Check]:
    return {check.name: check for check in doctor.collect()}


def test_this_environment_is_healthy(checks: dict[str, Check]) -> None:
    assert doctor.is_healthy(checks.values()), doctor.report(checks.values())
    assert {'python', 'ptychodus', 'torch', 'lightning', 'numpy', 'scipy', 'window'} <= set(checks)
    assert checks['plug-in file'].detail.endswith('reconstructor_entry_points.py')
    assert checks['entry point'].detail == 'ptychopinn-pytorch = ptychopinn_torch_plugin.host.entry_point:plugin'
    assert checks['algorithms'].detail == ', '.join(doctor.ALGORITHM_KEYS)
    assert 'cpu' in checks['devices'].detail


GOOD = Check('numpy', True, '2.0')
BAD = Check('torch', False, 'not installed', 'pip install torch')
OPTIONAL = Check('window', False, 'no PyQt5', 'pip install "ptychodus[gui]"', required=False)


@pytest.mark.parametrize(('found', 'healthy'), [((GOOD,), True), ((GOOD, OPTIONAL), True), ((GOOD, BAD), False)])
def test_text_and_verdict(found: tuple[Check, ...], healthy: bool) -> None:
    assert doctor.is_healthy(found) is healthy
    text = doctor.report(found)

    for check in found:
        assert check.detail in text
        assert check.remedy in text

    assert ('[FAIL] torch' in text) is (BAD in found)
    assert ('Everything is in place.' in text) is healthy


def test_missing_package_names_its_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, 'version', missing)
    check = doctor._check_package(Requirement('lightning>=2.4'))
    assert not check.ok
    assert check.remedy.endswith('-m pip install "lightning>=2.4"')


def test_a_version_out_of_range_is_reported() -> None:
    check = doctor._check_package(Requirement('numpy>=999'))
    assert not check.ok
    assert 'numpy>=999 is needed' in check.detail
    assert check.remedy.endswith('-m pip install "numpy>=999"')


def test_the_packages_are_those_that_this_package_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, 'requires', lambda name: ['torch>=2', 'mlflow>=2; extra == "mlflow"'])
    assert list(doctor._requirements()) == ['torch']
    monkeypatch.undo()
    monkeypatch.setattr(doctor, 'PACKAGE', 'no-such-package')
    assert doctor._requirements() == {}


def test_missing_plugin_file_and_entry_point_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, 'PLUGIN_MODULE', 'ptychodus.plugins.no_such_file')
    monkeypatch.setattr(doctor, 'entry_points', lambda group: [])
    file, entry = doctor._check_plugin_file(), doctor._check_entry_point()
    assert not file.ok
    assert not entry.ok
    assert '--force-reinstall --no-deps ptychopinn_torch_plugin' in file.remedy == entry.remedy


def test_broken_torch_is_a_line_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, '_TORCH_PROGRAM', 'raise ImportError("libcudart.so.13 is missing")')
    (check,) = doctor._check_torch()
    assert not check.ok
    assert check.detail == 'ImportError: libcudart.so.13 is missing'
    assert 'torch>=2' in check.remedy


@pytest.mark.parametrize(
    ('program', 'detail'),
    [
        ('import sys; sys.exit("host is broken")', 'host is broken'),
        ('print("no JSON")', 'unexpected output'),
        ('pass', 'unexpected output'),
        ('import json; print("an odd host"); print(json.dumps({"keys": [], "loaded": []}))', 'log: an odd host'),
        (f'import json; print(json.dumps({{"keys": {list(doctor.ALGORITHM_KEYS)}, "loaded": ["torch"]}}))', 'torch'),
    ],
)
def test_host_that_does_not_list_the_algorithms(monkeypatch: pytest.MonkeyPatch, program: str, detail: str) -> None:
    monkeypatch.setattr(doctor, '_HOST_PROGRAM', program)
    check = doctor._check_host()
    assert not check.ok
    assert detail in check.detail
    assert check.remedy


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - stands in for subprocess.run
        raise subprocess.TimeoutExpired('python', 1.0)

    monkeypatch.setattr(subprocess, 'run', hang)

    with pytest.raises(doctor.ProbeError, match='no result'):
        doctor._probe('pass')
