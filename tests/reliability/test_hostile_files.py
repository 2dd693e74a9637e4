"""Hostile files: a file is data, whatever its bytes say.

Every file of the corpus (``tests/fuzz/corpus.py``) is read by the real readers. None may crash, hang, run code, leave
with an error that is not our own, or take memory that its size does not explain.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from ptychopinn_torch_plugin.errors import ConfigurationError, InputError, ModelFileError, PtychoPINNError
from ptychopinn_torch_plugin.storage.model_file import load_model, read_model_header
from tests.fuzz import corpus
from tests.fuzz.mutations import mutations
from tests.fuzz.targets import read_configuration, read_folder, read_model, read_scan, resume_reader
from tests.helpers.fault_report import FaultReport

MODEL_KEPT = 'the model loaded before'
SCAN_KEPT = 'nothing was started'
MAX_SECONDS = 20.0
PEAK_BYTES = 64 * 2**20
"""Memory that any file may take, however small, on top of ``PEAK_FACTOR`` times its size."""
PEAK_FACTOR = 12

MARKER = Path('pickle-was-run')
MODEL_FILES: dict[str, Callable[[], Mapping[str, bytes]]] = {
    'truncated': corpus.truncated_model_files,
    'tables': corpus.hostile_tables,
    'tensors': corpus.hostile_tensors,
    'headers': corpus.hostile_headers,
    'foreign': lambda: corpus.foreign_files(MARKER),
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(
    reader: Callable[[Path], PtychoPINNError | None],
    name: str,
    files: Mapping[str, bytes],
    fault_report: FaultReport,
    kept: str,
) -> dict[str, PtychoPINNError]:
    """Read every one of ``files`` under ``name``; all must be refused, quickly, without code run or memory taken."""
    errors: dict[str, PtychoPINNError] = {}
    path = Path(name)
    for fault, content in files.items():
        path.write_bytes(content)
        before = time.monotonic()
        tracemalloc.start()
        try:
            error = reader(path)
            peak = tracemalloc.get_traced_memory()[1]
        except Exception as crash:
            raise AssertionError(f'"{fault}" ended in {crash!r}') from crash
        finally:
            tracemalloc.stop()
        seconds = time.monotonic() - before
        assert error is not None, f'"{fault}" was read'
        assert peak < PEAK_BYTES + PEAK_FACTOR * len(content), f'"{fault}" took {peak} bytes'
        assert seconds < MAX_SECONDS, f'"{fault}" took {seconds} s'
        assert not MARKER.exists(), f'"{fault}" ran code'
        errors[fault] = error
        if 'cut after' not in fault:
            fault_report.record(fault, str(error), kept, seconds)
    fault_report.count(len(files), 'hostile files')
    return errors


@pytest.mark.parametrize('group', MODEL_FILES)
def test_hostile_model_files_are_refused(group: str, fault_report: FaultReport) -> None:
    errors = refused(read_model, 'model.safetensors', MODEL_FILES[group](), fault_report, MODEL_KEPT)
    assert len(errors) >= 8
    for fault, error in errors.items():
        assert isinstance(error, ModelFileError), fault
        assert 'model' in str(error), fault


def test_hostile_training_files_are_refused(fault_report: FaultReport) -> None:
    errors = refused(read_scan, 'scan.npz', corpus.hostile_training_files(MARKER), fault_report, SCAN_KEPT)
    for fault, error in errors.items():
        assert isinstance(error, InputError), fault
        assert 'scan.npz' in str(error), fault


def test_the_good_files_are_read() -> None:
    """The corpus is made of good files: they are read, or all of the above would prove nothing."""
    Path('model.safetensors').write_bytes(corpus.good_model_file())
    Path('scan.npz').write_bytes(corpus.good_training_file())
    assert read_model(Path('model.safetensors')) is None
    assert read_scan(Path('scan.npz')) is None


def test_hundreds_of_mutations_of_a_model_file_are_survived(fault_report: FaultReport) -> None:
    content = corpus.good_model_file()
    front = 8 + int.from_bytes(content[:8], 'little')
    refusals = survived(read_model, Path('model.safetensors'), mutations(content, 800, seed=0, front=front))
    assert refusals > 500
    fault_report.count(800, 'mutated model files')


def test_hundreds_of_mutations_of_a_training_file_are_survived(fault_report: FaultReport) -> None:
    content = corpus.good_training_file()
    refusals = survived(read_scan, Path('scan.npz'), mutations(content, 500, seed=0, front=len(content)))
    assert refusals > 300
    fault_report.count(500, 'mutated training files')


def survived(reader: Callable[[Path], PtychoPINNError | None], path: Path, contents: Iterable[bytes]) -> int:
    """Read every one of ``contents``; returns how many were refused. Nothing but our own errors may come out."""
    refusals = 0
    for number, content in enumerate(contents):
        path.write_bytes(content)
        try:
            refusals += reader(path) is not None
        except Exception as crash:
            raise AssertionError(f'mutation {number} ended in {crash!r}') from crash
    return refusals


def test_mutations_of_hdf5_are_survived(workflow_folder: Path, fault_report: FaultReport) -> None:
    for name in ('diffraction.h5', 'product.h5'):
        path = workflow_folder / name
        content = path.read_bytes()
        refusals = survived(read_folder, path, mutations(content, 50, seed=0, front=min(len(content), 8000)))
        path.write_bytes(content)
        assert refusals > 10
    fault_report.count(100, 'mutated HDF5 files')


def test_hundreds_of_mutations_of_a_configuration_are_survived(fault_report: FaultReport) -> None:
    for text in corpus.configurations()[:4]:
        survived(read_configuration, Path('names.yaml'), mutations(text.encode(), 50, seed=0, front=len(text)))
    fault_report.count(200, 'mutated configurations')


def test_damaged_resume_states_are_refused(tmp_path: Path, fault_report: FaultReport) -> None:
    resume, state = resume_reader(tmp_path)
    path = tmp_path / 'resume.safetensors'
    path.write_bytes(state)
    assert resume(path) is None
    errors = refused(resume, str(path), corpus.damaged_resume_states(state), fault_report, MODEL_KEPT)
    assert all(isinstance(error, ConfigurationError) for error in errors.values())
    survived(resume, path, mutations(state, 30, seed=0, front=8 + int.from_bytes(state[:8], 'little')))
    fault_report.count(30, 'mutated resume states')


@pytest.mark.parametrize('section', ['model', 'training', 'inference', 'execution'])
def test_a_configuration_file_does_not_lead_to_another(section: str, fault_report: FaultReport) -> None:
    Path('names.yaml').write_text(f'{section}: names.yaml')
    error = read_configuration(Path('names.yaml'))
    assert isinstance(error, ConfigurationError)
    assert f'{section} is names.yaml: give names with values' in str(error)
    fault_report.record('a configuration file that names itself', str(error), SCAN_KEPT)


def test_memory_outside_of_python_is_bounded_too(fault_report: FaultReport) -> None:
    """The parser of safetensors and torch take memory that tracemalloc does not see: watch the whole process."""
    for group, make in MODEL_FILES.items():
        for number, content in enumerate(make().values()):
            Path(f'{group}-{number}.safetensors').write_bytes(content)
    Path('good').write_bytes(corpus.good_model_file())
    largest = max(path.stat().st_size for path in Path().glob('*.safetensors'))
    code = (
        'import resource, sys; from pathlib import Path; from tests.fuzz.targets import read_model\n'
        'read_model(Path("good")); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
        'answers = [read_model(path) for path in Path().glob("*.safetensors")]\n'
        'grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n'
        'print(sum(answer is None for answer in answers), grown * 1024)'
    )
    root = Path(__file__).resolve().parents[2]
    answer = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {'PYTHONPATH': str(root)},
    )
    read, grown = map(int, answer.stdout.split())
    assert read == 0
    assert grown < PEAK_BYTES + 4 * largest


@pytest.mark.parametrize('reader', [read_model_header, load_model])
def test_what_is_no_file_is_refused_without_waiting(
    reader: Callable[[Path], object], fault_report: FaultReport
) -> None:
    Path('folder.safetensors').mkdir()
    os.mkfifo('pipe.safetensors')  # to open one waits for a writer
    Path('loop.safetensors').symlink_to('loop.safetensors')
    Path('device.safetensors').symlink_to('/dev/zero')
    names = ['folder', 'pipe', 'loop', 'device', 'absent']
    for name in names:
        with pytest.raises(ModelFileError, match=f'{name}.safetensors') as caught:
            reader(Path(f'{name}.safetensors'))
        fault_report.record(f'a model file that is a {name}', str(caught.value), MODEL_KEPT)
    fault_report.count(len(names), 'hostile files')
