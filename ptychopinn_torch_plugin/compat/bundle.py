"""A trained model on disk: PtychoPINN's bundle is a folder with one model file of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Config
from ..dependencies import missing
from ..errors import ModelNotLoadedError
from ..storage.model_file import MODEL_FILE, TrainedModel, load_model, save_model

MODEL_NAME = 'diffraction_to_obj'
"""Key of the network, from diffraction to object, in the mapping of models."""

_FOREIGN = ('*.zip', '*.keras', '*.h5', '*.ckpt', '*.pt', '*.pth')
"""Models that other backends leave in a folder: the reader of our file says what they are."""


def load_inference_bundle_torch(model_dir: str | Path) -> tuple[dict[str, TrainedModel], Config]:
    """Read a model that training or :func:`save_inference_bundle_torch` wrote.

    Args:
        model_dir: the folder, or the model file itself.

    Returns:
        ``(models, config)``: the model under the key ``'diffraction_to_obj'``, and the configuration it was trained
        with.

    Raises:
        ModelFileError: there is no model, it is of another backend (the message names both), or it is damaged.
        MissingDependencyError: torch is not installed.
    """
    require_torch()
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


def model_of(models: object) -> TrainedModel:
    """The trained model in whatever stands for it: itself, a mapping of models, or results.

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
    ours = folder / MODEL_FILE
    if not ours.is_file():
        for pattern in _FOREIGN:
            for foreign in sorted(folder.glob(pattern)):
                return foreign
    return ours
