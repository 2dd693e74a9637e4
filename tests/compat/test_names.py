"""Every name of PtychoPINN is used or refused, and none is forgotten."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptychopinn_torch_plugin.compat import WorkflowConfig, configuration_from
from ptychopinn_torch_plugin.compat.options import OPTIONS
from ptychopinn_torch_plugin.config import Config, DataConfig, TrainingConfig
from ptychopinn_torch_plugin.errors import ConfigurationError

PAGE = Path(__file__).parents[2] / 'docs' / 'configuration-names.md'

MODEL = (
    'N gridsize n_filters_scale model_type architecture amp_activation object_big probe_big probe_mask pad_object '
    'probe_scale gaussian_smoothing_sigma'
)
TRAINING = (
    'train_data_file test_data_file batch_size nepochs nll_weight mae_weight realspace_weight realspace_mae_weight '
    'nphotons n_groups n_images n_subsample subsample_seed neighbor_count positions_provided probe_trainable '
    'intensity_scale_trainable output_dir sequential_sampling'
)
INFERENCE = 'model_path test_data_file n_groups n_subsample subsample_seed neighbor_count debug output_dir'
EXECUTION = (
    'accelerator strategy deterministic gradient_clip_val accum_steps num_workers pin_memory persistent_workers '
    'prefetch_factor learning_rate scheduler enable_progress_bar enable_checkpointing checkpoint_save_top_k '
    'checkpoint_monitor_metric checkpoint_mode early_stop_patience logger_backend inference_batch_size'
)
PRESENT = 'optimizer momentum torch_loss_mode gradient_clip_algorithm enable_oversampling precision devices backend'
OF_THIS_PACKAGE = 'seed refine_epochs diffraction_quantity dialect'
KNOWN = f'{MODEL} {TRAINING} {INFERENCE} {EXECUTION} {PRESENT} {OF_THIS_PACKAGE}'.split()

# Names with what they set: (value, path of a field or of the data side, what it becomes), and names beside it.
USED: dict[str, list[tuple[Any, str, Any, dict[str, Any]]]] = {
    'N': [(64, 'pattern_size', 64, {})],
    'gridsize': [(2, 'data.group_size', 4, {}), (1, 'data.group_size', 1, {})],
    'n_filters_scale': [(1, 'model.width', 8, {}), (2, 'model.width', 16, {}), (0.5, 'model.width', 4, {})],
    'model_type': [('supervised', 'model.model_type', 'supervised', {}), ('pinn', 'model.model_type', 'pinn', {})],
    'architecture': [('cnn', 'model.generator', 'patch', {}), ('unrolled', 'model.generator', 'unrolled', {})],
    'amp_activation': [
        ('sigmoid', 'model.amplitude_activation', 'sigmoid', {'architecture': 'cnn'}),
        ('softplus', 'model.amplitude_activation', 'softplus', {}),
    ],
    'object_big': [(True, 'model.generator', 'unrolled', {}), (False, 'data.group_size', 1, {'gridsize': 1})],
    'probe_big': [(False, 'model.probe_big', False, {'architecture': 'cnn'}), (True, 'model.probe_big', True, {})],
    'probe_mask': [
        (True, 'probe.mask_radius', 16.0, {'N': 64}),
        (False, 'probe.mask_radius', 0.0, {}),
        (12.5, 'probe.mask_radius', 12.5, {}),
    ],
    'pad_object': [
        (True, 'model.generator', 'patch', {'architecture': 'cnn'}),
        (False, 'model.generator', 'unrolled', {}),
    ],
    'probe_scale': [(4.0, 'probe.scale', 0.0, {})],
    'gaussian_smoothing_sigma': [(1.5, 'probe.smoothing_sigma', 1.5, {})],
    'train_data_file': [('a.npz', 'train_data_file', Path('a.npz'), {})],
    'test_data_file': [('b.npz', 'test_data_file', Path('b.npz'), {})],
    'batch_size': [(16, 'training.batch_size', 16, {})],
    'nepochs': [(7, 'training.epochs', 7, {})],
    'nll_weight': [(1.0, 'training.likelihood', 'poisson', {}), (0, 'training.likelihood', 'amplitude', {})],
    'mae_weight': [(1, 'training.likelihood', 'mae', {'nll_weight': 0})],
    'realspace_weight': [(1, 'model.model_type', 'supervised', {}), (0, 'model.model_type', 'pinn', {})],
    'realspace_mae_weight': [(0, 'model.model_type', 'pinn', {})],
    'nphotons': [(1e5, 'nphotons', 1e5, {})],
    'n_groups': [(512, 'data.groups_per_epoch', 512, {}), (512, 'n_groups', 512, {})],
    'n_subsample': [(100, 'data.subsample', 100, {}), (100, 'n_subsample', 100, {})],
    'subsample_seed': [(3, 'data.subsample_seed', 3, {})],
    'neighbor_count': [(90, 'data.neighbor_count', 90, {})],
    'positions_provided': [(True, 'data.group_size', 64, {})],
    'probe_trainable': [(True, 'training.probe_trainable', True, {})],
    'intensity_scale_trainable': [(True, 'training.intensity_scale_trainable', True, {})],
    'output_dir': [('out', 'output_dir', Path('out'), {})],
    'sequential_sampling': [(True, 'data.sequential_sampling', True, {})],
    'model_path': [('m', 'model_path', Path('m'), {})],
    'debug': [(False, 'data.group_size', 64, {})],
    'accelerator': [
        ('gpu', 'training.accelerator', 'cuda', {}),
        ('cpu', 'inference.accelerator', 'cpu', {}),
        ('mps', 'inference.accelerator', 'mps', {}),
        ('auto', 'training.accelerator', 'auto', {}),
    ],
    'strategy': [('auto', 'training.devices', 1, {})],
    'deterministic': [
        (False, 'execution.deterministic', False, {}),
        ('warn', 'execution.deterministic', True, {}),
    ],
    'gradient_clip_val': [(0.5, 'training.gradient_clip', 0.5, {})],
    'accum_steps': [(4, 'training.accumulate', 4, {})],
    'num_workers': [(2, 'execution.workers', 2, {})],
    'pin_memory': [(True, 'execution.pin_memory', True, {})],
    'persistent_workers': [(True, 'execution.persistent_workers', True, {})],
    'prefetch_factor': [(4, 'execution.prefetch_factor', 4, {})],
    'learning_rate': [(1e-4, 'training.learning_rate', 1e-4, {})],
    'scheduler': [
        ('Default', 'training.scheduler', 'constant', {}),
        ('Exponential', 'training.scheduler', 'exponential', {}),
        ('WarmupCosine', 'training.scheduler', 'warmup-cosine', {}),
        ('warmup-cosine', 'training.scheduler', 'warmup-cosine', {}),
        ('ReduceLROnPlateau', 'training.scheduler', 'plateau', {}),
        ('one_cycle', 'training.scheduler', 'one-cycle', {}),
    ],
    'enable_progress_bar': [(True, 'execution.progress_bar', True, {})],
    'enable_checkpointing': [
        (True, 'execution.checkpoint_top_k', 1, {}),
        (True, 'execution.checkpoint_top_k', 3, {'checkpoint_save_top_k': 3}),
        (False, 'execution.checkpoint_top_k', 0, {'checkpoint_save_top_k': 3}),
    ],
    'checkpoint_save_top_k': [(3, 'execution.checkpoint_top_k', 3, {})],
    'checkpoint_monitor_metric': [
        ('val_loss', 'execution.checkpoint_monitor', 'validation_loss', {}),
        ('train_loss', 'execution.checkpoint_monitor', 'loss', {}),
    ],
    'checkpoint_mode': [('max', 'execution.checkpoint_mode', 'max', {})],
    'early_stop_patience': [(5, 'training.early_stop_patience', 5, {})],
    'logger_backend': [
        ('tensorboard', 'execution.logger', 'tensorboard', {}),
        ('none', 'execution.logger', 'none', {}),
        (None, 'execution.logger', 'none', {}),
        ('CSV', 'execution.logger', 'csv', {}),
    ],
    'inference_batch_size': [(32, 'inference.batch_size', 32, {})],
    'seed': [(9, 'training.seed', 9, {})],
    'devices': [(2, 'training.devices', 2, {})],
    'precision': [
        ('bf16', 'training.precision', 'bf16', {}),
        ('32-true', 'training.precision', '32', {}),
        (32, 'training.precision', '32', {}),
        ('bf16-mixed', 'training.precision', 'bf16', {}),
        ('16-mixed', 'training.precision', '16', {}),
    ],
    'diffraction_quantity': [('amplitude', 'diffraction_quantity', 'amplitude', {})],
    'dialect': [('counts', 'diffraction_quantity', 'counts', {})],
    'refine_epochs': [(0, 'refinement.refine_epochs', 0, {})],
    'optimizer': [('adamw', 'notes', (), {})],
    'momentum': [(0.0, 'notes', (), {})],
    'enable_oversampling': [(False, 'notes', (), {})],
    'gradient_clip_algorithm': [('norm', 'training.gradient_clip', 1.0, {})],
    'torch_loss_mode': [
        ('poisson', 'training.likelihood', 'poisson', {}),
        ('mae', 'training.likelihood', 'mae', {}),
        ('mae', 'training.likelihood', 'mae', {'nll_weight': 1.0, 'mae_weight': 0.0}),
        ('mae', 'training.likelihood', 'mae', {'nll_weight': 0.0, 'mae_weight': 1.0}),
        ('poisson', 'model.model_type', 'supervised', {'model_type': 'supervised', 'nll_weight': 1.0}),
    ],
    'backend': [('pytorch', 'training.devices', 1, {})],
}

REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ('N', 'big', {}, 'give a whole number'),
    ('gridsize', 0, {}, 'give a whole number, at least 1'),
    ('gridsize', 20, {}, 'too few for groups of 400'),
    ('n_filters_scale', 0.3, {}, 'must be whole'),
    ('model_type', 'gan', {}, "'pinn' or 'supervised'"),
    ('architecture', 'fno', {}, 'choose one of cnn, patch, unrolled'),
    ('amp_activation', 'sigmoid', {}, 'give architecture "cnn"'),
    ('amp_activation', 'tanh', {'architecture': 'cnn'}, 'softplus'),
    ('object_big', False, {}, 'always share one object array'),
    ('probe_big', False, {}, 'always fills the whole frame'),
    ('probe_mask', True, {}, 'so give N, too'),
    ('probe_mask', [[1, 0]], {}, 'multiply the probe by a mask'),
    ('pad_object', True, {}, 'give False, or architecture "cnn"'),
    ('pad_object', False, {'architecture': 'cnn'}, 'give True'),
    ('probe_scale', 0, {}, 'give a number above 0'),
    ('gaussian_smoothing_sigma', -1, {}, 'greater than or equal to 0'),
    ('batch_size', -1, {}, 'greater than or equal to 0'),
    ('nepochs', 0, {}, 'greater than or equal to 1'),
    ('nll_weight', 0.5, {}, 'give 0 or 1'),
    ('nll_weight', 1, {'realspace_weight': 1}, 'losses are not mixed'),
    ('mae_weight', 1, {'model_type': 'supervised'}, 'losses are not mixed'),
    ('mae_weight', 1, {'nll_weight': 1}, 'nll_weight gives another value'),
    ('mae_weight', 1, {'nll_weight': 0, 'torch_loss_mode': 'poisson'}, 'torch_loss_mode gives another value'),
    ('torch_loss_mode', 'ssim', {}, 'choose one of poisson, mae'),
    ('optimizer', 'sgd', {}, 'choose one of adam, adamw'),
    ('momentum', 'much', {}, 'give a number'),
    ('enable_oversampling', 1, {}, 'give True or False'),
    ('gradient_clip_algorithm', 'value', {}, 'give "norm"'),
    ('refine_epochs', -1, {}, 'greater than or equal to 0'),
    ('realspace_weight', 1, {'model_type': 'pinn'}, 'model_type gives another value'),
    ('realspace_mae_weight', 1, {}, 'compared by squared differences'),
    ('nphotons', 0, {}, 'above 0'),
    ('n_groups', 0, {}, 'at least 1'),
    ('n_subsample', 1.5, {}, 'give a whole number'),
    ('subsample_seed', -1, {}, 'greater than or equal to 0'),
    ('neighbor_count', 2, {'gridsize': 2}, 'too few for groups of 4'),
    ('positions_provided', False, {}, 'no reconstruction without positions'),
    ('probe_trainable', 'perhaps', {}, 'boolean'),
    ('debug', True, {}, 'logging.getLogger'),
    ('accelerator', 'tpu', {}, 'choose one of auto, cpu, gpu, cuda, mps'),
    ('strategy', 'ddp', {}, 'several devices always train with DDP'),
    ('deterministic', 1, {}, 'give True or False'),
    ('gradient_clip_val', -1, {}, 'greater than or equal to 0'),
    ('accum_steps', 0, {}, 'greater than or equal to 1'),
    ('learning_rate', 0, {}, 'greater than 0'),
    ('scheduler', 'MultiStage', {}, 'choose one of default'),
    ('checkpoint_save_top_k', -1, {}, 'greater than or equal to 0'),
    ('checkpoint_monitor_metric', 'ssim', {}, 'choose one of auto, loss'),
    ('checkpoint_mode', 'mean', {}, "'min' or 'max'"),
    ('logger_backend', 'wandb', {}, "'csv', 'tensorboard', 'mlflow' or 'none'"),
    ('inference_batch_size', 0, {}, 'greater than or equal to 1'),
    ('devices', 0, {}, 'greater than or equal to 1'),
    ('precision', '64', {}, 'choose one of 32, 32-true'),
    ('precision', 'bf16-true', {}, 'choose one of 32, 32-true'),
    ('dialect', 'photons', {}, 'choose one of auto, counts, amplitude'),
    ('backend', 'tensorflow', {}, 'this is the backend "pytorch"'),
]


def found(settings: WorkflowConfig, path: str) -> object:
    section, dot, name = path.partition('.')
    return getattr(getattr(settings.config, section), name) if dot else getattr(settings, section)


def test_no_name_of_the_contract_is_forgotten() -> None:
    assert set(OPTIONS) == set(KNOWN)
    assert set(USED) | {'n_images'} == set(OPTIONS)


@pytest.mark.parametrize('name', list(USED))
def test_a_name_is_used(name: str) -> None:
    for value, path, becomes, beside in USED[name]:
        assert found(configuration_from({name: value} | beside), path) == becomes, (value, path)


@pytest.mark.parametrize(('name', 'value', 'beside', 'reason'), REFUSED)
def test_a_value_that_cannot_be_used_is_refused(name: str, value: object, beside: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configuration_from({name: value} | beside)
    assert name in str(caught.value)
    assert reason in str(caught.value)


def test_the_old_name_warns_once_and_works() -> None:
    with pytest.warns(DeprecationWarning, match='n_images is the old name of n_groups') as caught:
        settings = configuration_from({'n_images': 30})
    assert len(caught) == 1
    assert caught[0].filename == __file__, 'the warning points at the caller'
    assert settings.n_groups == settings.config.data.groups_per_epoch == 30
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(ConfigurationError, match='n_images = 3: n_groups gives another'),
    ):
        configuration_from({'n_images': 3, 'n_groups': 4})


# A configuration of PtychoPINN with its default values.
DEFAULTS: dict[str, Any] = {
    'model': {
        'N': 64, 'gridsize': 1, 'n_filters_scale': 2, 'model_type': 'pinn', 'architecture': 'cnn',
        'amp_activation': 'sigmoid', 'object_big': True, 'probe_big': True, 'probe_mask': False, 'pad_object': True,
        'probe_scale': 4.0, 'gaussian_smoothing_sigma': 0.0,
    },
    'train_data_file': None, 'test_data_file': None, 'batch_size': 16, 'nepochs': 50, 'mae_weight': 0.0,
    'nll_weight': 1.0, 'realspace_mae_weight': 0.0, 'realspace_weight': 0.0, 'nphotons': 1e9, 'n_groups': None,
    'n_images': None, 'n_subsample': None, 'subsample_seed': None, 'neighbor_count': 4, 'positions_provided': True,
    'probe_trainable': False, 'intensity_scale_trainable': True, 'output_dir': Path('training_outputs'),
    'sequential_sampling': False, 'backend': 'pytorch', 'torch_loss_mode': 'poisson', 'enable_oversampling': False,
    'optimizer': 'adam', 'momentum': 0.9, 'gradient_clip_algorithm': 'norm',
}  # fmt: skip


def test_default_configurations_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        settings = configuration_from(DEFAULTS, {'precision': '32-true', 'strategy': 'auto', 'logger_backend': None})
    tree = settings.config
    assert (tree.model.generator, tree.model.amplitude_activation) == ('patch', 'sigmoid')
    assert (tree.data.group_size, tree.data.neighbor_count, tree.training.epochs) == (1, 4, 50)
    assert (tree.training.likelihood, tree.training.precision, tree.execution.logger) == ('poisson', '32', 'none')
    assert not tree.training.probe_trainable
    (record,) = caplog.records
    assert record.getMessage() == (
        "These names make no difference here: optimizer = 'adam' (the optimiser is AdamW, which is Adam with a "
        'decoupled weight decay); momentum = 0.9 (it belongs to the optimiser SGD, which is not used).'
    )
    assert configuration_from(settings) is settings
    assert len(caplog.records) == 1


def test_a_supervised_model_takes_the_default_weights() -> None:
    settings = configuration_from(DEFAULTS | {'model': DEFAULTS['model'] | {'model_type': 'supervised'}})
    assert settings.config.model.model_type == 'supervised'
    assert settings.notes[0] == "torch_loss_mode = 'poisson' (a supervised model is compared with the reference object)"
    assert settings.notes[1] == 'nll_weight = 1.0 (a supervised model is compared with the reference object)'


def test_no_logger_is_none_where_it_is_given_and_csv_where_it_is_not() -> None:
    assert configuration_from({'logger_backend': None}).config.execution.logger == 'none'
    assert configuration_from({'nepochs': None}).config.execution.logger == 'csv'


def test_unknown_names_are_refused_together() -> None:
    with pytest.raises(ConfigurationError, match='batchsize, epochs: no such name is known'):
        configuration_from({'epochs': 3, 'batchsize': 1, 'N': 64})


def test_all_refusals_are_in_one_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        configuration_from({'nepochs': 0, 'strategy': 'ddp', 'gridsize': 2})
    assert str(caught.value).count(';') == 2  # one of them belongs to the reason of strategy
    assert 'nepochs = 0: ' in str(caught.value)
    assert "strategy = 'ddp': " in str(caught.value)


@dataclasses.dataclass
class Model:
    """Some of PtychoPINN's names with its defaults."""

    N: int = 64
    gridsize: int = 2
    architecture: str = 'cnn'
    amp_activation: str = 'sigmoid'
    pad_object: bool = True
    probe_scale: float = 4.0


