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
from typing import Annotated, Any, Literal

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
from .precision import loss_scale_of
from .schedules import depends_on_length
from .state import TrainingState, loss_entries

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

_COMPARED: Any = {'data': True, 'probe': True, 'model': True, 'training': True}
_COMPARED |= {'execution': {'checkpoint_monitor', 'checkpoint_mode'}}
"""Settings in which two runs must agree, less the following: those do not change what is computed."""
_FREE = {'training': {'resume', 'threads', 'accelerator', 'devices', 'early_stop_patience'}}
_SCANS = 'scans'


class UnfitStateError(ConfigurationError):
    """A resume state is not there, cannot be read, or belongs to another run; the message is a part of a sentence."""


class ResumeHeader(BaseModel):
    """Everything of a state that is not a tensor."""

    model_config = ConfigDict(frozen=True, extra='forbid', allow_inf_nan=False)

    format_version: Literal[2]
    fingerprint: dict[str, Any]
    history: tuple[LossEntry, ...] = Field(min_length=1, max_length=MAX_EPOCHS)
    loss_scale: tuple[Annotated[float, Field(gt=0)], Annotated[int, Field(ge=0, le=10**9)]] | None


def fingerprint_of(config: Config, scans: Sequence[RawScan]) -> dict[str, Any]:
    """Return what a state must have in common with the run that continues from it, as a JSON object."""
    tree = config.model_dump(mode='json', include=_COMPARED, exclude=_FREE)
    settings = {f'{section}.{name}': value for section, fields in tree.items() for name, value in fields.items()}
    if not depends_on_length(config):
        del settings['training.epochs']
    return settings | {_SCANS: [_digest(scan) for scan in scans], 'torch': torch.__version__}


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return in a few words why a state does not fit; None where it does."""
    for name in sorted(found.keys() | expected.keys()):
        before, now = found.get(name), expected.get(name)
        if before != now:
            other = f'{printable(name)} was {printable(repr(before))} and is {now!r}'
            return 'it belongs to other scans' if name == _SCANS else other
    return None


def write_state(
    folder: Path, fingerprint: dict[str, Any], state: TrainingState, optimizer: Optimizer, precision: Precision
) -> None:
    """Write the state into ``folder``; a kill at any moment leaves the old or the new one whole.

    Args:
        folder: the output folder.
        fingerprint: that of the run.
        state: the run after its finished epochs.
        optimizer: after its last step.
        precision: the plugin; that of float16 has a loss scaler.

    Raises:
        OutputError: the file cannot be written.
    """
    header = ResumeHeader(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        history=loss_entries(state.history),
        loss_scale=loss_scale_of(precision),
    )
    moments = {
        f'{_OPTIMIZER}{number}.{name}': value.detach().cpu()
        for number, values in optimizer.state_dict()['state'].items()
        for name, value in values.items()
    }
    # Copies: the writer refuses tensors that share memory, as those of an epoch do that is the best one.
    best = {_BEST + name: tensor.clone() for name, tensor in (state.best or state.weights).items()}
    tensors = moments | {_MODULE + name: tensor for name, tensor in state.weights.items()} | best
    content = save({name: one.contiguous() for name, one in tensors.items()}, {HEADER_KEY: header.model_dump_json()})
    write_atomically(folder / RESUME_FILE, content)


def remove_state(folder: Path) -> None:
    """Remove the state of a run that is finished."""
    (folder / RESUME_FILE).unlink(missing_ok=True)


def find_state(folder: Path, config: Config, fingerprint: Mapping[str, Any], module: nn.Module) -> TrainingState | None:
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
        if state.epoch >= config.training.epochs:
            raise UnfitStateError(f'its {state.epoch} epochs are finished, training.epochs = {config.training.epochs}')
    except UnfitStateError as error:
        if mode == 'must':
            raise UnfitStateError(
                f"training.resume = 'must': the state of a stopped run in {folder} cannot be used, {error}. Choose the "
                "folder and the settings of that run, or set training.resume to 'auto'."
            ) from error
        if (folder / RESUME_FILE).exists():
            logger.warning('Training starts anew, the state of a stopped run does not fit: %s.', error)
        return None
    logger.info('Resuming after epoch %d, the last one that the stopped run finished.', state.epoch)
    return state


def read_state(folder: Path, fingerprint: Mapping[str, Any], module: nn.Module) -> TrainingState:
    """Read and check the state in ``folder``.

    Raises:
        UnfitStateError: it is not there, not readable, or does not fit ``fingerprint`` and ``module``.
    """
    path = folder / RESUME_FILE
    if path.is_symlink() or not path.is_file():
        raise UnfitStateError(f'there is no {RESUME_FILE}')
    try:
        with open_tensor_file(path, HEADER_KEY, framework='pt', follow_links=False) as (file, document):
            header = _read_header(document)
            difference = _difference(header.fingerprint, fingerprint)
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
            tensors = {name: file.get_tensor(name) for name in found}
    except (ModelFileError, OSError) as error:
        raise UnfitStateError(f'{RESUME_FILE} is damaged or not a resume state of this version') from error
    _check_values(tensors)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _without_prefix(_OPTIMIZER, tensors).items():
        number, _, moment = name.partition('.')
        moments.setdefault(int(number), {})[moment] = tensor
    return TrainingState(
        history=[LossRecord(entry.epoch, entry.training, entry.validation) for entry in header.history],
        best=_without_prefix(_BEST, tensors),
        weights=_without_prefix(_MODULE, tensors),
        moments=moments,
        loss_scale=header.loss_scale,
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
