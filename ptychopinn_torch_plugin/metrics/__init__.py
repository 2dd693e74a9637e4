"""Quality of a reconstruction: computed from the patterns alone, and against a ground truth where there is one.

The metrics of :mod:`.residuals` (torch) are part of every reconstruction; :func:`write_metrics` writes them beside the
product. The scores of :mod:`.ground_truth` are computed by Ptychodus, which is imported when they are asked for.
Importing this package imports neither torch nor Ptychodus nor matplotlib.
"""

from __future__ import annotations

from .frc import aligned, ring_correlation, window_of
from .ground_truth import ScoredPair, TruthScores, compare_with_truth, r_factor, scoring_region
from .output import FOLDER, write_metrics
from .verdict import verdict

__all__ = [
    'FOLDER',
    'ScoredPair',
    'TruthScores',
    'aligned',
    'compare_with_truth',
    'r_factor',
    'ring_correlation',
    'scoring_region',
    'verdict',
    'window_of',
    'write_metrics',
]
