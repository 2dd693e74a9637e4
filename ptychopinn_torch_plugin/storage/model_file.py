"""Read and write the model file: a safetensors file with weights and probe as tensors, and one JSON header.

No pickle is read or written, and nothing is imported by a name from a file: the configuration in the header selects a
registered generator, and the tensors must be exactly those that this configuration needs. ``specs/model-file.md`` is
normative. Reading the header, as the host process does, does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from ..config import Config, ModelConfig
from ..errors import ModelFileError
from ..limits import MAX_PATTERN_PX, MIN_PATTERN_PX, physical_memory
from ..types import LossRecord
from .atomic import write_atomically
from .checked_files import open_regular, printable
from .tensor_file import open_tensor_file

if TYPE_CHECKING:
    from ..models.base import Generator

MODEL_SUFFIX = '.safetensors'
MODEL_FILE = f'model{MODEL_SUFFIX}'
"""Name of the model file in a training's output folder and in a folder to reconstruct."""
HEADER_KEY = 'ptychopinn_torch_plugin'
FORMAT_VERSION = 1
BACKEND = 'PtychoPINN (PyTorch)'
PROBE_KEY = 'probe'
WEIGHTS_PREFIX = 'generator.'
MAX_PROBE_MODES = 1024
MAX_EPOCHS = 100_000

_FOREIGN_MAGIC = {
    b'PK\x03\x04': 'a zip archive (a PyTorch checkpoint, or an archive of the TensorFlow backend of PtychoPINN)',
    b'\x89HDF\r\n\x1a\n': 'an HDF5 file (a Keras model of the TensorFlow backend, or a product)',
    b'\x80': 'a Python pickle (a PyTorch checkpoint)',
}


class LossEntry(BaseModel):
    """Losses of one epoch in the header."""

    model_config = ConfigDict(frozen=True, extra='forbid', allow_inf_nan=False)

    epoch: int = Field(ge=0, le=MAX_EPOCHS)
    training: float
    validation: float | None = None


class ModelHeader(BaseModel):
    """The JSON header of a model file."""

    model_config = ConfigDict(frozen=True, extra='forbid', allow_inf_nan=False)

    format_version: int
    backend: str
    config: Config
    history: tuple[LossEntry, ...] = Field(max_length=MAX_EPOCHS)
    photons_per_frame: float = Field(ge=0.0)
    """Mean photons per frame of the training scan: the power of the saved probe."""
    scans: tuple[str, ...]
    """Names of the scans that the model was trained on."""
    versions: dict[str, str]
    object_pixel_m: tuple[PositiveFloat, PositiveFloat] | None = None
    """Height and width of an object pixel of the scan of the saved probe, in metres; None where it is not known."""

    @property
    def losses(self) -> tuple[LossRecord, ...]:
        """Return the training history."""
        return tuple(LossRecord(entry.epoch, entry.training, entry.validation) for entry in self.history)

    @property
    def best(self) -> LossRecord | None:
        """Return the losses of the epoch whose weights the file holds; None where no epoch was completed."""
        by, mode = self.config.execution.checkpoint_monitor, self.config.execution.checkpoint_mode
        chosen = min if mode == 'min' else max
        return chosen(
            self.losses,
            key=lambda record: record.training if by == 'loss' or record.validation is None else record.validation,
            default=None,
        )


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Contents of a model file in memory."""

    header: ModelHeader
    weights: Mapping[str, npt.NDArray[np.float32]]
    probe: npt.NDArray[np.complex64]
    """Probe of the (first) training scan, ``(M, H, W)`` complex64, unitary convention."""

    @property
    def config(self) -> Config:
        """Return the configuration of the training."""
        return self.header.config

    @property
    def losses(self) -> tuple[LossRecord, ...]:
        """Return the training history."""
        return self.header.losses

    def build(self) -> Generator:
        """Build the network with its weights, in evaluation mode, on the CPU.

        Raises:
            ModelFileError: the tensors are not exactly those that the configuration needs.
        """
        import torch

        from ..models.registry import build_generator

        _check_shapes({name: array.shape for name, array in self.weights.items()}, self.config.model)
        generator = build_generator(self.config.model)
        generator.load_state_dict({name: torch.from_numpy(array) for name, array in self.weights.items()})
        return generator.eval()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a model depends on."""
    names = ('ptychopinn_torch_plugin', 'torch', 'lightning', 'numpy', 'ptychodus')
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = 'not installed'
    return found


def save_model(path: Path, model: TrainedModel) -> None:
    """Write ``model`` to ``path``; if the process is killed, the old or the new file is there in whole."""
    from safetensors.numpy import save

    tensors = {WEIGHTS_PREFIX + name: np.ascontiguousarray(array) for name, array in model.weights.items()}
    probe = np.ascontiguousarray(model.probe, dtype=np.complex64)
    tensors[PROBE_KEY] = probe.view(np.float32).reshape(*probe.shape, 2)
    write_atomically(path, save(tensors, metadata={HEADER_KEY: model.header.model_dump_json()}))


def read_model_header(path: Path) -> ModelHeader:
    """Read and check the header of a model file, without torch.

    Raises:
        ModelFileError: the file is missing, of another format, of another backend, of a newer version, or damaged.
    """
    _refuse_foreign(path)
    with open_tensor_file(path, HEADER_KEY) as (_, tree):
        return _header_from(tree, path)


