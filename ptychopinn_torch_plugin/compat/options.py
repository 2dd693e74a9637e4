"""What becomes of each name: the rules, and the table of names."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .legacy_options import Draft, Name

Rule = Callable[[Draft, Any], None]

FEATURES_PER_SCALE = 8
"""Feature channels of the first level for ``n_filters_scale`` = 1; its usual value 2 is our usual width."""

_ACCELERATORS = {'auto': 'auto', 'cpu': 'cpu', 'gpu': 'cuda', 'cuda': 'cuda', 'mps': 'mps'}
_ARCHITECTURES = {'cnn': 'patch', 'patch': 'patch', 'unrolled': 'unrolled'}
_SCHEDULERS = {
    'default': 'constant',
    'constant': 'constant',
    'exponential': 'exponential',
    'warmupcosine': 'warmup-cosine',
    'reducelronplateau': 'plateau',
    'plateau': 'plateau',
    'onecycle': 'one-cycle',
}
_MONITORS = {
    'auto': 'auto',
    'loss': 'loss',
    'train_loss': 'loss',
    'val_loss': 'validation_loss',
    'validation_loss': 'validation_loss',
}


def _field(path: str) -> Rule:
    """The value as it is; the tree's own bounds judge it."""
    return lambda draft, value: draft.set(path, value)


def _choice(path: str, words: dict[str, str]) -> Rule:
    """One of ``words``, in capitals or not, with or without hyphens."""

    def rule(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
        word = str(value).lower()
        plain = word if word in words else word.replace('-', '').replace('_', '')
        if plain not in words:
            raise ValueError(f'choose one of {", ".join(words)}')
        draft.set(path, words[plain])

    return rule


def _data_path(name: str) -> Rule:
    return lambda draft, value: draft.data.update({name: Path(value)})


def _whole(value: Any, least: int = 1) -> int:  # noqa: ANN401 - whatever was given
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f'give a whole number, at least {least}')
    return int(value)


def _real(value: Any) -> float:  # noqa: ANN401 - whatever was given
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0:
        raise ValueError('give a number, at least 0')
    return float(value)


def _truth(value: Any) -> bool:  # noqa: ANN401 - whatever was given
    if not isinstance(value, bool):
        raise ValueError('give True or False')
    return value


