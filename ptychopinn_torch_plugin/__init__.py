"""Ptychographic reconstruction with physics-informed networks, as a plug-in of Ptychodus.

Importing this package loads neither torch nor Lightning nor Qt: the Ptychodus process imports it at start. The names
that scripts of PtychoPINN use most are loaded when they are first asked for.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = '1.0.0'

__all__ = ['PtychoDataContainerTorch', 'RawDataTorch', '__version__', 'configuration_from']

_LAZY = {
    'PtychoDataContainerTorch': '.compat.container',
    'RawDataTorch': '.compat.raw',
    'configuration_from': '.compat.names',
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    """Load a name of :data:`_LAZY` from its module."""
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_LAZY[name], __name__), name)


def _disable_plugin_that_needs_a_home() -> None:
    """Let pydantic be imported for a user without a home folder, as in many containers.

    The dependencies of Ptychodus include a plug-in of pydantic that raises an error there.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ.setdefault('PYDANTIC_DISABLE_PLUGINS', 'logfire-plugin')


_disable_plugin_that_needs_a_home()
