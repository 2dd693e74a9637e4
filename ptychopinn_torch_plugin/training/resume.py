"""The resume state: what a stopped run needs to continue as if it had not been stopped.

One safetensors file in the output folder, tensors as tensors, everything else as one JSON header; no pickle is written
or read, and no path or name from the file is followed. It is written after every epoch and removed when the run is
finished. It holds the state after the last finished epoch: what the settings and the history determine (the learning
rate, early stopping, the random numbers) is not in it. A state that does not fit the settings, the scans or the
installed torch is not used.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.plugins import Precision
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import Config
from ..data.scan import RawScan
from ..errors import ConfigurationError, ModelFileError
from ..storage.atomic import write_atomically
from ..storage.checked_files import printable
from ..storage.model_file import MAX_EPOCHS, LossEntry
from ..storage.tensor_file import open_tensor_file
from ..storage.training_output import RESUME_FILE
from ..types import LossRecord
from .schedules import depends_on_length
from .state import TrainingState, Weights, loss_entries

logger = logging.getLogger(__name__)

HEADER_KEY = 'ptychopinn_torch_plugin.resume'
FORMAT_VERSION = 2

FINGERPRINT_PATTERNS = 256
"""Patterns of a scan, evenly spread, that its fingerprint is made of: reading all of a large scan would take long."""

_MODULE = 'module.'
_BEST = 'best.'
_OPTIMIZER = 'optimizer.'
_MOMENTS = ('exp_avg', 'exp_avg_sq', 'step')
"""What AdamW stores for every parameter; the last two are not negative, the last one is a scalar."""

_FREE = {
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
        'silence_limit',
    },
}
"""Sections in which two runs must agree, less the settings that may differ: they do not change what is computed."""


class UnfitStateError(ConfigurationError):
    """A resume state is not there, cannot be read, or belongs to another run; the message is a part of a sentence."""


class Fingerprint(BaseModel):
    """What a state must have in common with the run that continues from it."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    settings: dict[str, Any]
    scans: tuple[str, ...]
    torch: str

    @classmethod
    def of(cls, config: Config, scans: Sequence[RawScan]) -> Fingerprint:
        """Return the fingerprint of a run."""
        settings = {
            f'{section}.{name}': value
            for section, fields in config.model_dump(mode='json').items()
            if section in _FREE
            for name, value in fields.items()
            if name not in _FREE[section]
        }
        if not depends_on_length(config):
            del settings['training.epochs']
        return cls(settings=settings, scans=tuple(_digest(scan) for scan in scans), torch=torch.__version__)

    def difference(self, other: Fingerprint) -> str | None:
        """Return in a few words why a state of this fingerprint does not fit ``other``; None where it does."""
        for name in sorted(self.settings.keys() | other.settings.keys()):
            before, now = self.settings.get(name), other.settings.get(name)
            if before != now:
                return f'{printable(name)} was {printable(repr(before))} and is {now!r}'
        if self.scans != other.scans:
            return 'it belongs to other scans'
        if self.torch != other.torch:
            return f'it was written under torch {printable(self.torch)}, this is {other.torch}'
        return None


class LossScale(BaseModel):
    """State of the loss scaler of float16."""

    model_config = ConfigDict(frozen=True, extra='forbid', allow_inf_nan=False)

    scale: float = Field(gt=0.0)
    growth_tracker: int = Field(ge=0, le=10**9)


class ResumeHeader(BaseModel):
    """Everything of a state that is not a tensor."""

    model_config = ConfigDict(frozen=True, extra='forbid', allow_inf_nan=False)

    format_version: Literal[2]
    fingerprint: Fingerprint
    history: tuple[LossEntry, ...] = Field(min_length=1, max_length=MAX_EPOCHS)
    loss_scale: LossScale | None


class ResumeState(NamedTuple):
    """The state after the last finished epoch of a stopped run."""

    history: tuple[LossRecord, ...]
    weights: Weights
    """State of the Lightning module."""
    best: Weights
    """That after the best epoch."""
    moments: Mapping[int, Mapping[str, Tensor]]
    """State of the optimiser, by the number of the parameter."""
    loss_scale: LossScale | None


def write_state(
    folder: Path,
    fingerprint: Fingerprint,
    state: TrainingState,
    weights: Weights,
    optimizer: Optimizer,
    precision: Precision,
) -> None:
    """Write the state into ``folder``; a kill at any moment leaves the old or the new one whole.

    Args:
        folder: the output folder.
        fingerprint: that of the run.
        state: the finished epochs.
        weights: state of the Lightning module after the last of them.
        optimizer: after its last step.
        precision: the plugin; that of float16 has a loss scaler.

    Raises:
        OutputError: the file cannot be written.
    """
    scaler = precision.state_dict()
    header = ResumeHeader(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        history=loss_entries(state.history),
        loss_scale=LossScale(scale=scaler['scale'], growth_tracker=scaler['_growth_tracker']) if scaler else None,
    )
    moments = {
        f'{_OPTIMIZER}{number}.{name}': value.detach().cpu()
        for number, values in optimizer.state_dict()['state'].items()
        for name, value in values.items()
    }
    best = weights if state.best is None else state.best
    tensors = {
        **moments,
        **{_MODULE + name: tensor for name, tensor in weights.items()},
        # The writer refuses tensors that share memory, as those of an epoch that is the best one do.
        **{_BEST + name: tensor.clone() for name, tensor in best.items()},
    }
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {HEADER_KEY: header.model_dump_json()}
    )
    write_atomically(folder / RESUME_FILE, content)


