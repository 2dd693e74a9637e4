"""The model file: round trip, header without torch, and refusals by name."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.errors import ModelFileError
from ptychopinn_torch_plugin.storage import model_file
from ptychopinn_torch_plugin.storage.atomic import write_atomically
from ptychopinn_torch_plugin.storage.model_file import (
    HEADER_KEY,
    TrainedModel,
    load_model,
    package_versions,
    read_model_header,
    save_model,
)
from ptychopinn_torch_plugin.types import LossRecord
from tests.helpers.models import untrained_model


@pytest.fixture
def model() -> TrainedModel:
    return untrained_model(parse_config({'model': {'width': 4, 'levels': 1}, 'training': {'epochs': 3}}))


def test_round_trip(model: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / 'folder' / 'model.safetensors'
    save_model(path, model)
    loaded = load_model(path)
    assert loaded.header == model.header
    assert loaded.losses == (LossRecord(1, 2.0, 2.5),)
    np.testing.assert_array_equal(loaded.probe, model.probe)
    state = loaded.build().state_dict()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in model.weights.items())
    assert [file.name for file in path.parent.iterdir()] == ['model.safetensors']


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(model: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / 'model.safetensors'
    for padding in range(0, 300, 8):
        # Grow the header until the file starts like a Python pickle.
        header = model.header.model_copy(update={'versions': {'padding': 'x' * padding}})
        save_model(path, replace(model, weights={}, header=header))
        if path.read_bytes()[:1] == b'\x80':
            break
    assert path.read_bytes()[:1] == b'\x80'
    assert read_model_header(path) == header


def test_the_header_is_read_without_torch(model: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / 'model.safetensors'
    save_model(path, model)
    code = (
        'import sys, pathlib; from ptychopinn_torch_plugin.storage.model_file import read_model_header as read; '
        f'print(read(pathlib.Path({str(path)!r})).config.training.epochs, "torch" in sys.modules)'
    )
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ['3', 'False']


def test_an_older_file_is_not_lost_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'file'
    write_atomically(path, b'old')

    def fail(_: int) -> None:
        raise OSError('No space left on device')

    monkeypatch.setattr('os.fsync', fail)
    with pytest.raises(OSError, match='No space'):
        write_atomically(path, b'new')
    assert path.read_bytes() == b'old'
    assert [file.name for file in tmp_path.iterdir()] == ['file']


def test_files_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({'a': torch.ones(1)}, tmp_path / 'model.ckpt')
    with zipfile.ZipFile(tmp_path / 'wts.h5.zip', 'w') as archive:
        archive.writestr('weights', 'x')
    (tmp_path / 'keras.h5').write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(100))
    (tmp_path / 'old.pt').write_bytes(b'\x80\x02}q\x00.')
    for name in ('model.ckpt', 'wts.h5.zip', 'keras.h5', 'old.pt'):
        with pytest.raises(ModelFileError, match=rf'{name} is .*PtychoPINN \(PyTorch\)'):
            read_model_header(tmp_path / name)


def test_garbage_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'garbage.safetensors').write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00nonsense and more')
    (tmp_path / 'empty.safetensors').write_bytes(b'')
    for name in ('garbage', 'empty'):
        with pytest.raises(ModelFileError, match='not a readable safetensors'):
            read_model_header(tmp_path / f'{name}.safetensors')
    with pytest.raises(ModelFileError, match='no model file'):
        read_model_header(tmp_path / 'absent.safetensors')


def test_safetensors_of_somebody_else_is_refused(tmp_path: Path) -> None:
    save_file({'x': np.ones(3, np.float32)}, tmp_path / 'other.safetensors')
    with pytest.raises(ModelFileError, match='not one of this package'):
        read_model_header(tmp_path / 'other.safetensors')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backend': 'PtychoPINN (TensorFlow)'}, r'PtychoPINN \(TensorFlow\).*PtychoPINN \(PyTorch\)'),
        ({'format_version': 99, 'news': 1}, 'format 99.*format 1'),
        ({'backend': None}, 'names no backend'),
        ({'surprise': 1}, 'surprise'),
    ],
)
def test_headers_of_others_are_refused(
    model: TrainedModel, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / 'model.safetensors'
    header = json.loads(model.header.model_dump_json()) | change
    save_file({'x': np.ones(3, np.float32)}, path, metadata={HEADER_KEY: json.dumps(header)})
    with pytest.raises(ModelFileError, match=message):
        read_model_header(path)


def test_tensors_must_fit_the_header(model: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / 'model.safetensors'
    save_model(path, replace(model, weights={**model.weights, 'surprise': np.ones(2, np.float32)}))
    with pytest.raises(ModelFileError, match='surprise'):
        load_model(path).build()
    save_model(path, replace(model, weights={**model.weights, 'log_step_sizes': np.full(8, np.nan, np.float32)}))
    with pytest.raises(ModelFileError, match='not finite'):
        load_model(path)
    tensors = load_file(path)
    del tensors['probe']
    tensors = {name: np.nan_to_num(tensor) for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={HEADER_KEY: model.header.model_dump_json()})
    with pytest.raises(ModelFileError, match='no probe'):
        load_model(path)


def test_the_whole_configuration_comes_back(tmp_path: Path) -> None:
    config = parse_config({'data': {'group_size': 9}, 'training': {'seed': 4}, 'inference': {'steps': 12}})
    save_model(tmp_path / 'm.safetensors', untrained_model(config))
    assert load_model(tmp_path / 'm.safetensors').config == config != Config()


def test_the_versions_of_packages_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == 'ptychodus':
            raise PackageNotFoundError(name)
        return f'{name} 1.0'

    monkeypatch.setattr(model_file, 'version', version)
    assert package_versions() == {
        'ptychopinn_torch_plugin': 'ptychopinn_torch_plugin 1.0',
        'torch': 'torch 1.0',
        'lightning': 'lightning 1.0',
        'numpy': 'numpy 1.0',
        'ptychodus': 'not installed',
    }
