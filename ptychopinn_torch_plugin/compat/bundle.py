"""A trained model on disk: PtychoPINN's bundle is a folder with one model file of this package."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Config
from ..dependencies import missing
from ..errors import ConfigurationError, ModelNotLoadedError
from ..storage.model_file import MODEL_FILE, TrainedModel, load_model, save_model
from .names import map_names

logger = logging.getLogger(__name__)

MODEL_NAME = 'diffraction_to_obj'
"""Key of the network, from diffraction to object, in the mapping of models."""

_FOREIGN = ('*.zip', '*.keras', '*.h5', '*.ckpt', '*.pt', '*.pth')
"""Models that other backends leave in a folder: the error message names what they are."""


def load_inference_bundle_torch(
    model_dir: str | Path, model_name: str = MODEL_NAME
) -> tuple[dict[str, TrainedModel], Config]:
    """Read a model that training, :func:`save_torch_bundle` or :func:`save_inference_bundle_torch` wrote.

    Args:
        model_dir: the folder, or the model file itself.
        model_name: the model to read; the file holds one, ``'diffraction_to_obj'``.

    Returns:
        ``(models, config)``: the model under the key ``'diffraction_to_obj'``, and the configuration it was trained
        with.

    Raises:
        ModelFileError: there is no model, it is of another backend (the message names both), or it is damaged.
        ModelNotLoadedError: another model is asked for.
        MissingDependencyError: torch is not installed.
    """
    require_torch()
    if model_name != MODEL_NAME:
        raise ModelNotLoadedError(f'There is no model {model_name!r} in a bundle: it holds one model, {MODEL_NAME!r}.')
    path = Path(model_dir)
    model = load_model(_model_file(path) if path.is_dir() else path)
    return {MODEL_NAME: model}, model.config


def save_inference_bundle_torch(models: Mapping[str, Any], model_dir: str | Path) -> Path:
    """Write a model for :func:`load_inference_bundle_torch` and for Ptychodus, which reads the same file.

    Args:
        models: the models, or the results of a workflow function, which hold them.
        model_dir: the folder; made if absent, and a model in it is replaced.

    Returns:
        The path of the model file.

    Raises:
        ModelNotLoadedError: there is no trained model in ``models``.
        MissingDependencyError: torch is not installed.
        OutputError: the file cannot be written.
    """
    require_torch()
    path = Path(model_dir) / MODEL_FILE
    save_model(path, model_of(models))
    return path


def save_torch_bundle(
    models_dict: Mapping[str, Any], base_path: str | Path, config: object = None, intensity_scale: float | None = None
) -> Path:
    """Do what :func:`save_inference_bundle_torch` does, with PtychoPINN's arguments.

    Args:
        models_dict: as ``models`` there.
        base_path: as ``model_dir`` there.
        config: the configuration of the training; the model holds it already, and another one is refused.
        intensity_scale: not used: the photon scale is fitted to the counts of every scan; the log says so.

    Returns:
        The path of the model file.

    Raises:
        ConfigurationError: the model was trained with another network or group size than ``config`` gives.
        ModelNotLoadedError: as :func:`save_inference_bundle_torch`, like the other errors.
    """
    require_torch()
    trained = model_of(models_dict).config
    if config is not None:
        given = map_names(config).config
        if (given.model, given.data.group_size) != (trained.model, trained.data.group_size):
            raise ConfigurationError(
                'config describes another network or group size than the model was trained with: leave config out, or '
                'give the one of the training.'
            )
    if intensity_scale is not None:
        logger.info('intensity_scale = %g is not used: the photon scale is fitted to the counts.', intensity_scale)
    return save_inference_bundle_torch(models_dict, base_path)


def model_of(models: object) -> TrainedModel:
    """Return the trained model itself, or the one in a mapping of models or in results.

    Raises:
        ModelNotLoadedError: there is none.
    """
    if isinstance(models, TrainedModel):
        return models
    if isinstance(models, Mapping):
        inner = models.get('models', models)
        model = inner.get(MODEL_NAME) if isinstance(inner, Mapping) else None
        if isinstance(model, TrainedModel):
            return model
    raise ModelNotLoadedError(
        f'There is no trained model: give the models of load_inference_bundle_torch (key "{MODEL_NAME}"), or the '
        'results of train_cdi_model_torch.'
    )


def require_torch() -> None:
    """Raise :class:`~ptychopinn_torch_plugin.errors.MissingDependencyError` where torch cannot be imported."""
    try:
        import torch  # noqa: F401 - whether it can be
    except ImportError as error:
        raise missing(error) from error


def _model_file(folder: Path) -> Path:
    """Return the model file in ``folder``: that of this package, or the first of another one."""
    own = folder / MODEL_FILE
    if not own.is_file():
        for pattern in _FOREIGN:
            for foreign in sorted(folder.glob(pattern)):
                return foreign
    return own