def remove_state(folder: Path) -> None:
    """Remove the state of a run that is finished."""
    (folder / RESUME_FILE).unlink(missing_ok=True)


def find_state(folder: Path, config: Config, fingerprint: Fingerprint, module: nn.Module) -> ResumeState | None:
    """Return the state to continue from, as ``config.training.resume`` says; why there is none is logged.

    Args:
        folder: the output folder.
        config: the configuration of the run.
        fingerprint: that of the run.
        module: the newly made Lightning module, which the state must have every tensor of.

    Raises:
        UnfitStateError: the setting is 'must', and there is none that fits.
    """
    mode = config.training.resume
    if mode == 'never':
        return None
    try:
        state = read_state(folder, fingerprint, module)
        if len(state.history) >= config.training.epochs:
            raise UnfitStateError(
                f'its {len(state.history)} epochs are finished, training.epochs = {config.training.epochs}'
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
    logger.info('Resuming after epoch %d, the last one that the stopped run finished.', len(state.history))
    return state


def read_state(folder: Path, fingerprint: Fingerprint, module: nn.Module) -> ResumeState:
    """Read and check the state in ``folder``.

    Raises:
        UnfitStateError: it is not there, not readable, or does not fit ``fingerprint`` and ``module``.
    """
    path = folder / RESUME_FILE
    if path.is_symlink() or not path.is_file():
        raise UnfitStateError(f'there is no {RESUME_FILE}')
    try:
        with open_tensor_file(path, HEADER_KEY, follow_links=False) as (file, document):
            header = _read_header(document)
            difference = header.fingerprint.difference(fingerprint)
            if difference is not None:
                raise UnfitStateError(difference)
            expected = _declarations(module)
            found = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if not any(name.startswith(_OPTIMIZER) for name in found):
                # The loss scaler may skip all steps of the first epochs.
                expected = {name: one for name, one in expected.items() if not name.startswith(_OPTIMIZER)}
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            if differing:
                raise _damaged(f'tensor "{printable(differing[0])}" is missing, or not one of this network')
            tensors = {name: torch.from_numpy(file.get_tensor(name)) for name in found}
    except (ModelFileError, OSError) as error:
        raise UnfitStateError(f'{RESUME_FILE} is damaged or not a resume state of this version') from error
    _check_values(tensors)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _without_prefix(_OPTIMIZER, tensors).items():
        number, _, moment = name.partition('.')
        moments.setdefault(int(number), {})[moment] = tensor
    return ResumeState(
        tuple(LossRecord(entry.epoch, entry.training, entry.validation) for entry in header.history),
        _without_prefix(_MODULE, tensors),
        _without_prefix(_BEST, tensors),
        moments,
        header.loss_scale,
    )


def _read_header(tree: object) -> ResumeHeader:
    try:
        header = ResumeHeader.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = printable('.'.join(str(part) for part in first['loc']))
        raise _damaged(f'its header, {where}: {first["msg"]}') from error
    if [entry.epoch for entry in header.history] != list(range(1, len(header.history) + 1)):
        raise _damaged('its header, history: the epochs are not 1, 2, 3 and so on')
    if len({entry.validation is None for entry in header.history}) > 1:
        raise _damaged('its header, history: some epochs have a validation loss, others have none')
    return header


def _declarations(module: nn.Module) -> dict[str, tuple[str, list[int]]]:
    """Return dtype and shape of every tensor of a state of ``module``, in the terms of the file format."""
    names = {torch.float32: 'F32', torch.float64: 'F64'}
    declared = {name: (names[one.dtype], list(one.shape)) for name, one in module.state_dict().items()}
    moments = {
        f'{_OPTIMIZER}{number}.{name}': ('F32', [] if name == 'step' else list(parameter.shape))
        for number, parameter in enumerate(module.parameters())
        for name in _MOMENTS
    }
    return moments | {prefix + name: one for prefix in (_MODULE, _BEST) for name, one in declared.items()}


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _damaged(f'tensor "{name}" is not finite')
        if name.startswith(_OPTIMIZER) and not name.endswith(_MOMENTS[0]) and bool((tensor < 0).any()):
            raise _damaged(f'tensor "{name}" has negative values')


def _damaged(reason: str) -> UnfitStateError:
    return UnfitStateError(f'{RESUME_FILE} is damaged ({reason})')


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def _digest(scan: RawScan) -> str:
    chosen = np.unique(np.linspace(0, scan.size - 1, min(scan.size, FINGERPRINT_PATTERNS)).astype(np.int64))
    digest = hashlib.blake2b(repr((scan.name, scan.size, scan.fresnel_numbers)).encode(), digest_size=16)
    for array in (scan.positions, scan.probe, scan.bad_pixels, scan.object_guess, *(scan.counts[i] for i in chosen)):
        digest.update(f'{array.dtype.str}{array.shape}'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