@dataclasses.dataclass
class Training:
    """More of them, with the model nested."""

    model: Model
    nepochs: int = 50
    n_groups: int | None = None
    nll_weight: float = 1.0
    mae_weight: float = 0.0
    train_data_file: Path | None = None


def test_dataclass_instances_may_be_nested_and_joined() -> None:
    settings = configuration_from(Training(Model()), {'execution': {'learning_rate': 1e-3}}, SimpleNamespace(seed=4))
    tree = settings.config
    assert (settings.pattern_size, settings.n_groups, settings.train_data_file) == (64, None, None)
    assert (tree.data.group_size, tree.model.generator, tree.model.amplitude_activation) == (4, 'patch', 'sigmoid')
    assert (tree.training.epochs, tree.training.likelihood) == (50, 'poisson')
    assert (tree.training.learning_rate, tree.training.seed) == (1e-3, 4)
    assert settings.validate_on_test_data


@pytest.mark.parametrize('suffix', ['.json', '.yaml'])
def test_files_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'names{suffix}'
    nested = {'training': {'nepochs': 3, 'model': {'gridsize': 2}}, 'n_groups': None}
    path.write_text(
        json.dumps(nested) if suffix == '.json' else 'training:\n  nepochs: 3\n  model:\n    gridsize: 2\nn_groups:\n'
    )
    for given in (path, str(path)):
        tree = configuration_from(given).config
        assert (tree.training.epochs, tree.data.group_size, tree.data.groups_per_epoch) == (3, 4, 0)


