"""The errors this package raises on purpose.

Each message is one sentence (or two) that says what is wrong, where, and what to do. Whatever is raised that is not a
:class:`PtychoPINNError` is a defect of this package.
"""

from __future__ import annotations


class PtychoPINNError(Exception):
    """Base class of every error raised on purpose by this package."""


class InputError(PtychoPINNError, ValueError):
    """A scan, a file or an array cannot be used; the message names the field, its value and the remedy."""


class ConfigurationError(PtychoPINNError, ValueError):
    """A setting is unknown, out of range, or does not go with another one."""


class ModelFileError(PtychoPINNError, ValueError):
    """A model file cannot be read: another format, another version, damaged, or not matching its own header."""


class ModelNotLoadedError(PtychoPINNError, RuntimeError):
    """Inference or saving was asked for before a model was trained or loaded."""


class MissingDependencyError(PtychoPINNError, RuntimeError):
    """A package that the call needs is not installed; the message names it and the install command."""


class TrainingError(PtychoPINNError, RuntimeError):
    """Training had to end without a usable model (for example a loss that is not finite)."""


class ReconstructionError(PtychoPINNError, RuntimeError):
    """A reconstruction came to no usable object (for example one that is not finite)."""


class MemoryLimitError(PtychoPINNError, MemoryError):
    """The memory of the device ran out, with smaller batches as well; the message names the settings to change."""


class OutputError(PtychoPINNError, OSError):
    """A file cannot be written; the message names it, the bytes it needs, and what is still there."""


class WorkerError(PtychoPINNError, RuntimeError):
    """The worker process failed or died; the message carries its last words and a hint at the cause."""
