"""The progress bar on a real pseudo terminal, and the lines that replace it elsewhere."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ptychopinn_torch_plugin.cli.signals import StopSignals
from ptychopinn_torch_plugin.cli.terminal import logging_to_stderr, progress_bar

from .conftest import QUICK, REFINE, Command

COLUMNS = 160
INTERNAL = ('batch', 'kernel', 'ptychopinn_torch_plugin', 'window')
"""Words that no user needs at level INFO."""


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Make stderr a terminal; what it received is in the list afterwards."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 40, COLUMNS, 0, 0))
    received: list[bytes] = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the other end is closed
                return
            if not chunk:
                return
            received.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(slave, 'w') as stream:
        patch.setattr(sys, 'stderr', stream)
        yield received
    reader.join()
    os.close(master)


def visible(text: str) -> list[str]:
    """Return the lines that stay on the terminal: text after a carriage return replaces what was there."""
    lines = []
    for line in text.split('\n'):
        shown = ''
        for part in line.rstrip('\r').split('\r'):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_a_terminal_shows_epoch_and_time_left_and_keeps_the_log(
    training_file: Path,
    tmp_path: Path,
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr('ptychopinn_torch_plugin.run_progress.LEAST_SECONDS', 0.0)
    model = tmp_path / 'out' / 'model.safetensors'
    with terminal(monkeypatch) as received:
        assert run(['train', training_file, '-o', tmp_path / 'out', *QUICK]) == 0
        assert run(['reconstruct', training_file, '-m', model, '-o', tmp_path / 'out', *REFINE]) == 0
    text = b''.join(received).decode()
    drawn = [part for part in text.replace('\n', '\r').split('\r') if ' %' in part and '|' in part]
    for words in (
        'Training, epoch 1 of 2, fitting the probe',
        'Training, epoch 2 of 2',
        'Reconstruction, epoch 1 of 2',
        'Reconstruction, computing the metrics',
        'Reconstruction, verifying the result',
    ):
        assert any(part.startswith(words) for part in drawn), words
    assert any(', about 5 s left |' in part for part in drawn)
    assert any('validation_loss=' in part for part in drawn)
    lines = visible(text)
    assert not any('|' in line for line in lines), 'a bar was left between the lines of the log'
    log = [line for line in lines if line]
    assert any(line.startswith('Epoch 2 of 2: loss') for line in log)
    assert '\n' not in text.replace('\r\n', ''), 'the terminal adds the carriage returns'
    printed = capsys.readouterr().out + '\n'.join(lines)
    assert printed.count('Misfit ') == 1, 'the verdict is printed once'
    assert len(text.split('\r\n')) - 1 == len(log), 'a line of the log is one line of the terminal'


def test_without_a_terminal_every_stage_is_one_line(
    training_file: Path, tmp_path: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / 'out' / 'model.safetensors'
    assert run(['train', training_file, '-o', tmp_path / 'out', *QUICK]) == 0
    trained = capsys.readouterr()
    assert run(['reconstruct', training_file, '-m', model, '-o', tmp_path / 'out', *REFINE]) == 0
    reconstructed = capsys.readouterr()
    for err in (trained.err, reconstructed.err):
        assert '\r' not in err
        assert '|' not in err
    assert [line.partition(':')[0] for line in trained.err.splitlines() if line.startswith('Epoch')] == [
        'Epoch 1 of 2',
        'Epoch 2 of 2',
    ]
    for line in (*trained.err.splitlines(), *reconstructed.err.splitlines()):
        assert len(line) < 160, line
        assert not any(word in line.casefold() for word in ('batch', 'kernel', 'ptychopinn_torch_plugin', 'window')), (
            line
        )
    stages = ('Reconstructing scan.npz', 'Refined 2 epochs', 'The report is')
    assert [sum(line.startswith(stage) for line in reconstructed.err.splitlines()) for stage in stages] == [1, 1, 1]
    assert (reconstructed.out + reconstructed.err).count('Misfit ') == 1


def test_a_line_of_the_log_does_not_draw_the_bar_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        terminal(monkeypatch) as received,
        logging_to_stderr(quiet=False),
        progress_bar('Refining', StopSignals(), quiet=False) as observer,
    ):
        observer.on_progress(1, 10)
        for number in range(20):
            logging.getLogger('ptychopinn_torch_plugin').info('line %d', number)
        observer.on_progress(10, 10)
    text = b''.join(received).decode()
    assert text.count('Refining |') == 3, 'at the start, and for each progress'
    assert [line for line in visible(text) if line] == [f'line {number}' for number in range(20)]
