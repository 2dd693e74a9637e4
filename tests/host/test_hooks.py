"""The hooks in the real host: what they add and cost, and what they do when the host is not as expected."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import wrapt
from ptychodus.api.reconstruct import (
    NullReconstructor,
    ReconstructInput,
    Reconstructor,
    ReconstructorLibrary,
    TrainOutput,
)
from ptychodus.api.settings import SettingsRegistry
from ptychodus.model import ModelCore
from ptychodus.model.processing.core import ProcessingCore
from ptychodus.model.processing.monitor import (
    ProcessingTaskMonitor,
    ReconstructBackgroundTask,
    TrainBackgroundTask,
)

from ptychopinn_torch_plugin.host import hooks
from ptychopinn_torch_plugin.host.contract import ENTRY_POINT_GROUP, HostRun
from ptychopinn_torch_plugin.host.entry_point import PtychoPINNPyTorchPlugin, plugin

KEYS = ('ptychopinn (pytorch)_pinn', 'ptychopinn (pytorch)_supervised')
OWN = EntryPoint('ptychopinn-pytorch', 'ptychopinn_torch_plugin.host.entry_point:plugin', ENTRY_POINT_GROUP)


def list_algorithms(model: ModelCore) -> list[str]:
    return list(model.processing_core.algorithm_parameter.available_reconstructors())


def run_python(program: str) -> dict[str, Any]:
    """Run a program in a fresh interpreter; its last line of output is JSON, the others come back as ``log``."""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *log, answer = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(answer)
    return found | {'log': '\n'.join(log) + done.stderr}


# In the host as it is


def test_host_lists_both_algorithms_after_its_own(host_model: ModelCore) -> None:
    assert list_algorithms(host_model)[-3:] == [*KEYS, 'ptychopinn (pytorch)_refine']


def test_settings_file_selects_the_algorithm(tmp_path: Path) -> None:
    file = tmp_path / 'settings.ini'
    file.write_text(
        '[Processing]\nAlgorithm = PtychoPINN (PyTorch)_Supervised\n[PtychoPINNPyTorchTraining]\nepochs = 7\n'
    )
    model = ModelCore(file)
    assert model.processing_core.algorithm_parameter.get_value() == KEYS[1]
    assert model.settings_registry['PtychoPINNPyTorchTraining'].parameters()['epochs'].get_value() == 7


def test_two_models_in_one_process_have_settings_of_their_own() -> None:
    first, second = ModelCore(), ModelCore()
    name = 'PtychoPINNPyTorchTraining'
    first.settings_registry[name].parameters()['epochs'].set_value(99)
    assert second.settings_registry[name].parameters()['epochs'].get_value() != 99
    assert list_algorithms(first) == list_algorithms(second)


def test_headless_host_loads_no_heavy_library_and_one_warning_at_most() -> None:
    found = run_python(
        'import json, sys\n'
        'from ptychodus.model import ModelCore\n'
        'keys = list(ModelCore().processing_core.algorithm_parameter.available_reconstructors())\n'
        'heavy = [name for name in ("torch", "lightning", "pytorch_lightning", "PyQt5") if name in sys.modules]\n'
        'print(json.dumps({"keys": keys, "heavy": heavy}))'
    )
    assert set(KEYS) <= set(found['keys'])
    assert found['heavy'] == []
    assert 'ptychopinn_torch_plugin' not in found['log']


def test_applying_twice_wraps_once() -> None:
    hooks.apply()
    before = vars(ProcessingCore)['__init__']
    assert isinstance(before, wrapt.FunctionWrapper)
    hooks.apply.cache_clear()
    hooks.apply()
    assert vars(ProcessingCore)['__init__'] is before
    assert not isinstance(before.__wrapped__, wrapt.FunctionWrapper)


# Other packages in the group


class ForeignLibrary(ReconstructorLibrary):
    """Whatever another package lists."""

    def __init__(self, name: str, reconstructors: tuple[Reconstructor, ...]) -> None:
        super().__init__('foreign')
        self._name = name
        self._reconstructors = reconstructors

    @property
    def name(self) -> str:
        return self._name

    def __iter__(self) -> Iterator[Reconstructor]:
        return iter(self._reconstructors)


class ForeignPlugin(PtychoPINNPyTorchPlugin):
    """A plug-in of another package; subclasses are wrong in one way each."""

    def create_library(self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool) -> ForeignLibrary:
        return ForeignLibrary('Foreign', (NullReconstructor('Engine'),))


class RaisingPlugin(ForeignPlugin):
    """Fails."""

    def create_library(self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool) -> ForeignLibrary:
        raise RuntimeError('no licence found')


class UnderscorePlugin(ForeignPlugin):
    """Gives its library a name the host cannot split."""

    def create_library(self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool) -> ForeignLibrary:
        return ForeignLibrary('For_eign', ())


class WrongContentPlugin(ForeignPlugin):
    """Lists something else than reconstructors."""

    def create_library(self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool) -> ForeignLibrary:
        return ForeignLibrary('Foreign', ('a string',))  # type: ignore[arg-type]


class NoLibraryPlugin(ForeignPlugin):
    """Forgets to return."""

    def create_library(self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool) -> ForeignLibrary:
        return None  # type: ignore[return-value]


foreign = ForeignPlugin()
raising = RaisingPlugin()
underscore = UnderscorePlugin()
wrong_content = WrongContentPlugin()
no_library = NoLibraryPlugin()


def use_entry_points(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    monkeypatch.setattr(hooks, 'entry_points', lambda group: [item for item in entries if item.group == group])


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, ENTRY_POINT_GROUP)


def test_another_package_is_listed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    use_entry_points(monkeypatch, OWN, entry('a-foreign', f'{__name__}:foreign'))
    assert {'foreign_engine', *KEYS} <= set(list_algorithms(ModelCore()))


@pytest.mark.parametrize(
    ('value', 'reason'),
    [
        ('no_such_package.anywhere:plugin', 'no_such_package'),
        (f'{__name__}:no_such_name', 'no_such_name'),
        (f'{__name__}:raising', 'no licence found'),
        (f'{__name__}:underscore', 'underscore'),
        (f'{__name__}:wrong_content', 'holds str'),
        (f'{__name__}:no_library', 'NoneType'),
        (f'{__name__}:entry', 'create_library'),
    ],
)
def test_broken_entry_point_costs_one_warning_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str, reason: str
) -> None:
    use_entry_points(monkeypatch, entry('a-broken', value), OWN)
    model = ModelCore()
    warnings = [record.getMessage() for record in caplog.records if record.name == hooks.logger.name]

    assert set(KEYS) <= set(list_algorithms(model))
    assert len(warnings) == 1
    assert 'a-broken' in warnings[0]
    assert reason in warnings[0]


def test_second_library_of_one_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_entry_points(monkeypatch, entry('a', f'{__name__}:foreign'), entry('b', f'{__name__}:foreign'))
    assert list_algorithms(ModelCore()).count('foreign_engine') == 1
    assert 'of the name "Foreign" already' in caplog.text


def test_entry_point_listed_twice_loads_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    use_entry_points(monkeypatch, OWN, OWN)
    assert set(KEYS) <= set(list_algorithms(ModelCore()))
    assert hooks.logger.name not in {record.name for record in caplog.records}


# Another version of the host

UNKNOWN_HOSTS = {
    'module': (
        'sys.modules["ptychodus.model.processing.core"] = None',
        'module ptychodus.model.processing.core was not found',
    ),
    'class': ('del core.ProcessingCore', 'class ptychodus.model.processing.core.ProcessingCore was not found'),
    'argument': (
        'core.ProcessingCore.__init__ = lambda self, tasks, registry, products, engines: None',
        'takes no argument "settings_registry"',
    ),
    'task': ('del monitor.TrainBackgroundTask', 'TrainBackgroundTask was not found'),
    'field': ('monitor.TrainBackgroundTask = type("TrainBackgroundTask", (), {})', 'has no "__call__"'),
}


@pytest.mark.parametrize('name', UNKNOWN_HOSTS)
def test_unknown_host_is_left_alone_with_one_warning(name: str) -> None:
    change, reason = UNKNOWN_HOSTS[name]
    found = run_python(
        'import json, logging, sys\n'
        'import ptychodus.model\n'
        'from ptychodus.model.processing import api, core, monitor\n'
        f'{change}\n'
        'before = {cls: dict(vars(cls)) for module in (api, core, monitor) for cls in vars(module).values()\n'
        '          if isinstance(cls, type)}\n'
        'logging.basicConfig(stream=sys.stdout)\n'
        'from ptychodus.plugins.reconstructor_entry_points import register_plugins\n'
        'register_plugins(None)\n'
        'register_plugins(None)\n'
        'print(json.dumps({"untouched": all(dict(vars(cls)) == old for cls, old in before.items())}))'
    )
    assert found['untouched']
    assert found['log'].count('WARNING') == 1
    assert reason in found['log']
    assert 'Ptychodus is left alone' in found['log']


def test_host_starts_with_a_broken_package() -> None:
    found = run_python(
        'import json, logging, sys\n'
        'logging.basicConfig(stream=sys.stdout)\n'
        'sys.modules["ptychopinn_torch_plugin.host.hooks"] = None\n'
        'from ptychodus.model import ModelCore\n'
        'model = ModelCore()\n'
        'print(json.dumps({"keys": list(model.processing_core.algorithm_parameter.available_reconstructors())}))'
    )
    assert not set(KEYS) & set(found['keys'])
    assert found['log'].count('WARNING') == 1
    assert 'ptychodus.reconstructors' in found['log']


# What the host knows about a call


class Spy(NullReconstructor):
    """Notes the host's calls around its own."""

    def __init__(self, begin: Callable[[HostRun], None] | None = None) -> None:
        super().__init__('Spy')
        self.notes: list[object] = []
        self._begin = begin

    @contextmanager
    def begin_host_run(self, run: HostRun) -> Iterator[None]:
        if self._begin is not None:
            self._begin(run)

        self.notes.append(run)

        try:
            yield
        finally:
            self.notes.append('end')

    def train(self, input_path: Path, output_path: Path) -> Iterator[TrainOutput]:
        self.notes.append('train')
        yield TrainOutput()
        raise ValueError('training fails')

    def get_progress_goal(self) -> int:
        return 1


