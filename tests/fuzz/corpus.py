"""Hostile files, made by code: nothing binary is kept in the repository.

Every entry names the change to a good file. A reader must refuse it with a sentence of this package, or come to
the same as with the good one.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.storage.model_file import HEADER_KEY, save_model
from tests.fuzz import hostile_hdf5
from tests.helpers.models import untrained_model
from tests.helpers.scans import curved_probe

Table = dict[str, Any]


class Marker:
    """An object that creates the file it names when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, (f'open({str(self.path)!r}, "w").close()',)


# Model files


@cache
def good_model_file() -> bytes:
    """A small model file: one step, four channels, a probe of 16 x 17 pixels."""
    config = parse_config({'model': {'width': 4, 'levels': 1, 'steps': 1, 'memory_channels': 0}})
    model = untrained_model(config, curved_probe((16, 17)).astype(np.complex64))
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'model.safetensors'
        save_model(path, replace(model))
        return path.read_bytes()


def taken_apart(content: bytes) -> tuple[Table, Table, bytes]:
    """Table, own header and tensor bytes of a model file."""
    length = int.from_bytes(content[:8], 'little')
    table = json.loads(content[8 : 8 + length])
    return table, json.loads(table['__metadata__'][HEADER_KEY]), content[8 + length :]


def put_together(table: Table | bytes, data: bytes, *, header: Table | str | None = None) -> bytes:
    """A file of ``table`` and ``data``; ``header`` replaces the own header in the table."""
    if isinstance(table, dict):
        if header is not None:
            text = header if isinstance(header, str) else json.dumps(header)
            table = table | {'__metadata__': {HEADER_KEY: text}}
        table = json.dumps(table).encode()
    return struct.pack('<Q', len(table)) + table + data


def truncated_model_files(number: int = 60) -> dict[str, bytes]:
    """The good file, cut at ``number`` places from nothing to one byte less than all."""
    content = good_model_file()
    cuts = {int(cut) for cut in np.linspace(0, len(content) - 1, number)} | {1, 7, 8, 9}
    return {f'cut after {cut} bytes': content[:cut] for cut in sorted(cuts)}


def hostile_tables() -> dict[str, bytes]:
    """Faults of the container: its table, its lengths, its offsets."""
    table, _, data = taken_apart(good_model_file())
    text = json.dumps(table).encode()
    probe = table['probe']
    begin, end = probe['data_offsets']
    faults: dict[str, bytes] = {
        'table length of 1 GB': struct.pack('<Q', 2**30) + text + data,
        'table length of 2^64 - 1': b'\xff' * 8 + text + data,
        'table length one too long': struct.pack('<Q', len(text) + 1) + text + data,
        'huge table of one string': put_together(b'{"a":"' + b'x' * 17_000_000 + b'"}', data),
        'a hundred thousand tensors': put_together(
            table | {f't{n}': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]} for n in range(100_000)}, data
        ),
        'large table of foreign metadata': put_together(
            table | {'__metadata__': table['__metadata__'] | {'other': 'x' * 2_000_000}}, data
        ),
        'table of nested lists': put_together(b'[' * 100_000, data),
        'table of nested objects': put_together(b'{"a":' * 100_000, data),
        'table is a list': put_together(b'[]', data),
        'table is not UTF-8': put_together(b'{"\xff\xfe": 1}', data),
        'same key twice': put_together(
            text.replace(b'{"__met', b'{"probe": ' + json.dumps(probe).encode() + b', "__met'), data
        ),
        'overlapping offsets': put_together(table | {'probe': probe | {'data_offsets': [0, end - begin]}}, data),
        'offsets beyond the end': put_together(table | {'probe': probe | {'data_offsets': [begin, end + 2**40]}}, data),
        'offsets in reverse': put_together(table | {'probe': probe | {'data_offsets': [end, begin]}}, data),
        'bytes after the end': good_model_file() + b'\x00' * 16,
        'shape that overflows': put_together(table | {'probe': probe | {'shape': [2**62, 2**62, 16, 2]}}, data),
        'negative shape': put_together(table | {'probe': probe | {'shape': [-1, 16, 17, 2]}}, data),
        'no header of ours': put_together(table | {'__metadata__': {'format': 'pt'}}, data),
    }
    for dtype in ('F64', 'F16', 'BF16', 'F8_E4M3', 'I32', 'BOOL', 'F128'):
        faults[f'probe of dtype {dtype}'] = put_together(table | {'probe': probe | {'dtype': dtype}}, data)
    return faults