def _pattern_size(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    draft.data['pattern_size'] = _whole(value)


def _gridsize(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    draft.set('data.group_size', _whole(value) ** 2)


def _filters(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    width = FEATURES_PER_SCALE * _real(value)
    if width != int(width):
        raise ValueError(f'{FEATURES_PER_SCALE} times it is the width of the network and must be whole')
    draft.set('model.width', int(width))


def _patch_only(path: str, value_of_others: object, what: str) -> Rule:
    """A field of the generator "patch"; the unrolled one has one fixed behaviour, ``value_of_others``."""

    def rule(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
        if draft.get('model.generator') != 'patch' and value != value_of_others:
            raise ValueError(f'{what}; give architecture "cnn", the generator this belongs to')
        if draft.get('model.generator') == 'patch':
            draft.set(path, value)

    return rule


def _object_big(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if not _truth(value) and draft.get('data.group_size') > 1:
        raise ValueError('the patches of a group always share one canvas; give True, or gridsize 1')


def _pad_object(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    is_patch = draft.get('model.generator') == 'patch'
    if _truth(value) != is_patch:
        raise ValueError(
            'the generator "patch" (architecture "cnn") works at full resolution in the central half only; give True'
            if is_patch
            else 'the generator "unrolled" fills the whole frame; give False, or architecture "cnn"'
        )


def _probe_mask(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if isinstance(value, bool):
        size = draft.data.get('pattern_size')
        if value and size is None:
            raise ValueError('True means a disk of radius N / 4, so give N, too; or give the radius in pixels')
        draft.set('probe.mask_radius', size / 4 if value and size else 0.0)
        return
    if not isinstance(value, numbers.Real):
        raise ValueError('give True, False or a radius in pixels; multiply the probe by a mask of another shape')
    draft.set('probe.mask_radius', _real(value))


def _probe_scale(_draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if _real(value) == 0:
        raise ValueError('give a number above 0')


def _positions_provided(_draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if not _truth(value):
        raise ValueError('there is no reconstruction without positions; give True')


def _weight_of(likelihood: str) -> Rule:
    def rule(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
        if _is_chosen(value):
            if draft.get('model.model_type') == 'supervised':
                raise ValueError('losses are not mixed, and a supervised model learns in real space; give 0')
            draft.set('training.likelihood', likelihood)

    return rule


def _realspace(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if _is_chosen(value):
        draft.set('model.model_type', 'supervised')


def _realspace_mae(_draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if _is_chosen(value):
        raise ValueError('objects are compared by squared differences; give 0, and realspace_weight 1')


def _is_chosen(value: Any) -> bool:  # noqa: ANN401 - whatever was given
    if _real(value) not in (0.0, 1.0):
        raise ValueError('one loss is chosen, at weight 1; give 0 or 1')
    return bool(value == 1)


def _nphotons(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if _real(value) == 0:
        raise ValueError('give the mean photons of a pattern, more than 0')
    draft.data['nphotons'] = float(value)


def _groups(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    number = _whole(value)
    draft.set('data.groups_per_epoch', number)
    draft.data['n_groups'] = number


def _images(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    warnings.warn('n_images is the old name of n_groups: write n_groups.', DeprecationWarning, stacklevel=4)
    _groups(draft, value)


def _subsample(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    number = _whole(value)
    draft.set('data.subsample', number)
    draft.data['n_subsample'] = number


def _debug(_draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if _truth(value):
        raise ValueError(
            "give False, and logging.getLogger('ptychopinn_torch_plugin').setLevel('DEBUG') for a talkative log"
        )


def _accelerator(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    for section in ('training', 'inference'):
        _choice(f'{section}.accelerator', _ACCELERATORS)(draft, value)


def _strategy(_draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if value != 'auto':
        raise ValueError('one device trains at a time; give "auto"')


def _deterministic(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    # Lightning's "warn" asks for deterministic algorithms where there are any: that is what our True does.
    draft.set('execution.deterministic', True if value == 'warn' else _truth(value))


def _checkpointing(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    wanted = draft.given.get('checkpoint_save_top_k')
    if not _truth(value):
        draft.set('execution.checkpoint_top_k', 0)
    elif wanted is None:
        draft.set('execution.checkpoint_top_k', max(1, draft.get('execution.checkpoint_top_k')))


def _top_k(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    # enable_checkpointing=False keeps none, whatever number stands beside it.
    if draft.given.get('enable_checkpointing') is not False:
        draft.set('execution.checkpoint_top_k', value)


def _logger(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    draft.set('execution.logger', str(value).lower())


def _backend(_draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if value != 'pytorch':
        raise ValueError('this is the backend "pytorch"')


def _dialect(draft: Draft, value: Any) -> None:  # noqa: ANN401 - whatever was given
    if value not in ('auto', 'counts', 'amplitude'):
        raise ValueError('choose one of auto, counts, amplitude')
    draft.data['dialect'] = value


# The order matters where a rule looks at what another one has set: architecture, gridsize and losses come first.
NAMES: tuple[Name, ...] = (
    Name('N', 'model', 'a check', 'Side of the patterns in pixels; other patterns are refused.', _pattern_size),
    Name('gridsize', 'model', 'data.group_size', 'Groups of gridsize² positions.', _gridsize),
    Name(
        'n_filters_scale',
        'model',
        'model.width',
        'Feature channels of the first level: 8 times the value.',
        _filters,
    ),
    Name('model_type', 'model', 'model.model_type', '"pinn" or "supervised".', _field('model.model_type')),
    Name(
        'architecture',
        'model',
        'model.generator',
        '"cnn" is the generator "patch", one pass from patterns to patches; "unrolled" is ours and taken where no name '
        'is given. Others are refused.',
        _choice('model.generator', _ARCHITECTURES),
    ),
    Name(
        'amp_activation',
        'model',
        'model.amplitude_activation',
        'softplus, sigmoid, relu or swish, for architecture "cnn". The unrolled network has none: anything but '
        '"softplus" is refused with it.',
        _patch_only('model.amplitude_activation', 'softplus', 'the unrolled network has no activation of amplitudes'),
    ),
    Name(
        'object_big',
        'model',
        'nothing',
        'True is how groups always work: their patches share one canvas. False is refused, except with gridsize 1, '
        'where both are the same.',
        _object_big,
    ),
    Name(
        'probe_big',
        'model',
        'model.probe_big',
        'For architecture "cnn": coarse outside of the central half. The unrolled network always fills the frame: '
        'False is refused with it.',
        _patch_only('model.probe_big', True, 'the unrolled network always fills the whole frame'),
    ),
    Name(
        'probe_mask',
        'model',
        'probe.mask_radius',
        'True: a disk of radius N / 4 around the centre of power; a number: its radius in pixels. Arrays are refused.',
        _probe_mask,
    ),
    Name(
        'pad_object',
        'model',
        'nothing',
        'True with architecture "cnn", False with the unrolled network, is how they work; the contrary is refused.',
        _pad_object,
    ),
    Name(
        'probe_scale',
        'model',
        'nothing',
        'A common factor of the probe. The photon scale is fitted to the counts, so every value above 0 gives the same '
        'result, and 0 is refused. To take a probe as given, set probe.scale of the tree.',
        _probe_scale,
    ),
    Name(
        'gaussian_smoothing_sigma',
        'model',
        'probe.smoothing_sigma',
        'Standard deviation in pixels of a Gaussian that the probe is convolved with.',
        _field('probe.smoothing_sigma'),
    ),
    Name('train_data_file', 'training', 'the data', 'Taken where train_data is None.', _data_path('train_data_file')),
    Name('test_data_file', 'training', 'the data', 'Taken where test_data is None.', _data_path('test_data_file')),
    Name('batch_size', 'training', 'training.batch_size', 'Groups in a batch.', _field('training.batch_size')),
    Name('nepochs', 'training', 'training.epochs', 'Epochs.', _field('training.epochs')),
    Name(
        'realspace_weight',
        'training',
        'model.model_type',
        '1: a supervised model, squared differences to the reference object. Weights other than 0 and 1 are refused.',
        _realspace,
    ),
    Name(
        'realspace_mae_weight',
        'training',
        'nothing',
        '0. Anything else is refused: objects are compared by squared differences.',
        _realspace_mae,
    ),
    Name(
        'nll_weight',
        'training',
        'training.likelihood',
        '1: the Poisson likelihood of the counts. Mixed losses, and weights other than 0 and 1, are refused.',
        _weight_of('poisson'),
    ),
    Name(
        'mae_weight',
        'training',
        'training.likelihood',
        '1: absolute amplitude differences. Refused as nll_weight.',
        _weight_of('mae'),
    ),
    Name(
        'nphotons',
        'training',
        'the data',
        'Mean photons per pattern of amplitudes that are normalised (dialect "amplitude"). Where the photons were '
        'counted the counts are taken, and a number that differs from them is reported.',
        _nphotons,
    ),
    Name(
        'n_groups',
        'training',
        'data.groups_per_epoch',
        'Groups that raw data are cut into, and groups drawn in one epoch from the positions in them.',
        _groups,
    ),
    Name('n_images', 'training', 'data.groups_per_epoch', 'Old name of n_groups; warns.', _images),
    Name(
        'n_subsample',
        'training',
        'data.subsample',
        'Positions of raw data to use, drawn at random.',
        _subsample,
    ),
    Name('subsample_seed', 'training', 'data.subsample_seed', 'Fixes that draw.', _field('data.subsample_seed')),
    Name('neighbor_count', 'training', 'data.neighbor_count', 'K.', _field('data.neighbor_count')),
    Name(
        'positions_provided',
        'training',
        'nothing',
        'True. False is refused: there is no reconstruction without positions.',
        _positions_provided,
    ),
    Name(
        'probe_trainable',
        'training',
        'training.probe_trainable',
        'The probe is learned with the network.',
        _field('training.probe_trainable'),
    ),
    Name(
        'intensity_scale_trainable',
        'training',
        'training.intensity_scale_trainable',
        'The photon scale is learned with the network; False: it is fitted once, before.',
        _field('training.intensity_scale_trainable'),
    ),
    Name(
        'output_dir',
        'training',
        'the result',
        'Folder of the model, its log and reconstruction.npz; without it they stay in memory.',
        _data_path('output_dir'),
    ),
    Name(
        'sequential_sampling',
        'training',
        'data.sequential_sampling',
        'Anchors in the order of the scan.',
        _field('data.sequential_sampling'),
    ),
    Name('model_path', 'inference', 'the model', 'Taken where no models are given.', _data_path('model_path')),
    Name('debug', 'inference', 'nothing', 'False. True is refused: set the level of the log instead.', _debug),
    Name(
        'accelerator',
        'execution',
        'training.accelerator, inference.accelerator',
        'auto, cpu, gpu, cuda, mps; "tpu" is refused.',
        _accelerator,
    ),
    Name('strategy', 'execution', 'nothing', '"auto". Others are refused: one device trains at a time.', _strategy),
    Name(
        'deterministic',
        'execution',
        'execution.deterministic',
        'True, False; "warn" is the same as True.',
        _deterministic,
    ),
    Name('gradient_clip_val', 'execution', 'training.gradient_clip', 'Largest norm.', _field('training.gradient_clip')),
    Name(
        'accum_steps',
        'execution',
        'training.accumulate',
        'Batches in one step of the optimiser.',
        _field('training.accumulate'),
    ),
    Name('num_workers', 'execution', 'execution.workers', 'Loader processes.', _field('execution.workers')),
    Name('pin_memory', 'execution', 'execution.pin_memory', 'As in Lightning.', _field('execution.pin_memory')),
    Name(
        'persistent_workers',
        'execution',
        'execution.persistent_workers',
        'As in Lightning.',
        _field('execution.persistent_workers'),
    ),
    Name(
        'prefetch_factor',
        'execution',
        'execution.prefetch_factor',
        'As in Lightning.',
        _field('execution.prefetch_factor'),
    ),
    Name(
        'learning_rate',
        'execution',
        'training.learning_rate',
        'Largest rate of the schedule.',
        _field('training.learning_rate'),
    ),
    Name(
        'scheduler',
        'execution',
        'training.scheduler',
        '"Default" is constant; Exponential, WarmupCosine, ReduceLROnPlateau, and OneCycle (ours). Others are refused.',
        _choice('training.scheduler', _SCHEDULERS),
    ),
    Name(
        'enable_progress_bar',
        'execution',
        'execution.progress_bar',
        "Lightning's own bar.",
        _field('execution.progress_bar'),
    ),
    Name(
        'enable_checkpointing',
        'execution',
        'execution.checkpoint_top_k',
        'False keeps no model files of single epochs, True at least one. The best model is saved anyway.',
        _checkpointing,
    ),
    Name(
        'checkpoint_save_top_k',
        'execution',
        'execution.checkpoint_top_k',
        'Model files of the best epochs that are kept; -1 (all) is refused.',
        _top_k,
    ),
    Name(
        'checkpoint_monitor_metric',
        'execution',
        'execution.checkpoint_monitor',
        '"val_loss", "train_loss" or "auto". Others are refused.',
        _choice('execution.checkpoint_monitor', _MONITORS),
    ),
    Name(
        'checkpoint_mode',
        'execution',
        'execution.checkpoint_mode',
        '"min" or "max".',
        _field('execution.checkpoint_mode'),
    ),
    Name(
        'early_stop_patience',
        'execution',
        'training.early_stop_patience',
        'Epochs without improvement before the run ends.',
        _field('training.early_stop_patience'),
    ),
    Name('logger_backend', 'execution', 'execution.logger', 'csv, tensorboard, mlflow or none.', _logger),
    Name(
        'inference_batch_size',
        'execution',
        'inference.batch_size',
        'Patterns in memory at a time; no effect on the result.',
        _field('inference.batch_size'),
    ),
    Name('seed', 'further', 'training.seed', 'Fixes all draws.', _field('training.seed')),
    Name('devices', 'further', 'training.devices', 'One; more are refused.', _field('training.devices')),
    Name('precision', 'further', 'training.precision', '"32", "bf16" or "16".', _field('training.precision')),
    Name('dialect', 'further', 'the data', '"auto", "counts" or "amplitude": what patterns hold.', _dialect),
    Name('backend', 'further', 'nothing', '"pytorch". Others are refused.', _backend),
)
"""All names that are known, those of PtychoPINN and a few of this package, in the order in which they are applied."""
