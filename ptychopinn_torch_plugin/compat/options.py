"""PtychoPINN's options: one table, and the rules of those that are more than another name of a setting.

``docs/configuration-names.md`` explains every option; a test compares its names with this table.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .legacy_options import LegacyOptions, Rule

FEATURES_PER_SCALE = 8
"""Feature channels of the first level for ``n_filters_scale`` = 1; its usual value 2 is our usual width."""

_ACCELERATORS = {'auto': 'auto', 'cpu': 'cpu', 'gpu': 'cuda', 'cuda': 'cuda', 'mps': 'mps'}
_ARCHITECTURES = {'cnn': 'patch', 'patch': 'patch', 'unrolled': 'unrolled'}
_SCHEDULERS = {
    'default': 'constant', 'constant': 'constant', 'exponential': 'exponential', 'warmupcosine': 'warmup-cosine',
    'reducelronplateau': 'plateau', 'plateau': 'plateau', 'onecycle': 'one-cycle',
}  # fmt: skip
_MONITORS = {
    'auto': 'auto', 'loss': 'loss', 'train_loss': 'loss', 'val_loss': 'validation_loss',
    'validation_loss': 'validation_loss',
}  # fmt: skip
_PRECISIONS = {'32': '32', '32-true': '32', 'bf16': 'bf16', 'bf16-mixed': 'bf16', '16': '16', '16-mixed': '16'}


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError('give a whole number, at least 1')
    return int(value)


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0:
        raise ValueError('give a number, at least 0')
    return float(value)


def _positive(value: object) -> float:
    number = _real(value)
    if number == 0:
        raise ValueError('give a number above 0')
    return number


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError('give True or False')
    return value


def _weight(value: object) -> bool:
    """Return whether a loss is chosen: one is, at weight 1."""
    if _real(value) not in (0.0, 1.0):
        raise ValueError('one loss is chosen, at weight 1; give 0 or 1')
    return bool(value == 1)


def _word(words: Mapping[str, str], value: object) -> str:
    """Look ``value`` up in ``words``, in capitals or not, with or without hyphens."""
    word = str(value).lower()
    plain = word if word in words else word.replace('-', '').replace('_', '')
    if plain not in words:
        raise ValueError(f'choose one of {", ".join(words)}')
    return words[plain]


def _quantity(value: object) -> str:
    return _word({word: word for word in ('auto', 'counts', 'amplitude')}, value)


def _choice(words: Mapping[str, str], *paths: str) -> Rule:
    """Return a rule that sets ``paths`` to one of ``words``."""

    def rule(options: LegacyOptions, value: object) -> None:
        for path in paths:
            options.set(path, _word(words, value))

    return rule


def _beside(name: str, convert: Callable[[Any], Any]) -> Rule:
    """Return a rule for a field of the result beside the configuration."""
    return lambda options, value: options.data.update({name: convert(value)})


def _number(name: str, path: str) -> Rule:
    """Return a rule for a whole number that the data and the configuration need."""

    def rule(options: LegacyOptions, value: object) -> None:
        options.data[name] = _whole(value)
        options.set(path, options.data[name])

    return rule


def _only(allowed: object, reason: str) -> Rule:
    """Return a rule that takes the value ``allowed`` and refuses every other one."""

    def rule(_options: LegacyOptions, value: object) -> None:
        if value != allowed:
            raise ValueError(reason)

    return rule


def _patch_only(path: str, value_of_unrolled: object, reason: str) -> Rule:
    """Return a rule for a field of the generator "patch"; the unrolled one always has ``value_of_unrolled``."""

    def rule(options: LegacyOptions, value: object) -> None:
        if options.get('model.generator') == 'patch':
            options.set(path, value)
        elif value != value_of_unrolled:
            raise ValueError(f'{reason}; give architecture "cnn", the generator that has one')

    return rule


def _filters(options: LegacyOptions, value: object) -> None:
    width = FEATURES_PER_SCALE * _real(value)
    if width != int(width):
        raise ValueError(f'{FEATURES_PER_SCALE} times it is the width of the network and must be whole')
    options.set('model.width', int(width))


def _object_big(options: LegacyOptions, value: object) -> None:
    if not _truth(value) and options.get('data.group_size') > 1:
        raise ValueError('the patches of a group always share one object array; give True, or gridsize 1')


def _pad_object(options: LegacyOptions, value: object) -> None:
    is_patch = options.get('model.generator') == 'patch'
    if _truth(value) != is_patch:
        raise ValueError(
            'the generator "patch" (architecture "cnn") works at full resolution in the central half only; give True'
            if is_patch
            else 'the generator "unrolled" fills the whole frame; give False, or architecture "cnn"'
        )


def _probe_mask(options: LegacyOptions, value: object) -> None:
    if isinstance(value, bool):
        size = options.data.get('pattern_size')
        if value and size is None:
            raise ValueError('True means a disk of radius N / 4, so give N, too; or give the radius in pixels')
        options.set('probe.mask_radius', size / 4 if value and size else 0.0)
    elif isinstance(value, numbers.Real):
        options.set('probe.mask_radius', _real(value))
    else:
        raise ValueError('give True, False or a radius in pixels; multiply the probe by a mask of another shape')


def _probe_scale(_options: LegacyOptions, value: object) -> None:
    _positive(value)


def _realspace(options: LegacyOptions, value: object) -> None:
    if _weight(value):
        options.set('model.model_type', 'supervised')


def _loss_mode(options: LegacyOptions, value: object) -> None:
    likelihood = _word({'poisson': 'poisson', 'mae': 'mae'}, value)
    if options.get('model.model_type') == 'supervised':
        options.note('a supervised model is compared with the reference object')
    else:
        options.set('training.likelihood', likelihood)


def _likelihood(likelihood: str) -> Rule:
    def rule(options: LegacyOptions, value: object) -> None:
        if not _weight(value):
            return
        is_default = likelihood == 'poisson'  # nll_weight is 1 unless it is changed
        if options.get('model.model_type') == 'supervised':
            if not (is_default and options.given.get('model_type') == 'supervised'):
                raise ValueError('losses are not mixed, and a supervised model learns in real space; give 0')
            options.note('a supervised model is compared with the reference object')
        elif is_default and 'torch_loss_mode' in options.given and options.given.get('mae_weight') != 1:
            if options.get('training.likelihood') != likelihood:
                options.note('torch_loss_mode chooses the loss')
        else:
            options.set('training.likelihood', likelihood)

    return rule


def _optimizer(options: LegacyOptions, value: object) -> None:
    if _word({'adam': 'adam', 'adamw': 'adamw'}, value) == 'adam':
        options.note('the optimiser is AdamW, which is Adam with a decoupled weight decay')


def _momentum(options: LegacyOptions, value: object) -> None:
    if _real(value):
        options.note('it belongs to the optimiser SGD, which is not used')


def _oversampling(options: LegacyOptions, value: object) -> None:
    if _truth(value):
        options.note('n_groups may always be larger than the number of positions')


def _deterministic(options: LegacyOptions, value: object) -> None:
    # Lightning's "warn" asks for deterministic algorithms where there are any: that is what our True does.
    options.set('execution.deterministic', True if value == 'warn' else _truth(value))


def _checkpointing(options: LegacyOptions, value: object) -> None:
    if not _truth(value):
        options.set('execution.checkpoint_top_k', 0)
    elif 'checkpoint_save_top_k' not in options.given:
        options.set('execution.checkpoint_top_k', max(1, options.get('execution.checkpoint_top_k')))


def _top_k(options: LegacyOptions, value: object) -> None:
    # enable_checkpointing=False keeps none, whatever number stands beside it.
    if options.given.get('enable_checkpointing') is not False:
        options.set('execution.checkpoint_top_k', value)


# The order matters where a rule reads what another one has set: architecture, gridsize and losses come first.
OPTIONS: Mapping[str, str | Rule] = {
    # model
    'N': _beside('pattern_size', _whole),
    'gridsize': lambda options, value: options.set('data.group_size', _whole(value) ** 2),
    'n_filters_scale': _filters,
    'model_type': 'model.model_type',
    'architecture': _choice(_ARCHITECTURES, 'model.generator'),
    'amp_activation': _patch_only(
        'model.amplitude_activation', 'softplus', 'the unrolled network has no activation of amplitudes'
    ),
    'object_big': _object_big,
    'probe_big': _patch_only('model.probe_big', True, 'the unrolled network always fills the whole frame'),
    'probe_mask': _probe_mask,
    'pad_object': _pad_object,
    'probe_scale': _probe_scale,
    'gaussian_smoothing_sigma': 'probe.smoothing_sigma',
    # training
    'train_data_file': _beside('train_data_file', Path),
    'test_data_file': _beside('test_data_file', Path),
    'batch_size': 'training.batch_size',
    'nepochs': 'training.epochs',
    'realspace_weight': _realspace,
    'realspace_mae_weight': _only(0, 'objects are compared by squared differences; give 0, and realspace_weight 1'),
    'torch_loss_mode': _loss_mode,
    'nll_weight': _likelihood('poisson'),
    'mae_weight': _likelihood('mae'),
    'nphotons': _beside('nphotons', _positive),
    'n_groups': _number('n_groups', 'data.groups_per_epoch'),
    'n_images': _number('n_groups', 'data.groups_per_epoch'),
    'enable_oversampling': _oversampling,
    'n_subsample': _number('n_subsample', 'data.subsample'),
    'subsample_seed': 'data.subsample_seed',
    'neighbor_count': 'data.neighbor_count',
    'positions_provided': _only(True, 'there is no reconstruction without positions; give True'),
    'probe_trainable': 'training.probe_trainable',
    'intensity_scale_trainable': 'training.intensity_scale_trainable',
    'output_dir': _beside('output_dir', Path),
    'sequential_sampling': 'data.sequential_sampling',
    'optimizer': _optimizer,
    'momentum': _momentum,
    # inference
    'model_path': _beside('model_path', Path),
    'debug': _only(
        False, "give False, and logging.getLogger('ptychopinn_torch_plugin').setLevel('DEBUG') for a longer log"
    ),
    # execution
    'accelerator': _choice(_ACCELERATORS, 'training.accelerator', 'inference.accelerator'),
    'strategy': _only('auto', 'several devices always train with DDP; give "auto"'),
    'deterministic': _deterministic,
    'gradient_clip_val': 'training.gradient_clip',
    'gradient_clip_algorithm': _only('norm', 'gradients are limited by their norm; give "norm"'),
    'accum_steps': 'training.accumulate',
    'num_workers': 'execution.workers',
    'pin_memory': 'execution.pin_memory',
    'persistent_workers': 'execution.persistent_workers',
    'prefetch_factor': 'execution.prefetch_factor',
    'learning_rate': 'training.learning_rate',
    'scheduler': _choice(_SCHEDULERS, 'training.scheduler'),
    'enable_progress_bar': 'execution.progress_bar',
    'enable_checkpointing': _checkpointing,
    'checkpoint_save_top_k': _top_k,
    'checkpoint_monitor_metric': _choice(_MONITORS, 'execution.checkpoint_monitor'),
    'checkpoint_mode': 'execution.checkpoint_mode',
    'early_stop_patience': 'training.early_stop_patience',
    'logger_backend': lambda options, value: options.set('execution.logger', str(value).lower()),
    'inference_batch_size': 'inference.batch_size',
    'precision': _choice(_PRECISIONS, 'training.precision'),
    'devices': 'training.devices',
    'backend': _only('pytorch', 'this is the backend "pytorch"'),
    # of this package
    'seed': 'training.seed',
    'refine_epochs': 'refinement.refine_epochs',
    'diffraction_quantity': _beside('diffraction_quantity', _quantity),
    'dialect': _beside('diffraction_quantity', _quantity),
}
"""What becomes of every option: a string is the setting that takes its value, a function is the rule for it."""