def hostile_tensors() -> dict[str, bytes]:
    """A whole container whose tensors do not fit its header."""
    table, header, data = taken_apart(good_model_file())
    tensors = _tensors(table, data)
    name = 'generator.log_step_sizes'
    empty = np.zeros(0, np.float32)
    faults: dict[str, dict[str, np.ndarray]] = {
        'no probe': {key: value for key, value in tensors.items() if key != 'probe'},
        'no weights': {'probe': tensors['probe']},
        'a tensor too many': tensors | {'surprise': np.ones(3, np.float32)},
        'a weight too many': tensors | {'generator.surprise': np.ones(3, np.float32)},
        'a tensor with a name of 100 kB': tensors | {'n' * 100_000: np.ones(3, np.float32)},
        'a tensor that names a path': tensors | {'../../etc/passwd': np.ones(3, np.float32)},
        'weights of another shape': tensors | {name: np.ones(2, np.float32)},
        'weights without values': tensors | {name: empty},
        'weights of many axes': tensors | {name: np.ones((1,) * 40, np.float32)},
        'NaN weights': tensors | {name: np.full(1, np.nan, np.float32)},
        'infinite weights': tensors | {name: np.full(1, np.inf, np.float32)},
        'a NaN in the probe': tensors
        | {'probe': np.where(np.arange(2) > 0, np.nan, tensors['probe']).astype(np.float32)},
        'a probe of zeros': tensors | {'probe': np.zeros_like(tensors['probe'])},
        'a probe without modes': tensors | {'probe': np.zeros((0, 16, 17, 2), np.float32)},
        'a probe of 1 x 100000 pixels': tensors | {'probe': np.ones((1, 1, 100_000, 2), np.float32)},
        'a probe of three parts': tensors | {'probe': np.ones((1, 16, 17, 3), np.float32)},
        'a probe of two axes': tensors | {'probe': np.ones((16, 34), np.float32)},
    }
    files = {fault: _file(changed, header) for fault, changed in faults.items()}
    absurd = table['probe'] | {'shape': [0, 10**9, 10**9, 2], 'data_offsets': [0, 0]}
    rest = {key: value for key, value in tensors.items() if key != 'probe'}
    others, _, data = taken_apart(_file(rest, header))
    files['a probe of 10^9 x 10^9 pixels and no bytes'] = put_together({'probe': absurd} | others, data)
    return files


def hostile_headers() -> dict[str, bytes]:
    """A whole container with a header of ours that says what it should not."""
    table, header, data = taken_apart(good_model_file())
    entry = {'epoch': 1, 'training': 1.0, 'validation': None}
    text = json.dumps(header)
    changed: dict[str, Table | str] = {
        'header is no JSON': 'nonsense',
        'header is a number': '7',
        'header is nested deeply': text[:-1] + ', "extra": ' + '[' * 50_000 + ']' * 50_000 + '}',
        'header gives a field twice': text[:-1] + f', "backend": "{header["backend"]}"}}',
        'header gives a setting twice': text.replace('"width": 4', '"width": 4, "width": 4'),
        'header with a field of its own': header | {'surprise': 1},
        'header with a field name of 100 kB': header | {'n' * 100_000: 1},
        'header without history': {key: value for key, value in header.items() if key != 'history'},
        'header of a format to come': header | {'format_version': 99},
        'header of a format of 5000 digits': text.replace('"format_version": 1', '"format_version": 1' + '0' * 5000),
        'header of another backend': header | {'backend': 'TensorFlow'},
        'header of a backend of 100 kB': header | {'backend': 'T' * 100_000},
        'history of a million epochs': _with_history(header, json.dumps(entry), 1_000_000),
        'history of 101000 epochs': _with_history(header, '{"epoch":1,"training":1}', 101_000),
        'history of a million empty lists': _with_history(header, '[]', 1_000_000),
        'history with a NaN loss': text.replace('"training": 2.0', '"training": NaN'),
        'history with an infinite loss': text.replace('"training": 2.0', '"training": 1e999'),
        'history with a negative epoch': header | {'history': [entry | {'epoch': -1}]},
        'history with an epoch of 5000 digits': text.replace('"epoch": 1', '"epoch": ' + '9' * 5000),
        'photons that are no number': text.replace('"photons_per_frame": 1.0', '"photons_per_frame": NaN'),
        'photons below zero': header | {'photons_per_frame': -1.0},
        'scans that are no list': header | {'scans': 'abc'},
        'versions that are no strings': header | {'versions': {'torch': {}}},
    }
    for section, name, value in (
        ('model', 'width', 10**6),
        ('model', 'levels', 60),
        ('model', 'steps', -1),
        ('model', 'generator', 'os.system'),
        ('model', 'generator', 'torch.nn.Linear'),
        ('model', 'model_type', 'pickle'),
        ('training', 'epochs', 0),
        ('training', 'learning_rate', 'NaN'),
        ('data', 'group_size', 10**9),
        ('inference', 'batch_size', '../../x'),
    ):
        config = header['config'] | {section: header['config'][section] | {name: value}}
        changed[f'{section}.{name} is {value}'] = header | {'config': config}
    large = header['config']['model'] | {'width': 256, 'levels': 6, 'steps': 200}
    changed['a network of 5 GB asked for, with tensors of 5 kB'] = header | {
        'config': header['config'] | {'model': large}
    }
    return {fault: put_together(table, data, header=value) for fault, value in changed.items()}


