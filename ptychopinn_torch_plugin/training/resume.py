"""The resume state: all that a stopped run needs to go on as if it had never been stopped.

One safetensors file in the run's own output folder, tensors as tensors, everything else as one JSON header; no pickle
is written or read, and no path or name from the file is followed. It is written after every epoch and when a run
stops, and removed when a run comes to its end. A state that does not fit the settings, the scans or the installed torch
is not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..config import Config
from ..data.scan import RawScan
from ..errors import ConfigurationError
from ..storage.atomic import write_atomically
from ..storage.model_file import LossEntry
from ..types import LossRecord
from .schedules import Schedule, depends_on_length
from .state import Course, Weights

logger = logging.getLogger(__name__)

RESUME_FILE = 'resume.safetensors'
HEADER_KEY = 'ptychopinn_torch_plugin.resume'
FORMAT_VERSION = 1

_NUMPY_KEYS = 624
"""Words of the Mersenne twister."""

FINGERPRINT_PATTERNS = 256
"""Patterns of a scan, evenly spread, that its fingerprint is made of: reading all of a large scan would take long."""

_NO_MATTER = {
    'data': set[str](),
    'probe': set[str](),
    'model': set[str](),
    'training': {'resume', 'threads', 'accelerator', 'devices', 'early_stop_patience'},
    'execution': {
        'deterministic',
        'kernels',
        'workers',
        'pin_memory',
        'persistent_workers',
        'prefetch_factor',
        'progress_bar',
        'checkpoint_top_k',
        'logger',
    },
}
"""Sections that a state must agree with, less the settings that may differ: they change how, not what is computed."""


_NumpyRandom = tuple[str, npt.NDArray[np.uint32], int, int, float]


class UnfitStateError(ConfigurationError):
    """A resume state is not there, cannot be read, or belongs to another run."""


class Fingerprint(BaseModel):
    """What a state must have in common with the run that goes on from it."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    settings: dict[str, Any]
    scans: tuple[str, ...]
    torch: str

    @classmethod
    def of(cls, config: Config, scans: Sequence[RawScan]) -> Fingerprint:
        """The fingerprint of a run."""
        settings = {
            f'{section}.{name}': value
            for section, fields in config.model_dump(mode='json').items()
            if section in _NO_MATTER
            for name, value in fields.items()
            if name not in _NO_MATTER[section]
        }
        if not depends_on_length(config):
            del settings['training.epochs']
        return cls(settings=settings, scans=tuple(_digest(scan) for scan in scans), torch=torch.__version__)

    def difference(self, wanted: Fingerprint) -> str | None:
        """Why a state of this fingerprint does not fit ``wanted``, in a few words; None where it does."""
        for name in sorted(self.settings.keys() | wanted.settings.keys()):
            before, now = self.settings.get(name), wanted.settings.get(name)
            if before != now:
                return f'{name} was {before!r} and is {now!r}'
        if self.scans != wanted.scans:
            return 'it belongs to other scans'
        if self.torch != wanted.torch:
            return f'it was written under torch {self.torch}, this is {wanted.torch}'
        return None


