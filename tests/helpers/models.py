"""Models for tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.models.registry import build_generator
from ptychopinn_torch_plugin.storage.model_file import BACKEND, FORMAT_VERSION, LossEntry, ModelHeader, TrainedModel
from tests.helpers.scans import curved_probe


def untrained_model(config: Config, probe: npt.NDArray[np.complex64] | None = None) -> TrainedModel:
    """A model as it is before the first training step: its head is zero, so it is the plain iterative solver."""
    torch.manual_seed(0)
    weights = {name: tensor.numpy() for name, tensor in build_generator(config.model).state_dict().items()}
    header = ModelHeader(
        format_version=FORMAT_VERSION,
        backend=BACKEND,
        config=config,
        history=(LossEntry(epoch=1, training=2.0, validation=2.5),),
        photons_per_frame=1.0,
        scans=('test scan',),
        versions={},
    )
    return TrainedModel(header, weights, curved_probe((32, 32)).astype(np.complex64) if probe is None else probe)
