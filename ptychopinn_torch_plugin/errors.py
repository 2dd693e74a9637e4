"""Errors that this package raises on purpose.

Each message is one or two sentences that say what is wrong, where, and what to do. Any other error is a defect of this
package.
"""

from __future__ import annotations


class PtychoPINNError(Exception):
    """Base class of every error raised on purpose by this package."""


class InputError(PtychoPINNError, ValueError):
    """A scan, a file or an array cannot be used; the message names the field, its value and the remedy."""


class ConfigurationError(PtychoPINNError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class ModelFileError(PtychoPINNError, ValueError):
    """A model file cannot be read: another format, another version, damaged, or not matching its own header."""


class ModelNotLoadedError(PtychoPINNError, RuntimeError):
    """Inference or saving was requested before a model was trained or loaded."""


class MissingDependencyError(PtychoPINNError, RuntimeError):
    """A required package is not installed; the message names it and the install command."""


class TrainingError(PtychoPINNError, RuntimeError):
    """Training ended without a usable model (for example with a loss that is not finite)."""


class ReconstructionError(PtychoPINNError, RuntimeError):
    """A reconstruction gave no usable object (for example one that is not finite)."""


class MemoryLimitError(PtychoPINNError, MemoryError):
    """The device has too little memory, even with smaller batches; the message names the settings to change."""


class OutputError(PtychoPINNError, OSError):
    """A file cannot be written; the message names it, the bytes it needs, and what still exists."""


class WorkerError(PtychoPINNError, RuntimeError):
    """The worker process failed or died; the message has its last output and the likely cause."""
