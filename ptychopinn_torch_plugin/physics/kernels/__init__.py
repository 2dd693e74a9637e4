"""The computation of one epoch over many patterns, behind one seam with two implementations.

:mod:`.reference` is written in torch and runs on every device; :mod:`.compiled` (numba) is several times faster on a
CPU. Both are functions of the same arguments with the same results, to rounding (``tests/physics/test_kernels.py``);
:mod:`.selection` chooses.
"""
