"""The final picture of a training run: what the network alone makes of the first scan, in grey."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from ..config import Config, InferenceConfig
from ..engines.network import Predictor, windows_of
from ..engines.progress import ProgressReporter
from ..models.base import Generator
from ..observer import SilentObserver
from .batches import TrainingScan


def draw_scan(scan: TrainingScan, generator: Generator, config: Config) -> npt.NDArray[np.uint8]:
    """Reconstruct a scan with as many steps as in training, no refinement, and draw it.

    Takes about as long as the forward passes of one epoch.

    Args:
        scan: the scan on its device.
        generator: the network on the same device, in evaluation mode.
        config: the configuration that it was trained with.

    Returns:
        Grey image, see :func:`grey_picture`.
    """
    settings = InferenceConfig(batch_size=config.inference.batch_size, preview_interval=0)
    windows = windows_of(scan.state, generator, config.data.group_size, settings)
    steps = min(config.model.steps, generator.most_steps or config.model.steps)
    progress = ProgressReporter(SilentObserver(), len(windows) * steps, scan.tensors.scan.object_shape, 0)
    predictor = Predictor(scan.tensors, scan.state, generator, windows, steps, settings.batch_size, progress)
    return grey_picture(predictor.predict().object_array.cpu().numpy())


def grey_picture(object_array: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.uint8]:
    """Amplitude beside phase, ``(h, w)`` complex to ``(h, 2 w)`` uint8.

    Each half spans its own 0.5th to 99.5th percentile. The phase is shown around that of the mean, which means nothing.
    """
    phase = np.angle(object_array * np.exp(-1j * np.angle(object_array.sum())))
    return np.concatenate([_grey(np.abs(object_array)), _grey(phase)], axis=1)


def _grey(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.asarray(np.clip((values - low) / max(high - low, 1e-12) * 255, 0, 255), dtype=np.uint8)


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """A grey image ``(h, w)`` as PNG: 8 bits, not interlaced (ISO/IEC 15948)."""
    height, width = image.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # every row begins with its filter, 0 for none
    rows[:, 1:] = image
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    chunks = ((b'IHDR', header), (b'IDAT', zlib.compress(rows.tobytes())), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
