"""The error for a package that a call needs and that cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from .errors import MemoryLimitError, MissingDependencyError, PtychoPINNError
from .limits import says_out_of_memory

_PACKAGE = __package__
_REQUIREMENTS = {
    'mlflow': "'ptychopinn_torch_plugin[mlflow]'",
    'tensorboard': "'ptychopinn_torch_plugin[tensorboard]'",
    'yaml': 'pyyaml',
}
"""What pip calls a module, where that is another name."""

_ENGINE = frozenset({'torch', 'lightning'})
"""Modules that the engines need together: the command for one of them installs both."""


def missing(error: ImportError | MemoryError) -> PtychoPINNError:
    """Turn a failed import into the error that names the package and the command that installs it.

    To be raised from the error: ``raise missing(error) from error``. A package that is installed but broken (a shared
    library that does not load) raises :class:`ImportError` as well; its own message is part of the new one.

    Args:
        error: what the import statement raised; the ``name`` of an :class:`ImportError` is the module, where Python
            knows it.

    Returns:
        The error to raise: a :class:`MissingDependencyError`, which is a :class:`RuntimeError`, as PtychoPINN's users
        expect of a call without torch; a :class:`MemoryLimitError` where memory is too small to load a library.
    """
    if isinstance(error, MemoryError):
        return _memory_limit(error)
    cause = next((one for one in _chain(error) if _is_out_of_memory(one)), None)
    if cause is not None:
        return _memory_limit(cause)
    module = (error.name or '').split('.', maxsplit=1)[0]
    packages = 'torch lightning' if not module or module in _ENGINE else _REQUIREMENTS.get(module, module)
    then = ', then check the installation with "ptychopinn-torch doctor"' if packages == 'torch lightning' else ''
    return MissingDependencyError(
        f'{module or "A package"} is needed for this and cannot be imported ({error}): run '
        f'"{sys.executable} -m pip install {packages}"{then}.'
    )


def _memory_limit(error: BaseException) -> MemoryLimitError:
    words = str(error) or type(error).__name__
    return MemoryLimitError(
        f'There is not enough memory to load the libraries ({words}): free some memory, or raise the limit of the '
        'job or the shell (ulimit -v).'
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and the errors that it came from: some packages replace the message of the loader."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or says_out_of_memory(str(error))


def is_own(error: ImportError) -> bool:
    """Return whether a module of this package is what cannot be imported: a defect, not a missing dependency."""
    return (error.name or '').split('.', maxsplit=1)[0] == _PACKAGE
