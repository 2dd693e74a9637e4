"""PtychoPINN's workflow functions on the engine of this package.

The functions have the names and meanings that people who script PtychoPINN know (Hoidn et al., Sci Rep 13, 22789,
2023; arXiv 2602.21361, 2026); ``docs/coming-from-ptychopinn.md`` says what differs. They call the one training loop,
predictor, stitcher and model file that the reconstructor of Ptychodus uses. Importing this package needs neither torch
nor Lightning; without them every function that computes raises
:class:`~ptychopinn_torch_plugin.errors.MissingDependencyError`, a :class:`RuntimeError`.
"""

from __future__ import annotations

from ..compat.bundle import load_inference_bundle_torch, save_inference_bundle_torch
from ..compat.ensure_container import Data, ensure_container
from ..compat.workflow_functions import reassemble_cdi_image_torch, run_cdi_example_torch, train_cdi_model_torch
from ..compat.workflow_functions import train_with_lightning as _train_with_lightning

_ensure_container = ensure_container
"""PtychoPINN's name of :func:`ensure_container`."""

__all__ = [
    'Data',
    '_ensure_container',
    '_train_with_lightning',
    'ensure_container',
    'load_inference_bundle_torch',
    'reassemble_cdi_image_torch',
    'run_cdi_example_torch',
    'save_inference_bundle_torch',
    'train_cdi_model_torch',
]
