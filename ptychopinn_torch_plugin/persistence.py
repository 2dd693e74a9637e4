"""The model file: one safetensors file, weights and probe as tensors, everything else as one JSON header.

No pickle is read or written, and nothing in a file is imported by name: the header's configuration chooses from the
registry of generators, and the tensors must be exactly those that this configuration needs. ``specs/model-file.md`` is
normative. Reading the header does not import torch (the host process does it).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from .config import Config
from .errors import ModelFileError
from .types import LossRecord

if TYPE_CHECKING:
    from .model.generator import Generator

MODEL_SUFFIX = '.safetensors'
MODEL_FILE = f'model{MODEL_SUFFIX}'
"""Name of the model file in a training's output folder and in a folder to reconstruct."""
HEADER_KEY = 'ptychopinn_torch_plugin'
FORMAT_VERSION = 1
BACKEND = 'PtychoPINN (PyTorch)'
PROBE_KEY = 'probe'
WEIGHTS_PREFIX = 'generator.'

_FOREIGN_MAGIC = {
    b'PK\x03\x04': 'a zip archive (a PyTorch checkpoint, or an archive of the TensorFlow backend of PtychoPINN)',
    b'\x89HDF\r\n\x1a\n': 'an HDF5 file (a Keras model of the TensorFlow backend, or a product)',
    b'\x80': 'a Python pickle (a PyTorch checkpoint)',
}


