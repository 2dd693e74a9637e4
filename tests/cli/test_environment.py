"""What the command sets in the environment of its process."""

from __future__ import annotations

import os

import pytest

from ptychopinn_torch_plugin.cli import main


def test_idle_threads_give_up_their_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch reads the variable when it is imported; a value that was given stays."""
    for given, expected in ((None, 'PASSIVE'), ('ACTIVE', 'ACTIVE')):
        monkeypatch.setenv('OMP_WAIT_POLICY', given or '')
        if given is None:
            monkeypatch.delenv('OMP_WAIT_POLICY')
        with pytest.raises(SystemExit):
            main(['--version'])
        assert os.environ['OMP_WAIT_POLICY'] == expected
