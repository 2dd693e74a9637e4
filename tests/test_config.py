"""The configuration tree: frozen, closed, and clear about what it refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.errors import ConfigurationError


def test_defaults_are_usable_and_frozen() -> None:
    config = parse_config({})
    assert config == Config()
    with pytest.raises(ValidationError):
        config.training.epochs = 3  # type: ignore[misc]


def test_it_survives_json() -> None:
    config = parse_config({'data': {'group_size': 4, 'neighbor_count': 7}, 'training': {'likelihood': 'poisson'}})
    assert Config.model_validate_json(config.model_dump_json()) == config != Config()


@pytest.mark.parametrize(
    ('tree', 'message'),
    [
        ({'training': {'epochs': 0}}, 'training.epochs = 0'),
        ({'training': {'epoch': 5}}, 'training.epoch = 5'),
        ({'trainings': {}}, 'trainings'),
        ({'training': {'learning_rate': float('nan')}}, 'learning_rate'),
        ({'training': {'accelerator': 'gpu9'}}, "accelerator = 'gpu9'.*'cuda'"),
        ({'training': {'devices': 4}}, 'devices = 4.*choose 1'),
        ({'data': {'group_size': 9, 'neighbor_count': 7}}, 'neighbor_count = 7 is too few for groups of 9.*at least 8'),
        ({'model': {'generator': 'autoencoder'}}, "generator = 'autoencoder'"),
    ],
)
def test_what_cannot_be_used_is_named(tree: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_config(tree)


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(ConfigurationError, match='data.group_size.*training.seed'):
        parse_config({'data': {'group_size': -1}, 'training': {'seed': -1}})


@pytest.mark.parametrize(('before', 'now'), [(True, 'always'), (False, 'auto'), ('False', 'auto'), ('never', 'never')])
def test_the_switch_of_before_is_read(before: object, now: str) -> None:
    assert parse_config({'inference': {'use_model_probe': before}}).inference.use_model_probe == now
