"""How good a reconstruction is: told from the patterns alone, and against a truth where there is one.

The engine's part (:mod:`.engine`, torch) comes with every reconstruction; :func:`write_judgement` leaves it beside the
product. The scores of :mod:`.truth` are the host's own measures and need Ptychodus, imported when they are asked for.
Importing this package loads neither torch nor Ptychodus nor matplotlib.
"""

from __future__ import annotations

from .frc import aligned, ring_correlation, window_of
from .ground_truth import ScoredPair, TruthScores, compare_with_truth, r_factor, scoring_region
from .output import FOLDER, write_judgement
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
    'write_judgement',
]
