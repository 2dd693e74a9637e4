"""Lower precision for the convolutions of a network, and for nothing else.

torch's autocast around a whole training step would lower the precision of the physics as well, which is complex and
float32. Here it is switched on inside the U-Net only: weights, input and output stay float32.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import nn

from ..config import Config
from ..errors import ConfigurationError
from ..models.unet import UNet

DTYPES = {'bf16': torch.bfloat16, '16': torch.float16}
LEAST_LOSS_SCALE = 1.0
"""In float16 gradients overflow now and then, and the scale of the loss is halved; below this it is no help."""


def set_precision(generator: nn.Module, precision: str) -> None:
    """Set the precision of the convolutions of ``generator``: '32', 'bf16' or '16'."""
    for module in generator.modules():
        if isinstance(module, UNet):
            module.autocast_dtype = DTYPES.get(precision)


def make_precision(config: Config, device: torch.device) -> Precision:
    """Return Lightning's plugin for ``config.training.precision``: with a loss scaler for float16, else the default.

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
    """Lightning's loss scaler without its autocast, which would include the physics."""

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Do nothing: :func:`set_precision` chooses what is computed in half precision."""
        yield


def loss_scale_of(precision: Precision) -> tuple[float, int] | None:
    """Return scale and growth tracker of the loss scaler of float16; None in other precisions."""
    scaler = precision.state_dict()
    return (scaler['scale'], scaler['_growth_tracker']) if scaler else None


def restore_loss_scale(precision: Precision, state: tuple[float, int] | None) -> None:
    """Set the state of the loss scaler to that of :func:`loss_scale_of`."""
    if state is not None and isinstance(precision, ScaledPrecision):
        precision.load_state_dict({**precision.state_dict(), 'scale': state[0], '_growth_tracker': state[1]})


def is_scaling(precision: Precision) -> bool:
    """Return whether a loss scaler skips the steps with bad gradients by itself, and can still lower its scale."""
    return (
        isinstance(precision, ScaledPrecision)
        and precision.scaler is not None
        and precision.scaler.get_scale() >= LEAST_LOSS_SCALE
    )