def foreign_files(marker: Path) -> dict[str, bytes]:
    """Files of other kinds under the name of a model; the pickle would create ``marker``."""
    good = good_model_file()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps(Marker(marker)))
    return {
        'a pickle renamed': pickle.dumps(Marker(marker)),
        'a pickle of protocol 0': pickle.dumps(Marker(marker), protocol=0),
        'a PyTorch checkpoint renamed': zipped.getvalue(),
        'an HDF5 file renamed': b'\x89HDF\r\n\x1a\n' + bytes(2000),
        'nothing': b'',
        'zeros': bytes(4096),
        'text': b'#!/bin/sh\nrm -rf /\n' * 10,
        'a model file behind eight bytes': bytes(8) + good,
    }


def _with_history(header: Table, entry: str, number: int) -> str:
    """The text of ``header`` with a history of ``number`` times ``entry``."""
    return json.dumps(header | {'history': None}).replace(
        '"history": null', f'"history": [{(entry + ",") * number}{entry}]'
    )


def _tensors(table: Table, data: bytes) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(data[slice(*entry['data_offsets'])], np.float32).reshape(entry['shape'])
        for name, entry in table.items()
        if name != '__metadata__'
    }


def _file(tensors: Mapping[str, np.ndarray], header: Table) -> bytes:
    """A container of ``tensors``, which may be anything, and ``header``."""
    table: Table = {}
    data = b''
    for name, array in tensors.items():
        content = array.tobytes()
        table[name] = {
            'dtype': 'F32',
            'shape': list(array.shape),
            'data_offsets': [len(data), len(data) + len(content)],
        }
        data += content
    return put_together(table, data, header=header)


# Training files


def training_arrays() -> dict[str, np.ndarray]:
    """A good training file of 4 patterns of 16 x 17 pixels."""
    return {
        'diff3d': np.random.default_rng(0).poisson(5.0, (4, 16, 17)).astype(np.uint16),
        'xcoords': np.array([8.0, 10.5, 8.0, 11.0]),
        'ycoords': np.array([8.0, 8.0, 10.2, 11.0]),
        'probeGuess': curved_probe((16, 17)).astype(np.complex64),
        'objectGuess': np.ones((24, 25), np.complex64),
        'bad_pixels': np.zeros((16, 17), np.bool_),
        'scan_index': np.zeros(4, np.int64),
    }


def npz(arrays: Mapping[str, Any], *, compressed: bool = False) -> bytes:
    """``arrays`` as the content of an NPZ file; objects are pickled."""
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


@cache
def good_training_file() -> bytes:
    """Content of a good training file."""
    return npz(training_arrays())


