"""Every way out of a command reports what is on disk: signals, lost streams, a lost working folder, full memory."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ptychopinn_torch_plugin.cli import commands
from ptychopinn_torch_plugin.cli.codes import ExitCode
from ptychopinn_torch_plugin.cli.outputs import write_reconstruction
from ptychopinn_torch_plugin.cli.signals import Interrupted, StopSignals
from ptychopinn_torch_plugin.demo import demonstration
from ptychopinn_torch_plugin.engines import pipeline
from ptychopinn_torch_plugin.signals import RUN_STOP_SIGNALS
from tests.helpers.processes import running

from .conftest import REFINE, Command, JsonCommand

CLI = [sys.executable, '-m', 'ptychopinn_torch_plugin.cli']
ROOT = Path(__file__).parents[2]


def with_signals_before(
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    *numbers: int,
) -> None:
    """Have signals come when the function ``name`` of ``module`` is called, which then does its work."""
    function: Callable[..., Any] = getattr(module, name)

    def signalled(*args: object, **options: object) -> object:
        for number in numbers:
            signal.raise_signal(number)
        return function(*args, **options)

    monkeypatch.setattr(module, name, signalled)


def start(words: list[object], **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - those of subprocess
    """Run the command in a process of its own."""
    environment = options.pop('env', os.environ) | {'PYTHONPATH': str(ROOT)}
    captured = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'timeout': 100}
    command = [*options.pop('prefix', []), *CLI, *(str(word) for word in words)]
    return subprocess.run(command, check=False, **(captured | {'env': environment} | options))


def test_a_signal_in_the_reconstruction_keeps_the_object_so_far(
    training_file: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = signal.SIGTERM
    with_signals_before(monkeypatch, pipeline, 'refine', number)
    output = tmp_path / 'part.npz'
    document = run_json(['refine', training_file, '-o', output, '--set', 'refinement.refine_epochs=1000'])
    assert document['exit_code'] == 128 + number
    assert document['interrupted_by'] == number.name
    assert len(document['losses']) < 1000
    assert str(output) in document['written']
    assert output.is_file()


@pytest.mark.parametrize('number', sorted(RUN_STOP_SIGNALS), ids=lambda number: number.name)
def test_every_stop_signal_asks_to_end(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        signals.check()
        signal.raise_signal(number)
        assert signals.received == number.name
        assert signals.exit_code == ExitCode(128 + number)
        with pytest.raises(Interrupted), signals.interrupting():
            pytest.fail('work that can be ended at once begins after a signal')
    assert signal.getsignal(number) == before


@pytest.mark.parametrize('place', ['write_reconstruction', 'write_metrics'])
def test_a_signal_after_the_reconstruction_loses_nothing(
    place: str,
    training_file: Path,
    tmp_path: Path,
    run_json: JsonCommand,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Between the solver and the product, and between product and metrics: everything is written, and the run is ok."""
    with_signals_before(monkeypatch, commands, place, signal.SIGTERM)
    output = tmp_path / 'out' / 'r.npz'
    document = run_json(['refine', training_file, '-o', output, *REFINE])
    names = ['judgement/judgement.json', 'judgement/maps.npz', 'judgement/judgement.png', 'report.html']
    assert document['ok']
    assert 'SIGTERM came after the reconstruction was complete' in caplog.text
    assert document['output'] == str(output)
    assert document['written'] == [str(output), *(str(tmp_path / 'out' / name) for name in names)]


