"""One run writes into an output folder at a time; a dead owner does not hold it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ptychopinn_torch_plugin.errors import OutputError
from ptychopinn_torch_plugin.storage import folder_lock
from ptychopinn_torch_plugin.storage.folder_lock import MARKER_FILE, OWNER_FILE, locked, read_owner

ROOT = Path(__file__).parents[2]

HOLD = """
import os, socket, sys
from pathlib import Path
host, lease_s = sys.argv[2], float(sys.argv[3])
if host:  # another node of a cluster: another name, and another start of the machine
    socket.gethostname = lambda: host
    import platform
    platform.node = lambda: host
from ptychopinn_torch_plugin.storage import folder_lock
folder_lock.LEASE_S = lease_s
if len(sys.argv) > 4:  # another user, once everything is imported
    os.setuid(int(sys.argv[4]))
with folder_lock.locked(Path(sys.argv[1]), 'training') as lock:
    print('locked', flush=True)
    sys.stdin.readline()
    lock.check()
"""
LEASE_S = 1.2


@contextmanager
def holder(folder: Path, host: str = '', lease_s: float = folder_lock.LEASE_S) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds ``folder`` until a line is written to it; ``host`` other than '' is another node."""
    command = [sys.executable, '-c', HOLD, str(folder), host, str(lease_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == 'locked\n', process.stderr and process.stderr.read()
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.stdin.close()
                process.wait()


def test_the_second_run_is_refused_and_names_the_first(tmp_path: Path) -> None:
    folder = tmp_path / 'out'
    with holder(folder) as first:
        with pytest.raises(OutputError) as caught, locked(folder, 'training'):
            pytest.fail('two runs hold one folder')
        owner = read_owner(folder)
        assert owner is not None
        for part in (str(folder), f'process {first.pid} on {owner.host}', 'began training', owner.since, str(folder)):
            assert part in str(caught.value)
        assert f'-c {folder}' in owner.command
        assert MARKER_FILE not in str(caught.value), 'nobody is asked to remove the marker of a living process'
    with locked(folder, 'training'):
        assert read_owner(folder) is not None
    assert list(folder.iterdir()) == []


def test_two_runs_of_one_process_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path, 'training'):
        with pytest.raises(OutputError, match=f'process {os.getpid()} '), locked(tmp_path, 'training'):
            pytest.fail('two runs hold one folder')
        assert read_owner(tmp_path) is not None, 'the refused run has not removed the description of the first'


def test_an_exception_releases_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, 'training'):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.kill()
        first.wait()
    assert (tmp_path / MARKER_FILE).is_file()
    with locked(tmp_path, 'training'):
        owner = read_owner(tmp_path)
        assert owner is not None
        assert owner.pid == os.getpid()


def test_a_process_number_given_out_again_is_not_the_owner(tmp_path: Path) -> None:
    """The marker names the number of a living process (this one) with another start time."""
    with holder(tmp_path) as first:
        first.kill()
        first.wait()
    marker = (tmp_path / MARKER_FILE).read_text()
    assert f'pid={first.pid}' in marker.split()
    (tmp_path / MARKER_FILE).write_text(marker.replace(f'pid={first.pid}', f'pid={os.getpid()}'))
    with locked(tmp_path, 'training'):
        pass


def test_a_living_owner_on_another_machine_keeps_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, 'LEASE_S', LEASE_S)
    monkeypatch.setattr(folder_lock, '_POLL_S', 0.05)
    refused = pytest.raises(OutputError, match='on node17 began training')
    with holder(tmp_path, 'node17', LEASE_S), refused, locked(tmp_path, 'training'):
        pytest.fail('two runs hold one folder')


def test_a_dead_owner_on_another_machine_loses_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder_lock, 'LEASE_S', LEASE_S)
    monkeypatch.setattr(folder_lock, '_POLL_S', 0.05)
    with holder(tmp_path, 'node17', LEASE_S) as first:
        first.kill()
        first.wait()
    with locked(tmp_path, 'training'):
        pass
    assert f'in use by process {first.pid} on node17' in caplog.text


def test_an_owner_that_stood_still_learns_of_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, 'LEASE_S', LEASE_S)
    monkeypatch.setattr(folder_lock, '_POLL_S', 0.05)
    with holder(tmp_path, 'node17', LEASE_S) as first:
        first.send_signal(signal.SIGSTOP)
        with locked(tmp_path, 'training'):
            first.send_signal(signal.SIGCONT)
            assert first.stderr is not None
            line = first.stderr.readline()
            while 'was lost' not in line:
                assert line, 'the loss was not noticed'
                line = first.stderr.readline()
            assert first.stdin is not None
            first.stdin.write('\n')
            first.stdin.flush()
            assert 'is no longer locked by this run' in first.stderr.read()
            owner = read_owner(tmp_path)
            assert owner is not None, 'the loser has removed the description of its successor'
            assert owner.pid == os.getpid()


@pytest.mark.parametrize('content', [b'', b'\xff\xfe', b'[' * 50_000, b'{"host": 1}', None])
def test_an_owner_without_a_readable_description_is_respected(tmp_path: Path, content: bytes | None) -> None:
    with locked(tmp_path, 'training'):
        (tmp_path / OWNER_FILE).unlink()
        if content is None:
            os.mkfifo(tmp_path / OWNER_FILE)
        else:
            (tmp_path / OWNER_FILE).write_bytes(content)
        assert read_owner(tmp_path) is None


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with (
        pytest.raises(OutputError, match='cannot be locked for this run .*choose another output folder'),
        locked(tmp_path / 'file' / 'out', 'training'),
    ):
        pytest.fail('a file is no folder')


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() != 0, reason='only root may become another user')
@pytest.mark.parametrize('umask', [0o000, 0o077])
def test_the_folder_of_another_user(tmp_path: Path, umask: int) -> None:
    """Whatever the owner's umask, another user of a shared folder is refused with a sentence."""
    folder = tmp_path / 'shared'
    folder.mkdir()
    for path in (folder, tmp_path, *tmp_path.parents):
        if path.name.startswith(('pytest-', 'popen-')) or path.is_relative_to(tmp_path):
            path.chmod(0o777)
    before = os.umask(umask)
    try:
        with locked(folder, 'training'):
            assert (folder / MARKER_FILE).stat().st_mode & 0o022 == 0
            done = subprocess.run(
                [sys.executable, '-c', HOLD, str(folder), '', str(folder_lock.LEASE_S), '65534'],
                capture_output=True,
                text=True,
                cwd=ROOT,
                check=False,
            )
    finally:
        os.umask(before)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert f'{folder} is in use' in last, done.stderr
    assert done.stdout == ''
