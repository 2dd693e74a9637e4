"""Lower precision for the convolutions of a network, and for nothing else.

torch's autocast around a whole training step would reach into the physics, which is complex and float32. Here it is
switched on inside of the outermost convolutional blocks of the generator only: what goes in and what comes out of a
block stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor, nn

from ..config import Config
from ..errors import ConfigurationError
from ..models.unet import ConvBlock, UNet

DTYPES = {'bf16': torch.bfloat16, '16': torch.float16}
CONVOLUTIONAL = (UNet, ConvBlock, nn.Conv2d, nn.ConvTranspose2d)


def make_precision(config: Config, device: torch.device) -> Precision:
    """Lightning's side of ``config.training.precision``: a loss scaler for float16, nothing special else.

    Raises:
        ConfigurationError: the device cannot compute in this precision.
    """
    precision = config.training.precision
    if precision == '16' and device.type == 'mps':
        raise ConfigurationError(
            "training.precision = '16': this device cannot scale the loss as float16 needs it; choose 'bf16' or '32'."
        )
    if precision == 'bf16' and device.type == 'cuda' and not torch.cuda.is_bf16_supported():
        raise ConfigurationError(
            f"training.precision = 'bf16': {torch.cuda.get_device_name(device)} does not know bfloat16; choose '16' or "
            "'32'."
        )
    return ScaledPrecision('16-mixed', device.type) if precision == '16' else Precision()


class ScaledPrecision(MixedPrecision):
    """Lightning's loss scaling without its autocast, which would reach the physics."""

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Nothing: :func:`lower_convolutions` says what is computed in half precision."""
        yield


def lower_convolutions(generator: nn.Module, config: Config) -> None:
    """Make the convolutional blocks of ``generator`` compute in ``config.training.precision``.

    Weights stay float32, and so does every tensor outside of the blocks.
    """
    dtype = DTYPES.get(config.training.precision)
    if dtype is None:
        return
    for block in _outermost(generator):
        block.forward = partial(_in_precision, block.forward, dtype)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, CONVOLUTIONAL):
            yield child
        else:
            yield from _outermost(child)


def _in_precision(forward: Callable[[Tensor], Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype=dtype):
        return forward(x).float()
