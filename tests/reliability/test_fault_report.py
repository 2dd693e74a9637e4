"""The fault_report: what stands in its document does not change from run to run."""

from __future__ import annotations

import pytest

from tests.helpers.fault_report import normalised


@pytest.mark.parametrize(
    ('sentence', 'stable'),
    [
        ('/home/me/run-7/test_x0/model.safetensors is bad.', '…/model.safetensors is bad.'),
        ('ptychopinn-a1b2c3d4 was left, pid=4711.', 'ptychopinn-* was left, pid=….'),
        ('object at 0x7f00aa of process 12', 'object of process …'),
        ('two\n  lines and/or https://pytorch.org/docs/memory', 'two lines and/or https://pytorch.org/docs/memory'),
        ('16 x 17 pixels: 1/2 of them', '16 x 17 pixels: 1/2 of them'),
    ],
)
def test_what_differs_from_run_to_run_is_left_out(sentence: str, stable: str) -> None:
    assert normalised(sentence) == stable
