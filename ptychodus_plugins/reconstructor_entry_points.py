"""Make Ptychodus 1.7 read the entry-point group ``ptychodus.reconstructors``.

The wheel installs this file into ``ptychodus/plugins/``, where Ptychodus finds it by itself and calls
:func:`register_plugins` at start. Most exceptions there would end Ptychodus, so none leaves this function.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptychodus.api.plugins import PluginRegistry

logger = logging.getLogger(__name__)


def register_plugins(registry: PluginRegistry) -> None:
    """Install the hooks once; ``registry`` has no list of reconstructors and is not changed."""
    try:
        from ptychopinn_torch_plugin.host import hooks

        hooks.apply()
    except Exception as error:
        logger.warning(
            'Reconstructors of the entry-point group "ptychodus.reconstructors" are not available: %s', error
        )