def _header_from(tree: object, path: Path) -> ModelHeader:
    _check_backend_and_version(path, tree)
    try:
        return ModelHeader.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = printable('.'.join(str(part) for part in first['loc']))
        raise ModelFileError(
            f'The header of {path.name} cannot be used ({where}: {first["msg"]}): it was written by another version '
            'of the package, or is damaged.'
        ) from error


class _Identity(BaseModel):
    """Fields of the header in every format version."""

    model_config = ConfigDict(extra='ignore')

    format_version: int = Field(ge=0, le=10**6)
    backend: str


def _check_backend_and_version(path: Path, tree: object) -> None:
    try:
        identity = _Identity.model_validate(tree)
    except ValidationError as error:
        raise ModelFileError(f'The header of {path.name} names no backend and format: the file is damaged.') from error
    if identity.format_version != FORMAT_VERSION or identity.backend != BACKEND:
        raise ModelFileError(
            f'{path.name} holds a model of backend "{printable(identity.backend)}", format {identity.format_version}; '
            f'this package reads backend "{BACKEND}", format {FORMAT_VERSION}.'
        )


def load_model(path: Path) -> TrainedModel:
    """Read a model file. Names and shapes of its tensors are compared with its configuration before any is read.

    Raises:
        ModelFileError: as :func:`read_model_header`; tensors are missing, of a wrong type or shape, or not finite.
        ImportError: torch cannot be imported.
    """
    _refuse_foreign(path)
    if path.stat().st_size > physical_memory():
        raise ModelFileError(f'{path.name} is larger than the memory of this machine: no model of this package is.')
    with open_tensor_file(path, HEADER_KEY) as (file, tree):
        header = _header_from(tree, path)
        shapes = {name: _declared_shape(file, name, path) for name in file.keys()}  # noqa: SIM118 - not a mapping
        _check_probe_shape(shapes.pop(PROBE_KEY, None), path)
        _check_shapes(_without_prefix(shapes, path), header.config.model)
        weights = {name.removeprefix(WEIGHTS_PREFIX): _read_tensor(file, name, path) for name in shapes}
        parts = _read_tensor(file, PROBE_KEY, path)
    if not parts.any():
        raise ModelFileError(f'The probe in {path.name} is zero everywhere: the file is damaged.')
    return TrainedModel(header, weights, np.ascontiguousarray(parts).view(np.complex64)[..., 0])


def _declared_shape(file: Any, name: str, path: Path) -> tuple[int, ...]:  # noqa: ANN401 - safetensors has no types
    """Return the shape of the tensor ``name`` in the table of ``file``; its type must be float32."""
    declared = file.get_slice(name)
    if declared.get_dtype() != 'F32':
        raise ModelFileError(f'Tensor "{printable(name)}" in {path.name} is not float32: the file is damaged.')
    return tuple(declared.get_shape())


def _check_probe_shape(shape: tuple[int, ...] | None, path: Path) -> None:
    if shape is None:
        raise ModelFileError(f'{path.name} holds no probe: the file is damaged.')
    sides = range(MIN_PATTERN_PX, MAX_PATTERN_PX + 1)
    if not (
        len(shape) == 4
        and 1 <= shape[0] <= MAX_PROBE_MODES
        and shape[1] in sides
        and shape[2] in sides
        and shape[3] == 2
    ):
        raise ModelFileError(
            f'The probe in {path.name} has shape {shape if len(shape) < 9 else "of many axes"}, not (modes, height, '
            f'width, 2) with sides of {MIN_PATTERN_PX} to {MAX_PATTERN_PX} pixels: the file is damaged.'
        )


def _without_prefix(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, tuple[int, ...]]:
    for name in shapes:
        if not name.startswith(WEIGHTS_PREFIX):
            raise ModelFileError(
                f'Tensor "{printable(name)}" in {path.name} is not part of the format: the file is damaged.'
            )
    return {name.removeprefix(WEIGHTS_PREFIX): shape for name, shape in shapes.items()}


def _check_shapes(found: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raise unless the weights ``found`` are exactly those of the network of ``config``; no memory is taken for it."""
    import torch

    from ..models.registry import build_generator

    with torch.device('meta'):  # shapes without memory
        skeleton = build_generator(config)
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        raise ModelFileError(
            f'The weights in the model file do not fit its own configuration (first of {len(differing)}: '
            f'"{printable(differing[0])}"): the file is damaged; train again or take another copy.'
        )


def _read_tensor(file: Any, name: str, path: Path) -> npt.NDArray[np.float32]:  # noqa: ANN401 - safetensors has no types
    array: npt.NDArray[np.float32] = file.get_tensor(name)
    if not np.isfinite(array).all():
        raise ModelFileError(f'Tensor "{printable(name)}" in {path.name} is not finite float32: the file is damaged.')
    return array


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        raise ModelFileError(f'There is no model file {path}.')
    with open_regular(path, ModelFileError) as file:
        start = file.read(9)
    if start[8:9] == b'{':
        return  # the length of a JSON header in eight bytes, then the header: those bytes may look like any magic
    for magic, kind in _FOREIGN_MAGIC.items():
        if start.startswith(magic):
            raise ModelFileError(
                f'{path.name} is {kind}, but the backend "{BACKEND}" reads {MODEL_SUFFIX} files that it wrote itself: '
                'train a model with it, or choose the reconstructor that this file belongs to.'
            )