def refuse(run: HostRun) -> None:
    raise RuntimeError('the hook is broken')


def make_monitor() -> ProcessingTaskMonitor:
    return ModelCore().processing_core.processing_api.task_monitor


def test_training_hands_over_the_selected_product_and_releases_it(reconstruct_input: ReconstructInput) -> None:
    spy = Spy()
    task = TrainBackgroundTask(make_monitor(), spy, reconstruct_input, Path(), Path())

    with pytest.raises(ValueError, match='training fails'):
        task()

    run, *calls = spy.notes
    assert isinstance(run, HostRun)
    assert run.training_input is reconstruct_input
    assert calls == ['train', 'end']


@pytest.mark.parametrize('file', [None, Path('product.h5')])
def test_reconstruction_says_whether_products_become_files(
    reconstruct_input: ReconstructInput, file: Path | None
) -> None:
    spy = Spy()
    ReconstructBackgroundTask(make_monitor(), spy, reconstruct_input, None, file)()  # type: ignore[arg-type]
    run, end = spy.notes
    assert isinstance(run, HostRun)
    assert run.writes_intermediate_products is (file is not None)
    assert run.output_folder == (None if file is None else Path.cwd())
    assert run.training_input is None
    assert end == 'end'


def test_reconstruction_can_wait_for_the_window(reconstruct_input: ReconstructInput) -> None:
    model, spy, calls = ModelCore(), Spy(), []
    monitor = model.processing_core.processing_api.task_monitor
    ReconstructBackgroundTask(monitor, spy, reconstruct_input, None, None)()  # type: ignore[arg-type]
    run = spy.notes[0]
    assert isinstance(run, HostRun)
    run.call_when_shown(lambda: calls.append('shown'))
    assert not calls
    model.run_tasks()
    assert calls == ['shown']


def test_broken_hook_costs_a_warning_and_not_the_run(
    reconstruct_input: ReconstructInput, caplog: pytest.LogCaptureFixture
) -> None:
    spy = Spy(refuse)

    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match='training fails'):
        TrainBackgroundTask(make_monitor(), spy, reconstruct_input, Path(), Path())()

    assert spy.notes == ['train']
    assert 'the hook is broken' in caplog.text


def test_reconstructor_without_the_hook_runs_as_ever(reconstruct_input: ReconstructInput) -> None:
    task = ReconstructBackgroundTask(make_monitor(), NullReconstructor('x'), reconstruct_input, None, None)  # type: ignore[arg-type]
    task()


def test_plugin_makes_no_panel_for_a_foreign_library() -> None:
    pytest.importorskip('PyQt5')

    with pytest.raises(TypeError, match='ForeignLibrary'):
        plugin.create_view_controller_factory(ForeignLibrary('Foreign', ()), None)  # type: ignore[arg-type]
