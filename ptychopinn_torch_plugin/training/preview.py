"""The picture at the end of a training: the object of the first scan by the network alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..config import Config
from ..data.scan import RawScan
from ..data.tensors import ScanTensors, initial_state
from ..engines.devices import select_device
from ..engines.progress import on_object_grid
from ..storage.model_file import load_model
from .batches import TrainingScan
from .calibration import predict

PREVIEW_POSITIONS: Final = 1000
"""Positions from which the object is predicted: the first ones of the scan, so that a large one takes no longer."""


def predicted_object(scan: RawScan, model_file: Path, config: Config) -> npt.NDArray[np.complex64]:
    """Return the object of a scan by the network of a model file alone, with the probe in the file.

    Args:
        scan: the scan; its first positions are used.
        model_file: the model.
        config: the configuration of the training.

    Returns:
        The transmission ``(h, w)`` on the object grid of the scan, ``1 + 0j`` where it is not illuminated.

    Raises:
        PtychoPINNError: the model does not fit the scan, or the device cannot be used.
    """
    model = load_model(model_file)
    device = select_device(config.training.accelerator)
    part = scan.without_empty()
    part = part.select(np.arange(min(part.size, PREVIEW_POSITIONS)))
    tensors = ScanTensors(part, device, config.execution.kernels)
    state = initial_state(tensors, model.probe, config.probe.scale)
    with torch.inference_mode():
        found = predict(TrainingScan(tensors, state), model.build().to(device), config)
    return on_object_grid(found.object_array, found.origin, scan.object_shape)


def grey_picture(object_array: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.uint8]:
    """Draw amplitude beside phase, ``(h, w)`` complex to ``(h, 2 w)`` uint8.

    Each half spans its own 0.5th to 99.5th percentile. The phase is relative to that of the mean.
    """
    phase = np.angle(object_array * np.exp(-1j * np.angle(object_array.sum())))
    return np.concatenate([_grey(np.abs(object_array)), _grey(phase)], axis=1)


def _grey(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.asarray(np.clip((values - low) / max(high - low, 1e-12) * 255, 0, 255), dtype=np.uint8)


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return a grey image ``(h, w)`` as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, 'PNG')
    return content.getvalue()
