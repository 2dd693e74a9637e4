"""The generators by the name they have in configuration and model file; no file can name anything else to import."""

from __future__ import annotations

from collections.abc import Callable

from ..config import ModelConfig
from .base import Generator
from .patch import PatchGenerator
from .unrolled import UnrolledGenerator

GENERATORS: dict[str, Callable[[ModelConfig], Generator]] = {'unrolled': UnrolledGenerator, 'patch': PatchGenerator}


def build_generator(config: ModelConfig) -> Generator:
    """Build the network of ``config``, newly initialised."""
    return GENERATORS[config.generator](config)
