"""What a training, or any command, is said to have left: only what it wrote itself."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.storage.model_file import TrainedModel, save_model
from ptychopinn_torch_plugin.storage.training_output import RESUME_FILE, TrainingOutput
from ptychopinn_torch_plugin.storage.written_files import WrittenFiles
from tests.helpers.models import untrained_model


@pytest.fixture
def model() -> TrainedModel:
    return untrained_model(parse_config({'model': {'width': 4, 'levels': 1}}))


def test_a_training_that_wrote_nothing(model: TrainedModel, tmp_path: Path) -> None:
    output = TrainingOutput(tmp_path)
    assert (output.has_model(), output.can_resume()) == (False, False)
    assert output.describe() == 'No model was written.'
    save_model(output.model_file, model)
    (tmp_path / RESUME_FILE).touch()
    later = TrainingOutput(tmp_path)
    assert (later.has_model(), later.can_resume()) == (False, False)
    assert later.describe() == f'This run wrote no model; {output.model_file} is that of an earlier run.'
    (tmp_path / RESUME_FILE).write_text('state')
    assert later.describe().endswith('of an earlier run. Training into the same folder resumes from there.')


def test_a_training_that_wrote_a_model(model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = TrainingOutput(Path('out'))
    assert output.model_file == tmp_path / 'out' / 'model.safetensors'
    save_model(output.model_file, model)
    assert (output.has_model(), output.can_resume()) == (True, False)
    assert output.describe() == f'The best model of 1 epochs is {output.model_file}.'
    header = model.header.model_copy(update={'history': ()})
    save_model(output.model_file, replace(model, header=header))
    assert output.describe().startswith('No epoch was finished; the model as it was when the run ended is ')
    (tmp_path / 'out' / RESUME_FILE).touch()
    assert output.can_resume()
    assert output.describe().endswith('model.safetensors. Training into the same folder resumes from there.')
    output.model_file.write_bytes(b'damaged')
    assert output.describe().startswith('The model of this run cannot be read: ')


def test_a_file_is_written_when_it_is_another_one_than_before(tmp_path: Path) -> None:
    names = ('new', 'same', 'replaced', 'longer', 'touched', 'missing', 'removed')
    files = {name: tmp_path / name for name in names}
    for name in names[1:5] + names[6:]:
        files[name].write_text('content')
    written = WrittenFiles()
    written.watch(*files.values())
    assert written.paths() == ()
    assert written.sentence() == 'Nothing was written.'
    files['new'].touch()
    written.watch(files['new'])  # the first record counts
    (tmp_path / 'other').write_text('content')
    status = files['replaced'].stat()
    os.utime(tmp_path / 'other', ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / 'other').replace(files['replaced'])
    status = files['longer'].stat()
    files['longer'].write_text('more content')
    os.utime(files['longer'], ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(files['touched'], ns=(0, 0))
    files['removed'].unlink()
    changed = tuple(files[name] for name in ('new', 'replaced', 'longer', 'touched'))
    assert written.paths() == changed
    assert written.sentence() == f'Written: {", ".join(str(path) for path in changed)}.'
