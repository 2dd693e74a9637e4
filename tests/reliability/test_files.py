"""Files: whole or as before, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ptychopinn_torch_plugin.errors import OutputError
from ptychopinn_torch_plugin.storage import atomic as files
from ptychopinn_torch_plugin.storage.atomic import ABANDONED_S, open_atomically, sweep, write_atomically, writer_tag
from tests.helpers.fault_report import FaultReport

ROOT = Path(__file__).parents[2]


def run(program: str, folder: Path, prefix: tuple[str, ...] = (), file_limit: int | None = None) -> dict[str, Any]:
    """Run one of the programs beside this file; its last line is JSON."""

    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    done = subprocess.run(
        [*prefix, sys.executable, '-m', f'tests.reliability.{program}', str(folder)],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONDONTWRITEBYTECODE': '1'},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the program that kills writers forks them')
def test_a_killed_writer_leaves_the_old_or_the_new_file(tmp_path: Path, fault_report: FaultReport) -> None:
    found = run('killed_writer', tmp_path)
    assert found['wrong'] == []
    assert found['left'] > 0, 'some were killed while they wrote'
    assert found['swept']
    for moment in found['moments']:
        fault_report.record(
            f'a writer is killed {moment}', 'nothing: the process is gone', 'the old or the new file, whole'
        )
    fault_report.record(
        'a writer is killed at 60 random moments',
        'nothing: the process is gone',
        'the old or the new file, whole; what is left over is swept by the next writer',
    )


def mount_prefix(folder: Path, size: str) -> tuple[str, ...]:
    """Command words before a program that is to see a file system of ``size`` in ``folder``, in its own namespace."""
    mount = f'mount -t tmpfs -o size={size} tmpfs "{folder}" && exec "$@"'
    return ('unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', mount, 'sh')


def can_mount(folder: Path) -> bool:
    if shutil.which('unshare') is None:
        return False
    done = subprocess.run([*mount_prefix(folder, '64k'), 'true'], capture_output=True, check=False)
    return done.returncode == 0


def check_full_disk(found: dict[str, Any], fault: str, fault_report: FaultReport) -> None:
    for name, outcome in found.items():
        assert 'could not be written' in outcome['said'], name
        assert 'it needs ' in outcome['said'], name
        needed = int(outcome['said'].split('it needs ')[1].split(' bytes')[0].replace(',', ''))
        assert needed > 300_000, name
        assert 'Free some space' in outcome['said'], name
        assert outcome['kept'], name
        fault_report.record(f'{fault}: {name}', outcome['said'], 'the old file', outcome['seconds'])


def test_a_full_disk_is_reported_and_the_old_file_stays(tmp_path: Path, fault_report: FaultReport) -> None:
    if not can_mount(tmp_path):
        pytest.skip('no small file system can be mounted here')
    check_full_disk(run('full_disk', tmp_path, mount_prefix(tmp_path, '300k')), 'the disk is full', fault_report)


def test_a_quota_is_reported_and_the_old_file_stays(tmp_path: Path, fault_report: FaultReport) -> None:
    check_full_disk(
        run('full_disk', tmp_path, file_limit=300_000), 'the file is larger than the system allows', fault_report
    )


def test_a_folder_that_takes_no_file_is_reported(tmp_path: Path, fault_report: FaultReport) -> None:
    (tmp_path / 'file').write_bytes(b'in the way')
    with pytest.raises(OutputError) as caught:
        write_atomically(tmp_path / 'file' / 'model.safetensors', b'x')
    assert 'Choose another folder' in str(caught.value)
    fault_report.record('the folder cannot be made', str(caught.value), 'everything')


def test_an_exception_while_writing_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    write_atomically(path, b'old')
    with pytest.raises(KeyboardInterrupt), open_atomically(path, 3) as stream:
        stream.write(b'n')
        raise KeyboardInterrupt
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('file', b'old')]


def test_only_what_a_dead_writer_left_is_swept(tmp_path: Path, fault_report: FaultReport) -> None:
    machine, pid = writer_tag().split('-')
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    now = time.time()
    ages = {
        f'.ptychopinn-{machine}-{ended.pid}-0123abcd.tmp': 0.0,
        f'.ptychopinn-00000000-{pid}-0123abcd.tmp': ABANDONED_S + 60,
        f'.ptychopinn-{machine}-{pid}-0123abcd.tmp': ABANDONED_S + 60,
        '.ptychopinn-00000000-1-0123abcd.tmp': ABANDONED_S - 60,
        '.ptychopinn-notes.tmp': 10 * ABANDONED_S,
        f'ptychopinn-{machine}-{ended.pid}-0123abcd.tmp': 10 * ABANDONED_S,
        'somebody.tmp': 10 * ABANDONED_S,
    }
    for name, age in ages.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - age, now - age))
    (tmp_path / f'.ptychopinn-{machine}-{ended.pid}-ffffffff.tmp').symlink_to(tmp_path / 'somebody.tmp')
    sweep(tmp_path)
    left = {file.name for file in tmp_path.iterdir()}
    assert set(ages) - left == set(list(ages)[:2])
    assert any(name.endswith('-ffffffff.tmp') for name in left), 'no link is followed or removed'
    fault_report.record(
        'unfinished files of processes that have ended', 'nothing', 'every finished file; the unfinished are removed'
    )


def test_the_folder_is_flushed_after_the_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace, flush = Path.replace, files._flush_folder

    def noting_replace(self: Path, target: Path) -> Path:
        events.append('rename')
        return replace(self, target)

    def noting_flush(folder: Path) -> None:
        events.append(f'flush {folder.name}')
        flush(folder)

    monkeypatch.setattr(Path, 'replace', noting_replace)
    monkeypatch.setattr(files, '_flush_folder', noting_flush)
    write_atomically(tmp_path / 'file', b'new')
    assert events == ['rename', f'flush {tmp_path.name}']