class LossEntry(BaseModel):
    """Losses of one epoch in the header."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    epoch: int
    training: float
    validation: float | None = None


class ModelHeader(BaseModel):
    """The JSON header of a model file."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    format_version: int
    backend: str
    config: Config
    history: tuple[LossEntry, ...]
    photons_per_frame: float
    """Mean photons per frame of the training scan: the power of the saved probe."""
    scans: tuple[str, ...]
    """Names of the scans that the model was trained on."""
    versions: dict[str, str]

    @property
    def losses(self) -> tuple[LossRecord, ...]:
        """The training history."""
        return tuple(LossRecord(entry.epoch, entry.training, entry.validation) for entry in self.history)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """What a model file holds, in memory."""

    header: ModelHeader
    weights: Mapping[str, npt.NDArray[np.float32]]
    probe: npt.NDArray[np.complex64]
    """Probe of the (first) training scan, ``(M, H, W)`` complex64, unitary convention."""

    @property
    def config(self) -> Config:
        """The configuration that the model was trained with."""
        return self.header.config

    @property
    def losses(self) -> tuple[LossRecord, ...]:
        """The training history."""
        return self.header.losses

    def build(self) -> Generator:
        """The network with its weights, in evaluation mode, on the CPU.

        Raises:
            ModelFileError: the tensors are not exactly those that the configuration needs.
        """
        import torch

        from .model.registry import build_generator

        generator = build_generator(self.config.model)
        expected = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
        found = {name: tensor.shape for name, tensor in self.weights.items()}
        if expected != found:
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ModelFileError(
                f'The weights in the model file do not fit its own configuration (first of {len(differing)}: '
                f'"{differing[0]}"): the file is damaged; train again or take another copy.'
            )
        generator.load_state_dict({name: torch.from_numpy(array) for name, array in self.weights.items()})
        return generator.eval()


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a model computes."""
    names = ('ptychopinn_torch_plugin', 'torch', 'lightning', 'numpy', 'ptychodus')
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = 'not installed'
    return found


def save_model(path: Path, model: TrainedModel) -> None:
    """Write ``model`` to ``path``; a kill at any moment leaves the old or the new file whole."""
    from safetensors.numpy import save

    tensors = {WEIGHTS_PREFIX + name: np.ascontiguousarray(array) for name, array in model.weights.items()}
    probe = np.ascontiguousarray(model.probe, dtype=np.complex64)
    tensors[PROBE_KEY] = probe.view(np.float32).reshape(*probe.shape, 2)
    write_atomically(path, save(tensors, metadata={HEADER_KEY: model.header.model_dump_json()}))


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name beside ``path``, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{uuid4().hex}.tmp')
    try:
        with temporary.open('xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_model_header(path: Path) -> ModelHeader:
    """Read and check the header of a model file, without torch.

    Raises:
        ModelFileError: the file is missing, of another format, of another backend, of a newer version, or damaged.
    """
    _refuse_foreign(path)
    try:
        with safe_open(path, framework='numpy') as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f'{path.name} is not a readable safetensors file ({error}); choose a model file.'
        ) from error
    if HEADER_KEY not in metadata:
        raise ModelFileError(
            f'{path.name} is a safetensors file, but not a model of {BACKEND}: it has no "{HEADER_KEY}" header.'
        )
    _check_backend_and_version(path, metadata[HEADER_KEY])
    try:
        header = ModelHeader.model_validate_json(metadata[HEADER_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(str(part) for part in first['loc'])
        raise ModelFileError(
            f'The header of {path.name} cannot be used ({where}: {first["msg"]}): it was written by another version '
            'of the package, or is damaged.'
        ) from error
    return header


class _Identity(BaseModel):
    """What every version of the header says, whatever else it holds."""

    model_config = ConfigDict(extra='ignore')

    format_version: int
    backend: str


def _check_backend_and_version(path: Path, header: str) -> None:
    try:
        identity = _Identity.model_validate_json(header)
    except ValidationError as error:
        raise ModelFileError(f'The header of {path.name} names no backend and format: the file is damaged.') from error
    if identity.format_version != FORMAT_VERSION or identity.backend != BACKEND:
        raise ModelFileError(
            f'{path.name} holds a model of backend "{identity.backend}", format {identity.format_version}; '
            f'this package reads backend "{BACKEND}", format {FORMAT_VERSION}.'
        )


def load_model(path: Path) -> TrainedModel:
    """Read a model file.

    Raises:
        ModelFileError: as :func:`read_model_header`, or tensors are missing, of a wrong type or not finite.
    """
    header = read_model_header(path)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    probe: npt.NDArray[np.complex64] | None = None
    with safe_open(path, framework='numpy') as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            array = _read_tensor(file, name, path)
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ModelFileError(f'Tensor "{name}" in {path.name} is not finite float32: the file is damaged.')
            if name.startswith(WEIGHTS_PREFIX):
                weights[name.removeprefix(WEIGHTS_PREFIX)] = array
            elif name == PROBE_KEY and array.ndim == 4 and array.shape[-1] == 2:
                probe = np.ascontiguousarray(array).view(np.complex64)[..., 0]
            else:
                raise ModelFileError(f'Tensor "{name}" in {path.name} is not part of the format: the file is damaged.')
    if probe is None:
        raise ModelFileError(f'{path.name} holds no probe: the file is damaged.')
    return TrainedModel(header, weights, probe)


def _read_tensor(file: Any, name: str, path: Path) -> npt.NDArray[Any]:  # noqa: ANN401 - safetensors has no types
    try:
        array: npt.NDArray[Any] = file.get_tensor(name)
    except TypeError as error:  # a dtype that NumPy does not have
        raise ModelFileError(f'Tensor "{name}" in {path.name} is not float32: the file is damaged.') from error
    return array


def _refuse_foreign(path: Path) -> None:
    if not path.is_file():
        raise ModelFileError(f'There is no model file {path}.')
    with path.open('rb') as file:
        start = file.read(9)
    if start[8:9] == b'{':
        return  # the length of a JSON header in eight bytes, then the header: those bytes may look like any magic
    for magic, kind in _FOREIGN_MAGIC.items():
        if start.startswith(magic):
            raise ModelFileError(
                f'{path.name} is {kind}, but the backend "{BACKEND}" reads {MODEL_SUFFIX} files that it wrote itself: '
                'train a model with it, or choose the reconstructor that this file belongs to.'
            )
