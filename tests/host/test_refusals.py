"""What is refused before anything is run, in the real host: misspelt names, and folders that cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ptychodus.api.exit_codes import ExitCode
from ptychodus.model import ModelCore

from ptychopinn_torch_plugin.errors import OutputError
from ptychopinn_torch_plugin.host import reconstructors as reconstructors_module
from ptychopinn_torch_plugin.host import runs as runs_module
from ptychopinn_torch_plugin.host.output_check import check_writable

from .fake_worker import FakeWorker

MISSPELT = {
    'algorithm': ('[Processing]\nAlgorithm = PtychoPINN (PyTorch)_PIN\n', 'ptychopinn (pytorch)_pinn'),
    'library': ('[Processing]\nAlgorithm = PtychoPINN (PyTroch)_Refine\n', 'ptychopinn (pytorch)_refine'),
    'setting': (
        '[Processing]\nAlgorithm = PtychoPINN (PyTorch)_Refine\n[PtychoPINNPyTorchTraining]\nepoch = 1\n',
        'did you mean "epochs"?',
    ),
    'group': (
        '[Processing]\nAlgorithm = PtychoPINN (PyTorch)_Refine\n[PtychoPINNPyTorchTrainig]\nepochs = 1\n',
        'did you mean "PtychoPINNPyTorchTraining"?',
    ),
}


@pytest.mark.parametrize('name', MISSPELT)
@pytest.mark.parametrize('where', ['settings.ini', '-s'])
def test_a_misspelt_name_ends_a_batch_run(
    name: str, where: str, workflow_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, expected = MISSPELT[name]
    file = workflow_folder / 'settings.ini' if where == 'settings.ini' else tmp_path / 'given.ini'
    file.write_text(text)
    with ModelCore(file if where == '-s' else None) as model:
        code = model.batch_mode_execute('reconstruct', workflow_folder, tmp_path / 'out')
    assert code == ExitCode.USAGE
    assert expected in caplog.text
    assert not list((tmp_path / 'out').glob('*.h5'))


def test_names_of_others_are_left_to_the_host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / 'settings.ini'
    file.write_text('[Processing]\nAlgorithm = none_none\n[Elsewhere]\nepoch = 1\n')
    ModelCore(file)
    assert 'ptychopinn_torch_plugin' not in {record.name.partition('.')[0] for record in caplog.records}


def test_an_output_folder_that_cannot_be_made_is_one_sentence(
    workflow_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / 'file').write_text('')
    with ModelCore() as model:
        assert model.batch_mode_execute('train', workflow_folder, tmp_path / 'file' / 'out') == ExitCode.USAGE
    assert 'cannot be made (Not a directory): choose another' in caplog.text


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, 'geteuid') else True, reason='this user may write everywhere')
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match='Nothing can be written'):
        check_writable(tmp_path)
    tmp_path.chmod(0o700)


def test_a_run_into_a_folder_that_cannot_be_written_does_not_begin(
    workflow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = FakeWorker()
    monkeypatch.setattr(runs_module, 'run_job', worker)

    def refuse(folder: Path | None) -> None:
        raise OutputError(f'Nothing can be written into the output folder {folder}.')

    monkeypatch.setattr(reconstructors_module, 'check_writable', refuse)
    (workflow_folder / 'settings.ini').write_text('[Processing]\nAlgorithm = PtychoPINN (PyTorch)_Refine\n')
    with ModelCore() as model:
        assert model.batch_mode_execute('reconstruct', workflow_folder, tmp_path / 'out') == ExitCode.FAILURE
    assert 'Nothing can be written into the output folder' in caplog.text
    assert not worker.jobs


def test_a_product_that_cannot_be_written_is_kept_elsewhere(
    workflow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs_module, 'run_job', FakeWorker())
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'out'
    (out / 'product.000010.h5').mkdir(parents=True)  # the place of the product is taken
    (workflow_folder / 'settings.ini').write_text('[Processing]\nAlgorithm = PtychoPINN (PyTorch)_Refine\n')
    with ModelCore() as model:
        assert model.batch_mode_execute('reconstruct', workflow_folder, out) == ExitCode.FAILURE
    (kept,) = tmp_path.glob('ptychopinn-product-*.h5')
    assert f'it is in {kept} instead' in caplog.text
    assert 'Background task exception' not in caplog.text