class ResumeHeader(BaseModel):
    """Everything of a state that is not a tensor."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    format_version: Literal[1]
    fingerprint: Fingerprint
    epoch: int = Field(ge=0)
    batch: int = Field(ge=0)
    loss_sum: float
    weight_sum: float = Field(ge=0)
    history: tuple[LossEntry, ...]
    optimizer_groups: list[dict[str, Any]]
    schedule: dict[str, Any] | None
    scaler: dict[str, Any]
    numpy_random: tuple[int, int, float]
    checkpoints: dict[int, float]


class ResumeState(NamedTuple):
    """A state in memory."""

    header: ResumeHeader
    tensors: dict[str, Tensor]

    def course(self) -> Course:
        """Where the run stood."""
        header = self.header
        history = [LossRecord(entry.epoch, entry.training, entry.validation) for entry in header.history]
        best = _under('best.', self.tensors)
        return Course(header.epoch, header.batch, header.loss_sum, header.weight_sum, history, best or None)


class Machinery(NamedTuple):
    """The moving parts of a run, whose states make it repeatable."""

    trainer: pl.Trainer
    module: pl.LightningModule
    schedule: Schedule | None


def capture(
    machinery: Machinery, course: Course, fingerprint: Fingerprint, checkpoints: Mapping[int, float]
) -> ResumeState:
    """The state after the batch that was finished last; tensors are copied to the CPU."""
    trainer, module, schedule = machinery
    optimizer = trainer.optimizers[0].state_dict()
    _, keys, position, has_gauss, gauss = cast(_NumpyRandom, np.random.get_state(legacy=True))
    header = ResumeHeader(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        epoch=course.epoch,
        batch=course.batch,
        loss_sum=course.loss_sum,
        weight_sum=course.weight_sum,
        history=tuple(
            LossEntry(epoch=one.epoch, training=one.training, validation=one.validation) for one in course.history
        ),
        optimizer_groups=optimizer['param_groups'],
        schedule=None if schedule is None else schedule.state_dict(),
        scaler=trainer.precision_plugin.state_dict(),
        numpy_random=(position, has_gauss, gauss),
        checkpoints=dict(checkpoints),
    )
    moments = {
        f'{index}.{name}': torch.as_tensor(value)
        for index, state in optimizer['state'].items()
        for name, value in state.items()
    }
    is_accumulating = course.batch % trainer.accumulate_grad_batches > 0
    gradients = {name: one.grad for name, one in module.named_parameters() if is_accumulating and one.grad is not None}
    tensors = {
        **_over('module.', module.state_dict()),
        **_over('optimizer.', moments),
        **_over('gradient.', gradients),
        **_over('best.', course.best or {}),
        'random.torch': torch.get_rng_state(),
        'random.numpy': torch.from_numpy(keys.copy()),
    }
    return ResumeState(header, tensors)


def restore_module(module: pl.LightningModule, state: ResumeState) -> None:
    """Put the module alone where it was, for what has to be known before the first batch.

    Raises:
        UnfitStateError: a tensor is missing or of another shape.
    """
    try:
        module.load_state_dict(_under('module.', state.tensors))
    except (KeyError, RuntimeError) as error:
        raise _damaged(error) from error


def restore(machinery: Machinery, state: ResumeState) -> None:
    """Put every moving part where it was.

    Raises:
        UnfitStateError: a tensor is missing or of another shape.
    """
    trainer, module, schedule = machinery
    header, tensors = state
    try:
        # What is learned beside the network came back before the epoch began, and may have had its turn since.
        weights = {
            name: value for name, value in _under('module.', tensors).items() if not name.startswith('unknowns.')
        }
        module.load_state_dict(weights, strict=False)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under('optimizer.', tensors).items():
            index, _, key = name.partition('.')
            moments.setdefault(int(index), {})[key] = tensor
        optimizer = trainer.optimizers[0]
        optimizer.load_state_dict({'state': moments, 'param_groups': header.optimizer_groups})
        for parameter, values in optimizer.state.items():
            if any(value.ndim and value.shape != parameter.shape for value in values.values()):
                raise ValueError('a moment of the optimiser has another shape than its parameter')
        if schedule is not None:
            if (header.schedule or {}).keys() != schedule.state_dict().keys():
                raise ValueError('the schedule has other fields')
            schedule.load_state_dict(header.schedule or {})
        trainer.precision_plugin.load_state_dict(header.scaler)
        gradients = _under('gradient.', tensors)
        for name, parameter in module.named_parameters():
            parameter.grad = gradients[name].to(parameter.device) if name in gradients else None
        torch.set_rng_state(tensors['random.torch'])
        keys = tensors['random.numpy'].numpy().astype(np.uint32)
        np.random.set_state(('MT19937', keys, *header.numpy_random))
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> UnfitStateError:
    return UnfitStateError(
        f'The state in {RESUME_FILE} is damaged ({_first_line(error)}): remove the file, or set training.resume to '
        "'never'."
    )


def write_state(folder: Path, state: ResumeState) -> None:
    """Write the state into ``folder``; a kill at any moment leaves the old or the new one whole.

    Raises:
        OutputError: the file cannot be written.
    """
    header = json.dumps(state.header.model_dump())
    write_atomically(folder / RESUME_FILE, save(state.tensors, metadata={HEADER_KEY: header}))


def remove_state(folder: Path) -> None:
    """Remove the state of a run that is finished."""
    (folder / RESUME_FILE).unlink(missing_ok=True)


def find_state(folder: Path, config: Config, wanted: Fingerprint, module: pl.LightningModule) -> ResumeState | None:
    """The state to go on from, as ``config.training.resume`` says; why there is none is logged.

    Args:
        folder: the run's output folder.
        config: the run's configuration.
        wanted: the run's fingerprint.
        module: the freshly made module that the state must have every tensor of.

    Raises:
        UnfitStateError: the setting is 'must', and there is none that fits.
    """
    mode = config.training.resume
    if mode == 'never':
        return None
    try:
        state = read_state(folder, wanted, module)
        if state.header.epoch >= config.training.epochs:
            raise UnfitStateError(
                f'its {state.header.epoch} epochs are finished, training.epochs = {config.training.epochs}'
            )
    except UnfitStateError as error:
        if mode == 'must':
            raise UnfitStateError(
                f"training.resume = 'must': the state of a stopped run in {folder} cannot be used, {error}. Choose the "
                "folder and the settings of that run, or set training.resume to 'auto'."
            ) from error
        if (folder / RESUME_FILE).exists():
            logger.warning('Training starts anew, the state of a stopped run does not fit: %s.', error)
        return None
    logger.info('Going on after epoch %d, batch %d, where the run was stopped.', state.header.epoch, state.header.batch)
    return state


def read_state(folder: Path, wanted: Fingerprint, module: pl.LightningModule) -> ResumeState:
    """Read and check the state in ``folder``.

    Raises:
        UnfitStateError: it is not there, not readable, or does not fit ``wanted`` and ``module``; a few words say why.
    """
    path = folder / RESUME_FILE
    if path.is_symlink() or not path.is_file():
        raise UnfitStateError(f'there is no {RESUME_FILE}')
    try:
        with safe_open(path, framework='pt') as file:
            header = _read_header(file.metadata() or {})
            difference = header.fingerprint.difference(wanted)
            if difference is not None:
                raise UnfitStateError(difference)
            # Before any of them is read.
            _check_shapes({name: file.get_slice(name).get_shape() for name in file.keys()}, header, module)  # noqa: SIM118
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, TypeError) as error:
        raise UnfitStateError(f'{RESUME_FILE} is damaged ({_first_line(error)})') from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UnfitStateError(f'{RESUME_FILE} is damaged (tensor "{name}" is not finite)')
    return ResumeState(header, tensors)


def _check_shapes(shapes: Mapping[str, Sequence[int]], header: ResumeHeader, module: pl.LightningModule) -> None:
    """Raise unless these are the tensors of a state of ``module``, no more and no less."""
    state = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    needed: dict[str, Sequence[int]] = {f'module.{name}': shape for name, shape in state.items()}
    needed |= {'random.torch': list(torch.get_rng_state().shape), 'random.numpy': [_NUMPY_KEYS]}
    if header.history:
        needed |= {f'best.{name}': shape for name, shape in state.items()}
    parameters = {name: list(one.shape) for name, one in module.named_parameters()}
    possible = {f'gradient.{name}': shape for name, shape in parameters.items()} | needed
    for name, shape in shapes.items():
        is_moment = name.startswith('optimizer.') and (not shape or list(shape) in parameters.values())
        if not is_moment and list(shape) != possible.get(name):
            raise UnfitStateError(f'{RESUME_FILE} is damaged (tensor "{name}" is not one of this network)')
    for name in needed.keys() - shapes.keys():
        raise UnfitStateError(f'{RESUME_FILE} is damaged (tensor "{name}" is missing)')


def _read_header(metadata: Mapping[str, str]) -> ResumeHeader:
    try:
        return ResumeHeader.model_validate(json.loads(metadata[HEADER_KEY]))
    except (KeyError, json.JSONDecodeError, RecursionError) as error:
        raise UnfitStateError(f'{RESUME_FILE} has no readable header') from error
    except ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(str(part) for part in first['loc'])
        raise UnfitStateError(f'the header of {RESUME_FILE} cannot be used ({where}: {first["msg"]})') from error


def _digest(scan: RawScan) -> str:
    chosen = np.unique(np.linspace(0, scan.size - 1, min(scan.size, FINGERPRINT_PATTERNS)).astype(np.int64))
    digest = hashlib.blake2b(repr((scan.name, scan.size, scan.fresnel_numbers)).encode(), digest_size=16)
    for array in (scan.positions, scan.probe, scan.bad_pixels, scan.object_guess, *(scan.counts[i] for i in chosen)):
        digest.update(f'{array.dtype.str}{array.shape}'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _over(prefix: str, tensors: Weights) -> dict[str, Tensor]:
    # Copied: the file's writer refuses tensors that share memory, and the run goes on with its own.
    return {prefix + name: one.detach().cpu().clone().contiguous() for name, one in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
