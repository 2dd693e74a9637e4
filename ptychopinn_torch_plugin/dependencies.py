"""One message for every package that a call needs and does not find."""

from __future__ import annotations

import sys

from .errors import MissingDependencyError

_REQUIREMENTS = {
    'mlflow': "'ptychopinn_torch_plugin[mlflow]'",
    'tensorboard': "'ptychopinn_torch_plugin[tensorboard]'",
    'yaml': 'pyyaml',
}
"""What pip calls a module, where that is another name."""

_ENGINE = frozenset({'torch', 'lightning'})
"""Modules that the engine needs together: whoever lacks one is told to install both."""


def missing(error: ImportError) -> MissingDependencyError:
    """Turn a failed import into the error that names the part and the command that installs it.

    To be raised from the error: ``raise missing(error) from error``. A package that is there but broken (a shared
    library that does not load) raises :class:`ImportError` as well; its own words are part of the message.

    Args:
        error: what the import statement raised; its ``name`` is the module, where Python knows it.

    Returns:
        The error to raise. It is a :class:`RuntimeError`, as PtychoPINN's users expect of a call without torch.
    """
    module = (error.name or '').split('.', maxsplit=1)[0]
    wanted = 'torch lightning' if not module or module in _ENGINE else _REQUIREMENTS.get(module, module)
    then = ', then look with "ptychopinn-torch doctor"' if wanted == 'torch lightning' else ''
    return MissingDependencyError(
        f'{module or "A package"} is needed for this and cannot be imported ({error}): run '
        f'"{sys.executable} -m pip install {wanted}"{then}.'
    )
