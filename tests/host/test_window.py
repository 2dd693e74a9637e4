"""The real Ptychodus window without a screen: panels, and the buttons around a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip('PyQt5')
os.environ.setdefault('QT_QPA_PLATFORM', 'offscreen')

from ptychodus.controller import ControllerCore
from ptychodus.model import ModelCore
from ptychodus.view import ViewCore
from PyQt5.QtWidgets import QApplication, QCheckBox, QComboBox, QFormLayout, QGroupBox, QLabel, QLineEdit, QWidget

from ptychopinn_torch_plugin.errors import ModelNotLoadedError
from ptychopinn_torch_plugin.host import runs as runs_module
from ptychopinn_torch_plugin.host.settings import SECTIONS, iter_setting_fields

from .fake_worker import LOSSES, FakeWorker

_KEPT: list[Window] = []
KEYS = ('ptychopinn (pytorch)_pinn', 'ptychopinn (pytorch)_supervised')


class Window:
    """The host's window with the few things a user does to it."""

    def __init__(self, application: QApplication, model: ModelCore) -> None:
        self._application = application
        self.model = model
        self.view = ViewCore()
        self.controller = ControllerCore(model, self.view)
        self.processing = self.controller._processing_controller

    def select(self, key: str) -> None:
        combo_box = self.processing._algorithm_view_controller.get_widget()
        combo_box.setCurrentText(key)
        combo_box.textActivated.emit(key)

    def panel(self) -> QWidget:
        widget = self.processing._stacked_widget.currentWidget()
        assert widget is not None
        return widget

    def wait(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds

        while not condition():
            assert time.monotonic() < end, 'the window did not get there'
            self._application.processEvents()
            self.model.run_tasks()
            time.sleep(0.01)


@pytest.fixture(scope='module')
def window() -> Iterator[Window]:
    """One window for all tests: Qt does not survive Python collecting one while the next is built."""
    application = QApplication.instance() or QApplication(['ptychodus'])
    assert isinstance(application, QApplication)

    with ModelCore() as model:
        window = Window(application, model)
        _KEPT.append(window)
        yield window
        window.controller._run_tasks_timer.stop()


def cell(form: QFormLayout, row: int, role: QFormLayout.ItemRole) -> QWidget:
    item = form.itemAt(row, role)
    assert item is not None
    widget = item.widget()
    assert widget is not None
    return widget


def rows(panel: QWidget) -> dict[str, dict[str, QWidget]]:
    """Widgets of a panel by box title and label."""
    found: dict[str, dict[str, QWidget]] = {}

    for box in panel.findChildren(QGroupBox):
        form = box.layout()
        assert isinstance(form, QFormLayout)
        found[box.title()] = {}

        for row in range(form.rowCount()):
            label, widget = (
                cell(form, row, role) for role in (QFormLayout.ItemRole.LabelRole, QFormLayout.ItemRole.FieldRole)
            )
            assert isinstance(label, QLabel)
            found[box.title()][label.text()] = widget

    return found


@pytest.mark.parametrize('key', KEYS)
def test_panel_has_a_labelled_row_for_every_setting(window: Window, key: str) -> None:
    window.select(key)
    found = rows(window.panel())
    sections = [section for section in SECTIONS if section != 'execution']
    assert list(found) == [section.capitalize() for section in sections]

    for section in sections:
        fields = list(iter_setting_fields(section))
        assert list(found[section.capitalize()]) == [f'{field.caption}:' for field in fields]

        for field in fields:
            widget = found[section.capitalize()][f'{field.caption}:']
            kind = QCheckBox if field.kind is bool else QComboBox if field.choices else QLineEdit
            assert isinstance(widget, kind) or widget.findChild(kind) is not None
            assert field.tip in {widget.toolTip(), *(child.toolTip() for child in widget.findChildren(QWidget))}


def test_panel_of_refine_shows_what_it_uses(window: Window) -> None:
    window.select('ptychopinn (pytorch)_refine')
    found = rows(window.panel())
    assert list(found) == ['Probe', 'Refinement', 'Inference']
    assert 'Refine the probe:' in found['Refinement']
    assert not any('step' in label.casefold() and 'Unrolled' in label for label in found['Inference'])
    assert window.processing._actions_view.reconstruct_button.text() == 'Reconstruct'
    assert window.processing._actions_view.train_button.isHidden()


def test_panels_show_and_change_the_settings(window: Window) -> None:
    group = window.model.settings_registry['PtychoPINNPyTorchTraining']
    group.parameters()['epochs'].set_value(123)
    group.parameters()['accelerator'].set_value('cuda')

    for key in KEYS:
        window.select(key)
        training = rows(window.panel())['Training']
        epochs, accelerator = training['Epochs:'], training['Accelerator:']
        assert isinstance(epochs, QLineEdit)
        assert isinstance(accelerator, QComboBox)
        assert epochs.text() == '123'
        assert accelerator.currentText() == 'cuda'
        assert [accelerator.itemText(index) for index in range(accelerator.count())] == ['auto', 'cpu', 'cuda', 'mps']

    epochs.setText('5')
    epochs.editingFinished.emit()
    assert group.parameters()['epochs'].get_value() == 5


def test_window_can_be_grabbed(window: Window) -> None:
    window.select(KEYS[0])
    window.view.resize(1200, 900)
    assert window.panel().grab().toImage().width() > 0


def load_workflow(window: Window, folder: Path) -> int:
    """Load the host's two files, select the product and return its index."""
    workflow = window.model.workflow_api
    data = workflow.load_assembled_diffraction_data(folder / 'diffraction.h5')
    index = len(window.model.product_core.product_repository)
    workflow.load_product(folder / 'product.h5', diffraction=data)
    combo_box = window.processing._product_view_controller.get_widget()
    window.wait(lambda: combo_box.count() > index)
    combo_box.setCurrentIndex(index)
    window.wait(window.processing._actions_view.train_button.isEnabled)
    return index


def test_train_then_infer_with_the_buttons_of_the_window(
    window: Window, workflow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker()
    monkeypatch.setattr(runs_module, 'run_job', worker)
    empty_folder = tmp_path / 'empty'
    empty_folder.mkdir()
    dialogs = window.processing._file_dialog_factory
    monkeypatch.setattr(dialogs, 'get_existing_directory_path', lambda *_args, **_kwargs: empty_folder)
    index = load_workflow(window, workflow_folder)
    window.select(KEYS[1])
    window.select(KEYS[0])
    actions = window.processing._actions_view
    monitor = window.model.processing_core.processing_api.task_monitor
    assert actions.reconstruct_button.text() == 'Infer'
    assert not actions.reconstruct_button.isEnabled()

    runs = monitor.get_completed_runs()
    actions.train_button.click()
    window.wait(actions.reconstruct_button.isEnabled)
    assert monitor.get_completed_runs() == runs + 1
    assert monitor.get_last_error() is None
    assert (empty_folder / 'model.safetensors').is_file()
    assert len(worker.scan_names[0]) == 1  # the selected product: the folder holds no files

    repository = window.model.product_core.product_repository
    actions.reconstruct_button.click()
    window.wait(lambda: monitor.get_completed_runs() == runs + 2)
    window.wait(lambda: len(repository[index + 1].get_losses()) == len(LOSSES))
    assert (repository[index + 1].get_product().object_.get_array() == 0.5j).all()


def test_inference_without_a_model_says_what_to_do(window: Window, workflow_folder: Path) -> None:
    index = load_workflow(window, workflow_folder)
    window.select(KEYS[1])
    api = window.model.processing_core.processing_api
    runs = api.task_monitor.get_completed_runs()
    api.reconstruct(product_index=index)
    window.wait(lambda: api.task_monitor.get_completed_runs() == runs + 1)
    window.wait(lambda: 'train one first' in window.view.processing_status_view.text_edit.toPlainText())
    assert isinstance(api.task_monitor.get_last_error(), ModelNotLoadedError)


BROKEN_PANELS = {
    'no factory': ('raise RuntimeError("no panel today")', 'not found!', 'no panel today'),
    'no panel': ('factory.create_view_controller = lambda name: 1 / 0', 'cannot be shown', 'ZeroDivisionError'),
    'wrong name': ('Factory.name = "Somebody else"', 'not found!', 'Somebody else'),
}

BROKEN_PANEL_PROGRAM = """
import json, logging, os, sys
from PyQt5.QtWidgets import QApplication
from ptychodus.controller import ControllerCore
from ptychodus.model import ModelCore
from ptychodus.view import ViewCore
from ptychopinn_torch_plugin.host.panel import PtychoPINNViewControllerFactory as Factory
from ptychopinn_torch_plugin.host.entry_point import PtychoPINNPyTorchPlugin

def create(self, library, file_dialog_factory):
    factory = Factory(library)
    {change}
    return factory

PtychoPINNPyTorchPlugin.create_view_controller_factory = create
application = QApplication(['ptychodus'])
logging.basicConfig(stream=sys.stdout)
model = ModelCore()
controller = ControllerCore(model, ViewCore())
panels = controller._processing_controller._stacked_widget
print(json.dumps([panels.widget(panels.count() - 1 - index).text() for index in range(2)]), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize('name', BROKEN_PANELS)
def test_window_opens_although_a_panel_is_broken(name: str) -> None:
    change, text, reason = BROKEN_PANELS[name]
    program = BROKEN_PANEL_PROGRAM.format(change=change)
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *log, answer = done.stdout.splitlines()
    assert all(text in shown for shown in json.loads(answer))
    assert reason in '\n'.join(log)