@pytest.mark.parametrize(
    ('name', 'text', 'sentence'),
    [
        ('a.json', '{', 'cannot be read as JSON'),
        ('a.yaml', 'a: [', 'cannot be read as YAML'),
        ('a.yaml', '- 3', 'holds no names with values'),
        ('a.yaml', '3: 4', 'holds no names with values'),
        ('a.yaml', '!!python/object/apply:os.system ["true"]', 'cannot be read as YAML'),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=sentence):
        configuration_from(tmp_path / name)


def test_other_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='There is no configuration file'):
        configuration_from(tmp_path / 'none.yaml')
    with pytest.raises(ConfigurationError, match='not int'):
        configuration_from(3)
    with pytest.raises(ConfigurationError, match='not type'):
        configuration_from(Model)
    with pytest.raises(ConfigurationError, match='nepochs is given twice, as 3 and as 4'):
        configuration_from({'nepochs': 3}, {'nepochs': 4})
    with pytest.raises(ConfigurationError, match='give no base with it'):
        configuration_from(Config(), base=Config())


def test_a_config_is_taken_as_it_is() -> None:
    tree = Config(training=TrainingConfig(epochs=3))
    settings = configuration_from(tree)
    assert settings.config is tree
    assert settings == WorkflowConfig(tree)
    assert configuration_from(settings) is settings
    further = configuration_from(WorkflowConfig(tree, pattern_size=64), {'learning_rate': 0.1, 'output_dir': 'out'})
    assert further.config == tree.model_copy(update={'training': TrainingConfig(epochs=3, learning_rate=0.1)})
    assert (further.pattern_size, further.output_dir, further.validate_on_test_data) == (64, Path('out'), False)


def test_names_change_the_base_and_nothing_else() -> None:
    base = Config(data=DataConfig(group_size=9), training=TrainingConfig(epochs=3, learning_rate=1e-4))
    tree = configuration_from({'nepochs': 5}, base=base).config
    assert tree == base.model_copy(update={'training': TrainingConfig(epochs=5, learning_rate=1e-4)})
    assert configuration_from({}).config == Config()


def test_the_page_has_a_row_for_every_name_and_names_the_setting() -> None:
    rows = dict(re.findall(r'^\| `(\w+)` \| (.+?) \|', PAGE.read_text(encoding='utf-8'), re.MULTILINE))
    assert list(rows) and set(rows) == set(OPTIONS)
    for name, rule in OPTIONS.items():
        if isinstance(rule, str):
            assert rows[name] == f'`{rule}`'
        for section, field in re.findall(r'`(\w+)\.(\w+)`', rows[name]):
            assert field in type(getattr(Config(), section)).model_fields