def npy_header(descr: str, shape: str) -> bytes:
    """An NPY file that declares whatever it likes and holds nothing."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    padded = text.encode('latin1') + b' ' * (-(len(text) + 11) % 64) + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(padded)) + padded


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of ``members``."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def hostile_training_files(marker: Path) -> dict[str, bytes]:
    """NPZ files that must be refused; the pickles would create ``marker``."""
    good = training_arrays()
    members = {f'{name}.npy': npz({name: array}) for name, array in good.items()}
    for name in good:
        with zipfile.ZipFile(io.BytesIO(members[f'{name}.npy'])) as archive:
            members[f'{name}.npy'] = archive.read(f'{name}.npy')
    bomb = npz(good | {'objectGuess': np.zeros((5000, 5000), np.complex64)}, compressed=True)
    content = good_training_file()
    files: dict[str, bytes] = {
        'NPZ with pickled positions': npz(good | {'xcoords': np.array([Marker(marker)] * 4, object)}),
        'NPZ with a pickled optional array': npz(good | {'scan_index': np.array(Marker(marker), object)}),
        'NPZ that is a pickle': pickle.dumps(Marker(marker)),
        'NPZ whose member is a pickle': zipped(members | {'xcoords.npy': pickle.dumps(Marker(marker))}),
        'NPZ bomb: 200 MB in 200 kB': bomb,
        'NPZ with 2000 members': zipped(members | {f'a{n}.npy': b'' for n in range(2000)}),
        'NPZ member without an array': zipped(members | {'xcoords.npy': b''}),
        'NPZ member of an unknown format': zipped(members | {'xcoords.npy': b'\x93NUMPY\x09\x00' + bytes(64)}),
        'NPZ member packed by bzip2': zipped(members, zipfile.ZIP_BZIP2)[:-40],
    }
    for number, (descr, shape) in enumerate(_DECLARATIONS):
        files[f'NPZ that declares {descr[:40]}, {shape[:40]} ({number})'] = zipped(
            members | {'xcoords.npy': npy_header(descr, shape)}
        )
    for cut in sorted({int(cut) for cut in np.linspace(0, len(content) - 1, 40)}):
        files[f'NPZ cut after {cut} bytes'] = content[:cut]
    return files


_DECLARATIONS = (
    ("'<f8'", '(1152921504606846976,)'),
    ("'<f8'", '(1180591620717411303424, 0)'),
    ("'<f8'", '(9223372036854775807, 9223372036854775807, 0)'),
    ("'<f8'", '(-4,)'),
    ("'<f8'", '(True,)'),
    ("'<f8'", '4'),
    ("'<f8'", '(' * 3000 + ')' * 3000),
    ("'<f8'", '__import__("os").system("true")'),
    ("'|O'", '(4,)'),
    ("[('a', '|O')]", '(4,)'),
    ("'<M8[s]'", '(0,)'),
    ("'|V1000000000'", '(0,)'),
    ("'<U1000000000'", '(0,)'),
    ('[' * 90 + ']' * 90, '(4,)'),
    ("'nonsense'", '(4,)'),
    ('None', '(4,)'),
    ("'<f8'", '(4L,)'),
)


# Configurations

CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {'N': 64, 'gridsize': 2, 'nepochs': 5, 'batch_size': 4, 'nphotons': 1e6, 'object_big': True},
    {'model': {'N': 64, 'model_type': 'pinn'}, 'training': {'nepochs': 3, 'output_dir': 'out'}, 'n_groups': None},
    {'execution': {'accelerator': 'cpu', 'learning_rate': 1e-3, 'logger_backend': None}, 'inference': {'debug': False}},
)


def configurations() -> list[str]:
    """Configurations in YAML, plain and with every construct of the format."""
    import yaml

    return [
        *(yaml.safe_dump(tree, default_flow_style=flow) for tree in CONFIGURATIONS for flow in (False, True)),
        'nepochs: &a 5\nbatch_size: *a\n',
        '? nepochs\n: !!int "5"\n--- |\n text\n... # comment\n',
        '%YAML 1.1\n---\n!!map {train_data_file: >-\n  folded\n  text, n_groups: 0x1F, x: 1:30:00, y: 2026-01-01}\n',
    ]


# Workflow folders


def diffraction_files(folder: Path) -> list[bytes]:
    """``diffraction.h5`` of the workflow folder ``folder``: as it is, and as every hostile case makes it."""
    good = (folder / 'diffraction.h5').read_bytes()
    files = [good]
    for make, _ in hostile_hdf5.CASES.values():
        with TemporaryDirectory() as name:
            (Path(name) / 'diffraction.h5').write_bytes(good)
            make(Path(name))
            files.append((Path(name) / 'diffraction.h5').read_bytes())
    return files


# Resume states


def damaged_resume_states(state: bytes) -> dict[str, bytes]:
    """Resume states whose container is whole, and whose header says what no run has written."""
    key = 'ptychopinn_torch_plugin.resume'
    length = int.from_bytes(state[:8], 'little')
    table, data = json.loads(state[8 : 8 + length]), state[8 + length :]
    text = table['__metadata__'][key]
    header: Table = json.loads(text)
    entry = header['history'][0]
    changed: dict[str, object] = {
        'header is no JSON': 'nonsense',
        'header is a list': [],
        'header is nested deeply': text[:-1] + ', "extra": ' + '[' * 50_000 + ']' * 50_000 + '}',
        'header gives a field twice': text[:-1] + ', "format_version": 2}',
        'header holds a million values': header | {'history': [0] * 1_000_000},
        'header without a fingerprint': {name: value for name, value in header.items() if name != 'fingerprint'},
        'header with a field of its own': header | {'surprise': 1},
        'header of another format': header | {'format_version': 1},
        'no epoch': header | {'history': []},
        'epoch 9 alone': header | {'history': [entry | {'epoch': 9}]},
        'epoch 0': header | {'history': [entry | {'epoch': 0}]},
        'an epoch twice': header | {'history': [entry, entry]},
        'a NaN loss': header | {'history': [entry | {'training': float('nan')}]},
        'a loss of text': header | {'history': [entry | {'training': 'low'}]},
        'a validation loss in some epochs': header
        | {'history': [entry | {'validation': 1.0}, entry | {'epoch': 2, 'validation': None}]},
        'a loss scale of text': header | {'loss_scale': 'x'},
        'settings of text': header | {'fingerprint': header['fingerprint'] | {'settings': 'x'}},
    }
    return {
        fault: put_together(
            table | {'__metadata__': {key: value if isinstance(value, str) else json.dumps(value)}}, data
        )
        for fault, value in changed.items()
    }
