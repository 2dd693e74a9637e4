"""The documents are correct: files, commands and settings that they name exist, their code runs, the site builds."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.cli.names import PROGRAM
from ptychopinn_torch_plugin.cli.parser import build_parser
from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines.pipeline import reconstruct
from ptychopinn_torch_plugin.metrics.residuals import measure
from ptychopinn_torch_plugin.models.registry import GENERATORS
from tests.helpers.models import untrained_model
from tests.helpers.scans import make_scan, phase_and_scale_free_error

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'specs').rglob('*.md')])
TEST_NAME = re.compile(r'(tests/[\w/]+\.py)::(\w+)')
LINK = re.compile(r'\]\((?!https?:)([^)#]+)')
CODE_BLOCK = re.compile(r'^```\w*\n(.*?)^```', re.MULTILINE | re.DOTALL)
MODULES = re.compile(r'^<!-- modules: ([\w.]+) -->$', re.MULTILINE)
SHELL_SIGNS = {'&&', ';', '|', '>', '2>'}


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_linked_files_exist_and_no_test_is_named(document: Path) -> None:
    text = document.read_text()
    assert not TEST_NAME.findall(text)
    for link in LINK.findall(text):
        assert (document.parent / link).exists(), link


def command_lines(text: str) -> list[list[str]]:
    """The words after the program's name, of every line in a code block that begins with it."""
    found = []
    for block in CODE_BLOCK.findall(text):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [PROGRAM]:
                end = next((number for number, word in enumerate(words) if word in SHELL_SIGNS), len(words))
                found.append(words[1:end])
    return found


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_parse(document: Path) -> None:
    for words in command_lines(document.read_text()):
        parsed = build_parser().parse_args(words)
        for change in getattr(parsed, 'set', []):
            section, name = change.partition('=')[0].split('.')
            assert name in type(getattr(Config(), section)).model_fields, change


def test_there_are_documents() -> None:
    assert len(DOCUMENTS) > 5
    assert sum(len(command_lines(document.read_text())) for document in DOCUMENTS) > 10


def test_the_reference_has_a_place_for_every_module() -> None:
    named = {name for page in (ROOT / 'docs' / 'api').glob('*.md') for name in MODULES.findall(page.read_text())}
    for path in (ROOT / 'ptychopinn_torch_plugin').rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        if parts[-1] == '__main__' or (len(parts) == 2 and parts[-1] == '__init__'):
            continue
        prefixes = {'.'.join(parts[:length]) for length in range(2, len(parts) + 1)}
        package_itself = path.name == '__init__.py' and any(name.startswith('.'.join(parts[:-1])) for name in named)
        assert prefixes & named or package_itself, f'name {".".join(parts)} on a page in docs/api'


def test_every_quoted_message_is_in_the_list_of_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / 'docs'))
    doors = importlib.import_module('list_messages').messages()
    sections = (ROOT / 'docs' / 'messages.md').read_text().split('\n## ')[1:]
    assert sorted(re.findall(r'<!-- messages: (\w+) -->', '\n'.join(sections))) == sorted(doors)
    quoted = 0
    for section in sections:
        (door,) = re.findall(r'<!-- messages: (\w+) -->', section)
        for message in re.findall(r'^\| "(.*?)" \|', section, re.MULTILINE):
            quoted += 1
            pattern = re.compile('.*'.join(re.escape(part.strip()) for part in message.split('...')), re.DOTALL)
            assert any(pattern.search(text) for text in doors[door]), f'{door}: {message}'
    assert quoted > 30
    assert sum(map(len, doors.values())) > 200, 'the errors of the code are found'


def test_the_pictures_of_the_symptoms_are_those_that_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / 'docs'))
    names = {make.__name__ for make in importlib.import_module('make_symptoms').CASES}
    assert set(re.findall(r'images/symptoms/(\w+)\.png', (ROOT / 'docs' / 'which-setting.md').read_text())) == names
    assert {path.stem for path in (ROOT / 'docs' / 'images' / 'symptoms').iterdir()} == names


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r'^```python\n(.*?)^```', (ROOT / 'README.md').read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the code of our own documents
    assert names['result'].metrics.r_factor < 1.2 * names['result'].metrics.noise_r_factor
    assert (tmp_path / 'simulated' / 'judgement' / 'judgement.png').is_file()


def test_a_tutorial_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The build of the documentation runs all of them."""
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    scripts = sorted((ROOT / 'docs' / 'tutorials').glob('plot_*.py'))
    assert len(scripts) >= 5
    names = runpy.run_path(str(ROOT / 'docs' / 'tutorials' / 'plot_3_faint_scan.py'))
    assert (names['folder'] / 'faint.png').is_file()


def test_the_names_that_stay_the_same_exist() -> None:
    page = (ROOT / 'docs' / 'stability.md').read_text()
    rows = re.findall(r'^\| `(ptychopinn_torch_plugin[\w.]*)` \| (.*) \|$', page, re.MULTILINE)
    assert len(rows) > 5
    for module, names in rows:
        for name in re.findall(r'`(\w+)`', names):
            assert hasattr(importlib.import_module(module), name), f'{module}.{name}'


def code_of(page: str) -> dict[str, Any]:
    """Run the Python block of a page on how to add something, and return its names."""
    (code,) = re.findall(r'^ *```python\n(.*?)^ *```', (ROOT / 'docs' / page).read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code), names)  # noqa: S102 - the code of our own documents
    return names


def test_the_generator_of_the_documents_reconstructs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GENERATORS, 'unrolled', code_of('add-generator.md')['GradientDescent'])
    model = untrained_model(parse_config({'model': {'steps': 20}}))
    scan, truth = make_scan()
    result = reconstruct(scan, model, parse_config({'refinement': {'refine_epochs': 0}}))
    assert phase_and_scale_free_error(result.object_array, truth, result.coverage) < 0.35


def test_the_likelihood_of_the_documents_is_one_for_photon_noise() -> None:
    deviance = code_of('add-likelihood.md')['huber_deviance']
    expected = torch.full((4, 64, 64), 300.0)
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(0))
    assert float(deviance(expected.sqrt(), counts.sqrt(), torch.ones(64, 64))) == pytest.approx(1.0, abs=0.05)


def test_the_engine_of_the_documents_reduces_the_deviance() -> None:
    tensors = ScanTensors(make_scan()[0], torch.device('cpu'))
    start = initial_state(tensors)
    state = code_of('add-engine.md')['steepest_descent'](tensors, start, 20, 64)
    before, after = (measure(tensors, each, 64).r_factor for each in (start, state))
    assert after < 0.5 * before


def test_the_input_of_the_documents_reads_a_scan(tmp_path: Path) -> None:
    scan, _ = make_scan()
    np.save(tmp_path / 'counts.npy', scan.counts)
    np.savetxt(tmp_path / 'positions.txt', scan.positions)
    read = code_of('add-input.md')['read_text_positions']
    found = read(tmp_path / 'counts.npy', tmp_path / 'positions.txt', scan.probe)
    assert np.array_equal(found.counts, scan.counts)
    assert np.ptp(found.positions - scan.positions, axis=0) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', '-d', str(tmp_path / 'trees')]
    command += ['-D', 'plot_gallery=0']  # the tutorials are run by "make docs"
    done = subprocess.run(
        [*command, str(ROOT / 'docs'), str(tmp_path / 'site')], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'site' / 'api' / 'data.html').read_text()
    assert 'id="ptychopinn_torch_plugin.data.scan.make_raw_scan"' in page
    assert 'training.learning_rate' in (tmp_path / 'site' / 'settings.html').read_text()
