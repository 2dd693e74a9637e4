"""The generators by name: configuration and model file name them, nothing is imported by name from a file."""

from __future__ import annotations

from collections.abc import Callable

from ..config import ModelConfig
from .base import Generator
from .patch import PatchGenerator
from .unrolled import UnrolledGenerator

GENERATORS: dict[str, Callable[[ModelConfig], Generator]] = {'unrolled': UnrolledGenerator, 'patch': PatchGenerator}


def build_generator(config: ModelConfig) -> Generator:
    """The network that ``config`` describes, freshly initialised."""
    return GENERATORS[config.generator](config)