def test_the_second_signal_ends_the_writing_and_the_product_is_named(
    training_file: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_signals_before(monkeypatch, commands, 'write_metrics', signal.SIGINT, signal.SIGINT)
    output = tmp_path / 'r.npz'
    document = run_json(['refine', training_file, '-o', output, *REFINE])
    assert document['exit_code'] == 130
    assert document['interrupted_by'] == 'SIGINT'
    assert document['written'] == [str(output)]
    assert document['error']['message'] == f'Ended by SIGINT. Written: {output}.'


def test_an_old_product_is_not_reported_as_written(
    training_file: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'r.npz').write_bytes(b'of an earlier run')
    with_signals_before(monkeypatch, commands, 'write_reconstruction', signal.SIGINT, signal.SIGINT)
    document = run_json(['refine', training_file, '-o', tmp_path / 'r.npz', *REFINE])
    assert document['written'] == []
    assert document['error']['message'] == 'Ended by SIGINT. Nothing was written.'


def test_a_signal_before_the_run_ends_at_once(
    training_file: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_signals_before(monkeypatch, commands, 'load_scan', signal.SIGTERM)
    document = run_json(['export', training_file, '-o', tmp_path / 'copy.npz'])
    assert document['exit_code'] == 143
    assert document['error'] == {'type': 'Interrupted', 'message': 'Ended by SIGTERM. Nothing was written.'}
    assert not (tmp_path / 'copy.npz').exists()


def test_half_of_a_workflow_folder_is_reported(
    training_file: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptychopinn_torch_plugin.data.io import conversion

    with_signals_before(monkeypatch, conversion, 'write_product', signal.SIGINT)
    document = run_json(['convert', training_file, '-o', tmp_path / 'folder', '--nominal'])
    assert document['exit_code'] == 130
    assert document['written'] == [str(tmp_path / 'folder' / 'diffraction.h5')]


def test_a_signal_while_torch_is_imported_ends_the_command_after_it() -> None:
    signals = StopSignals()
    imported = []
    with signals, pytest.raises(Interrupted), commands.engine_imports(signals):
        signal.raise_signal(signal.SIGINT)
        imported.append('the rest of the module')
    assert imported


def test_the_third_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, 'kill', lambda process, number: sent.append((process, number)))
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == 'SIGINT'
        assert signals.exit_code == 130
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        assert signals.received == 'SIGINT'
        signal.raise_signal(signal.SIGTERM)
        assert sent == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_ends_the_demonstration_and_its_ptychodus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of Ptychodus runs a program that sends the signal and would go on for ever."""
    program = tmp_path / 'endless'
    program.write_text('#!/bin/sh\nkill -TERM $PPID\nexec sleep 1000\n')
    program.chmod(0o700)
    monkeypatch.setattr(sys, 'executable', str(program))
    with StopSignals() as signals, pytest.raises(Interrupted), signals.interrupting():
        demonstration._ptychodus('train', tmp_path, tmp_path, 'Training')


def test_signals_that_are_ignored_stay_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_in_the_imports_is_one_sentence(training_file: Path) -> None:
    """The signal comes as soon as the first large package is imported."""
    command = [sys.executable, '-X', 'importtime', *CLI[1:], 'info', str(training_file)]
    with running(command, cwd=ROOT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rstrip().endswith('ptychopinn_torch_plugin.errors'):
                break
        process.send_signal(signal.SIGINT)
        log = process.stderr.read()
        assert process.wait() == 130, log
    assert log.endswith('ptychopinn-torch: Ended by SIGINT. Nothing was written.\n')
    assert 'Traceback' not in log


@pytest.mark.parametrize('words', ['--help', 'info'])
@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no device that is always full')
def test_a_full_stdout(words: str, training_file: Path) -> None:
    with Path('/dev/full').open('w') as full:
        done = start([words, training_file] if words == 'info' else [words], stdout=full)
    assert done.returncode == 1
    assert done.stderr == 'ptychopinn-torch: The result cannot be written to stdout (No space left on device).\n'


def test_a_pipe_that_nobody_reads(
    training_file: Path, run: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    copy = training_file.with_name('copy.npz')
    with Path(os.devnull).open('w') as stream:
        os.dup2(writer, stream.fileno())
        os.close(writer)
        monkeypatch.setattr(sys, 'stdout', stream)
        assert run(['-q', 'export', training_file, '-o', copy]) == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    assert capsys.readouterr().err == (
        f'ptychopinn-torch: The result cannot be written to stdout (Broken pipe). Written: {copy}.\n'
    )


def test_a_log_that_nobody_reads(
    training_file: Path, run: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lost stderr is no reason to end a run."""

    class Lost(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError(32, 'Broken pipe')

    monkeypatch.setattr(sys, 'stderr', Lost())
    assert run(['export', training_file, '-o', training_file.with_name('copy.npz')]) == 0
    assert 'training file (counts)' in capsys.readouterr().out


def test_a_closed_stdout(training_file: Path) -> None:
    copy = training_file.with_name('copy.npz')
    done = start(['-q', 'export', training_file, '-o', copy], prefix=['sh', '-c', 'exec "$@" >&-', 'sh'])
    assert done.returncode == 1
    assert copy.is_file()
    assert done.stderr == (
        f'ptychopinn-torch: The result cannot be written to stdout (it is closed). Written: {copy}.\n'
    )


def test_a_file_does_not_get_what_is_printed_on_closed_streams(tmp_path: Path) -> None:
    program = (
        'import os, sys; from ptychopinn_torch_plugin.cli.streams import prepared_streams\n'
        'with prepared_streams(), open(sys.argv[1], "wb"):\n'
        '    print("a line"); os.write(1, b"a library in C"); os.write(2, b"a library in C")\n'
    )
    command = ['sh', '-c', 'exec "$@" <&- >&- 2>&-', 'sh', sys.executable, '-c', program, str(tmp_path / 'file')]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert (tmp_path / 'file').read_bytes() == b''


def test_a_removed_working_folder(training_file: Path, tmp_path: Path) -> None:
    (tmp_path / 'gone').mkdir()
    shell = 'cd "$0" && rmdir "$0" && exec "$@"'
    done = start(['info', training_file, '--json'], prefix=['sh', '-c', shell, str(tmp_path / 'gone')])
    assert done.returncode == 1
    assert 'The working folder does not exist any more' in json.loads(done.stdout)['error']['message']
    assert 'Traceback' not in done.stderr


def test_the_working_folder_may_go_while_the_command_runs(
    training_file: Path, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')

    def write(*args: Any) -> None:  # noqa: ANN401 - passed on
        shutil.rmtree(tmp_path / 'here')
        write_reconstruction(*args)

    monkeypatch.setattr(commands, 'write_reconstruction', write)
    assert run(['refine', training_file, '-o', 'r.npz', *REFINE]) == 0
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / 'here' / 'r.npz').is_file()


@pytest.mark.parametrize('message', ['', 'std::bad_alloc'])
def test_full_memory_is_one_sentence(
    message: str, training_file: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message) if message else MemoryError

    monkeypatch.setattr(commands, 'write_metrics', fail)
    document = run_json(['refine', training_file, '-o', tmp_path / 'r.npz', *REFINE])
    assert document['exit_code'] == 1
    assert document['error']['message'].startswith(f'There is not enough memory ({message or "MemoryError"}): ')
    assert document['written'] == [str(tmp_path / 'r.npz')]


def test_a_limit_on_memory_is_one_sentence(training_file: Path) -> None:
    """The limit is too small for torch: its libraries cannot be loaded, or an import runs out of memory."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (650 * 2**20, 650 * 2**20))

    words = ['-q', 'refine', training_file, '-o', training_file.with_name('r.npz'), '--json']
    done = start(words, preexec_fn=limit, env=os.environ | {'OPENBLAS_NUM_THREADS': '1'})
    assert done.returncode == 1, done.stderr
    assert 'There is not enough memory to load the libraries' in json.loads(done.stdout)['error']['message']
    assert 'Traceback' not in done.stderr


def test_a_defect_is_reported_as_one(
    training_file: Path, tmp_path: Path, run_json: JsonCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, 'write_npz', lambda *_, **__: 1 / 0)
    document = run_json(['export', training_file, '-o', tmp_path / 'copy.npz'])
    assert document['exit_code'] == 1
    assert 'This is a defect of ptychopinn_torch_plugin' in document['error']['message']


@pytest.mark.skipif(shutil.which('unshare') is None, reason='needs user namespaces')
def test_a_user_without_an_entry_and_home(training_file: Path) -> None:
    """As in a container that runs under any user number; with a backend of notebooks that is not installed."""
    prefix = ['unshare', '--user', '--map-user=12345', 'env', '-u', 'HOME', 'MPLBACKEND=no_such_backend']
    if subprocess.run([*prefix, 'true'], check=False, capture_output=True).returncode != 0:
        pytest.skip('this system does not allow user namespaces')
    done = start(['info', training_file], prefix=prefix)
    assert done.returncode == 0, done.stderr
    program = (
        'import sys; from ptychopinn_torch_plugin.metrics.plots import new_figure\n'
        'new_figure(3, 2).savefig(sys.argv[1])'
    )
    image = training_file.with_suffix('.png')
    subprocess.run([*prefix, sys.executable, '-c', program, str(image)], check=True, cwd=ROOT, umask=0o077)
    assert image.read_bytes().startswith(b'\x89PNG')
