"""Ptychographic reconstruction with physics-informed networks, as a plug-in of Ptychodus.

Importing this package loads neither torch nor Lightning nor Qt: the Ptychodus process imports it at start.
"""

from __future__ import annotations

import os
from pathlib import Path

__version__ = '0.1.0'

__all__ = ['__version__']


def _disable_plugin_that_needs_a_home() -> None:
    """Let pydantic be imported for a user without a home folder, as in many containers.

    The dependencies of Ptychodus include a plug-in of pydantic that raises an error there.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ.setdefault('PYDANTIC_DISABLE_PLUGINS', 'logfire-plugin')


_disable_plugin_that_needs_a_home()
