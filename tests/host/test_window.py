"""The real Ptychodus window without a screen: panels, and the buttons around a run."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip('PyQt5')
os.environ.setdefault('QT_QPA_PLATFORM', 'offscreen')

from ptychodus.controller import ControllerCore
from ptychodus.model import ModelCore
from ptychodus.view import ViewCore
from PyQt5.QtCore import Qt
from PyQt5.QtTest import QTest
from PyQt5.QtWidgets import (
    QAbstractSpinBox,
    QApplication,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QLabel,
    QMessageBox,
    QSpinBox,
    QWidget,
)

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.errors import InputError, ModelNotLoadedError
from ptychopinn_torch_plugin.host import runs as runs_module
from ptychopinn_torch_plugin.host.panel.fields import RealField
from ptychopinn_torch_plugin.host.panel.fold import Fold
from ptychopinn_torch_plugin.host.panel.layout import shown_fields
from ptychopinn_torch_plugin.host.panel.page import SettingsPage
from ptychopinn_torch_plugin.observer import FITTING_PROBE
from ptychopinn_torch_plugin.presets import PRESETS, preset_settings
from ptychopinn_torch_plugin.storage.model_file import save_model
from ptychopinn_torch_plugin.worker.job import Job
from ptychopinn_torch_plugin.worker.messages import Heartbeat, Losses, Message, Preview, Progress, Stage
from tests.helpers.models import untrained_model

from .fake_worker import LOSSES, FakeWorker, finish

_KEPT: list[Window] = []
KEYS = ('ptychopinn (pytorch)_pinn', 'ptychopinn (pytorch)_supervised')
REFINE = 'ptychopinn (pytorch)_refine'


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

    def settle(self) -> None:
        for _ in range(3):
            self._application.processEvents()

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


def fields(panel: QWidget) -> dict[str, QWidget]:
    """Fields of a panel by their labels."""
    found = {}
    for label in panel.findChildren(QLabel):
        widget = label.buddy()
        if widget is not None and label.text() != 'Preset:':
            assert label.text() not in found, f'two fields have the label {label.text()}'
            found[label.text()] = widget
    return found


def type_into(field: QAbstractSpinBox, text: str) -> None:
    """Replace the text of a field, key by key, and press Return."""
    keyboard: Any = QTest  # its types lack the static methods
    field.selectAll()
    keyboard.keyClick(field, Qt.Key.Key_Delete)
    keyboard.keyClicks(field, text)
    keyboard.keyClick(field, Qt.Key.Key_Return)


@pytest.mark.parametrize('key', [*KEYS, REFINE])
def test_panel_has_one_labelled_field_with_a_tip_for_every_setting_it_uses(window: Window, key: str) -> None:
    window.select(key)
    found = fields(window.panel())
    expected = {f'{field.label}:': field for field in shown_fields(key.partition('_')[2])}
    assert set(found) == set(expected)
    for label, field in expected.items():
        kinds = {bool: QCheckBox, str: QComboBox, int: QSpinBox, float: QDoubleSpinBox}
        widget = found[label]
        assert isinstance(widget, kinds[field.kind])
        assert html.escape(field.tip, quote=False) in widget.toolTip()


def test_five_fields_are_above_the_folded_ones(window: Window) -> None:
    for key in (*KEYS, REFINE):
        window.select(key)
        visible = [label for label, widget in fields(window.panel()).items() if widget.isVisibleTo(window.panel())]
        assert len(visible) == 5
    (fold,) = (item for item in window.panel().findChildren(Fold) if item.title == 'Refinement')
    fold.button.click()
    assert fields(window.panel())['Probe from epoch:'].isVisibleTo(window.panel())
    fold.button.click()


def test_panel_of_refine_shows_what_it_uses(window: Window) -> None:
    window.select(REFINE)
    found = fields(window.panel())
    assert 'Refine the probe:' in found
    smoothing = found['Smoothing:']
    assert isinstance(smoothing, RealField) and smoothing.text() == 'automatic'
    assert not any('Steps at inference' in label or 'training' in label for label in found)
    assert window.processing._actions_view.reconstruct_button.text() == 'Reconstruct'
    assert window.processing._actions_view.train_button.isHidden()


def test_panels_show_and_change_the_settings(window: Window) -> None:
    group = window.model.settings_registry['PtychoPINNPyTorchTraining'].parameters()
    group['epochs'].set_value(123)
    group['accelerator'].set_value('cuda')
    for key in KEYS:
        window.select(key)
        found = fields(window.panel())
        epochs, accelerator = found['Epochs (training):'], found['Accelerator (training):']
        assert isinstance(epochs, QSpinBox)
        assert isinstance(accelerator, QComboBox)
        assert epochs.text() == '123 epochs'
        assert accelerator.currentText() == 'cuda'
        words = [accelerator.itemText(index) for index in range(accelerator.count())]
        assert words == ['automatic', 'cpu', 'cuda', 'mps']
    epochs.setValue(5)
    accelerator.setCurrentIndex(0)
    accelerator.activated.emit(0)
    assert group['epochs'].get_value() == 5
    assert group['accelerator'].get_value() == 'auto'


@pytest.mark.parametrize(
    ('typed', 'value'),
    [('0,001', 0.001), ('0.002', 0.002), ('2e-3', 0.002), ('', 0.003), ('-5', 0.003), ('1e9', 0.003), ('x,,y', 0.003)],
)
def test_nothing_that_is_typed_into_a_decimal_field_raises(window: Window, typed: str, value: float) -> None:
    parameter = window.model.settings_registry['PtychoPINNPyTorchTraining'].parameters()['learning_rate']
    parameter.set_value(0.003)
    window.select(KEYS[0])
    field = fields(window.panel())['Learning rate:']
    assert isinstance(field, QDoubleSpinBox)
    type_into(field, typed)
    assert parameter.get_value() == pytest.approx(value, abs=1e-12)
    assert float(field.text()) == pytest.approx(value, abs=1e-12)


def test_a_whole_number_stays_in_its_range_and_shows_what_it_means(window: Window) -> None:
    parameter = window.model.settings_registry['PtychoPINNPyTorchInference'].parameters()['steps']
    window.select(KEYS[0])
    field = fields(window.panel())['Steps at inference:']
    assert isinstance(field, QSpinBox)
    parameter.set_value(0)
    assert field.text() == 'automatic'
    type_into(field, '99999')
    assert field.text() == f'{parameter.get_value()} steps'
    assert parameter.get_value() <= 1000
    parameter.set_value_from_string('99999')  # from a settings file: the run would refuse it
    assert 'out of range' in field.toolTip()
    parameter.set_value(0)
    assert 'out of range' not in field.toolTip()


def test_fields_without_an_effect_are_disabled(window: Window) -> None:
    group = window.model.settings_registry['PtychoPINNPyTorchModel'].parameters()
    window.select(KEYS[0])
    found = fields(window.panel())
    group['generator'].set_value('unrolled')
    assert found['Memory channels:'].isEnabled()
    assert not found['Whole patch:'].isEnabled()
    assert 'needs the generator "patch"' in found['Whole patch:'].toolTip()
    group['generator'].set_value('patch')
    assert not found['Memory channels:'].isEnabled()
    assert found['Whole patch:'].isEnabled()
    group['generator'].set_value('unrolled')


def test_presets_set_and_recognise_settings(window: Window) -> None:
    refinement = window.model.settings_registry['PtychoPINNPyTorchRefinement'].parameters()
    window.select(REFINE)
    page = window.panel()
    assert isinstance(page, SettingsPage)
    for name in (*PRESETS, 'balanced'):
        page.preset_box.setCurrentIndex(page.preset_box.findData(name))
        page.preset_box.activated.emit(page.preset_box.currentIndex())
        assert page.preset_box.currentText() == PRESETS[name].label
        expected = preset_settings(name)['refinement', 'refine_epochs']
        assert refinement['refine_epochs'].get_value() == expected
        assert page.purpose_label.text() == PRESETS[name].purpose
    refinement['refine_epochs'].set_value(61)
    assert page.preset_box.currentText() == 'Custom'
    refinement['refine_epochs'].set_value(60)


def test_a_panel_is_no_higher_than_its_own_contents(window: Window) -> None:
    window.select(REFINE)
    window.view.resize(1280, 800)
    window.view.show()
    window.view.processing_action.trigger()
    window.settle()
    bar = window.processing._scroll_area.verticalScrollBar()
    assert bar is not None
    assert bar.maximum() == 0
    window.view.hide()


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


def test_inference_without_a_model_is_refused_before_a_product_is_made(window: Window, workflow_folder: Path) -> None:
    index = load_workflow(window, workflow_folder)
    window.select(KEYS[1])
    actions = window.processing._actions_view
    assert not actions.reconstruct_button.isEnabled()
    assert 'load a model' in actions.reconstruct_button.toolTip()
    combo_box = window.processing._product_view_controller.get_widget()
    combo_box.setCurrentIndex(0)
    combo_box.setCurrentIndex(index)  # the host enables the button here
    assert not actions.reconstruct_button.isEnabled()
    api, repository = window.model.processing_core.processing_api, window.model.product_core.product_repository
    runs, products = api.task_monitor.get_completed_runs(), len(repository)
    with pytest.raises(ModelNotLoadedError, match='train one first'):
        api.reconstruct(product_index=index)
    assert len(repository) == products
    assert api.task_monitor.get_completed_runs() == runs


def test_the_loaded_model_is_shown_and_compared_with_the_scan(
    window: Window, workflow_folder: Path, tmp_path: Path
) -> None:
    """Scan, pixel size, dose, generator, scores and probe; a warning for another pixel size and another dose."""
    window.select(KEYS[0])
    page = window.panel()
    assert isinstance(page, SettingsPage)
    box = page.model_box
    assert box is not None
    load_workflow(window, workflow_folder)
    selected = cast('partial[str]', page._estimate_text).args[0]
    probe = selected.scan_facts().probe.astype(np.complex64)
    trained = untrained_model(Config(), probe)
    header = {'object_pixel_m': (2e-8, 3e-8), 'photons_per_frame': 780_000.0}
    for number, changes in enumerate((header, {'photons_per_frame': selected.scan_facts().photons})):
        file = tmp_path / f'{number}.safetensors'
        save_model(file, replace(trained, header=trained.header.model_copy(update=changes)))
        box.show_model(file, selected)
        assert ('20 x 30 nm per pixel' in box.text.text()) == (number == 0)
        assert ('object pixels of 20 x 30 nm' in box.warning.text()) == (number == 0)
        assert ('training had 780,000' in box.warning.text()) == (number == 0)
        assert box.warning.isHidden() == (number == 1)
        assert not box.picture.isHidden()
    assert 'trained on test scan' in box.text.text()
    assert '2.500 on held-out positions (epoch 1, the best)' in box.text.text()


def test_the_check_shows_findings_and_what_is_accepted_becomes_a_new_product(
    window: Window, workflow_folder: Path
) -> None:
    window.select(REFINE)
    page = window.panel()
    assert isinstance(page, SettingsPage)
    index = load_workflow(window, workflow_folder)
    assert page.estimate_label.text().startswith('6 patterns of 17 x 20 pixels, one probe mode: 60 epochs, about ')
    box = page.inspection_box
    assert box.isHidden()
    page.check_button.click()
    assert '6 patterns of 17 x 20 pixels' in box.text.text()  # at once, before the worker has answered
    assert box.is_busy and not box.stop_button.isHidden() and box.apply_button.isHidden()
    window.wait(lambda: not box.is_busy, 180)
    assert box.inspection is not None, box.status.text()
    assert '6 patterns are too few to find orientation and defocus' in box.text.text()
    assert 'Centre of the patterns at row' in box.text.text() and ' +- ' in box.text.text()
    repository = window.model.product_core.product_repository
    count, before = len(repository), repository[index].get_product()
    assert 'crop' in box.boxes
    for name, mark in box.boxes.items():
        mark.setChecked(name == 'crop')
    box.apply_button.click()
    window.wait(lambda: not box.is_busy, 180)
    assert len(repository) == count + 1, box.status.text()
    assert window.processing._product_view_controller.get_widget().currentIndex() == count
    righted = repository[count].get_product()
    side = box.inspection.changes['side']
    assert righted.probes.get_array().shape[-2:] == (side, side)
    assert set(json.loads(righted.metadata.comments)['inspection']['applied']) == {'crop'}
    dataset = repository[count].get_dataset()
    assert dataset is not None and dataset.get_assembled_data().get_patterns().shape == (6, side, side)
    assert repository[index].get_product().metadata == before.metadata  # what was inspected has not changed


def test_an_inspection_can_be_stopped_and_no_product_is_named(window: Window, workflow_folder: Path) -> None:
    window.select(REFINE)
    page = window.panel()
    assert isinstance(page, SettingsPage)
    combo_box = window.processing._product_view_controller.get_widget()
    combo_box.setCurrentIndex(-1)
    box = page.inspection_box
    page.check_button.click()
    assert 'No product is selected' in box.text.text() and not box.is_busy
    load_workflow(window, workflow_folder)
    page.check_button.click()
    box.stop_button.click()
    window.wait(lambda: not box.is_busy, 180)
    assert box.inspection is None and box.status.text() == 'Stopped.'
    box.close_button.click()
    assert box.isHidden()


def fail(_job: Job) -> Generator[Message, None, None]:
    """Run as a worker that refuses the patterns."""
    yield Heartbeat()
    raise InputError('The patterns cannot be used: crop them.')


def test_a_failed_run_opens_a_dialog_and_dumps_no_arrays(
    window: Window, workflow_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs_module, 'run_job', FakeWorker(fail))
    index = load_workflow(window, workflow_folder)
    window.select(REFINE)
    api = window.model.processing_core.processing_api
    runs = api.task_monitor.get_completed_runs()
    api.reconstruct(product_index=index)
    window.wait(lambda: api.task_monitor.get_completed_runs() > runs)
    window.wait(lambda: bool(window.view.processing_status_view.findChildren(QMessageBox)))
    (dialog,) = window.view.processing_status_view.findChildren(QMessageBox)
    assert dialog.informativeText() == 'The patterns cannot be used: crop them.'
    assert 'Background task exception' not in caplog.text
    dialog.close()


def test_after_a_failure_the_product_that_was_to_be_reconstructed_is_selected_again(
    window: Window, workflow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, 'run_job', FakeWorker(fail))
    index = load_workflow(window, workflow_folder)
    window.select(REFINE)
    monitor, products = window.model.processing_core.processing_api.task_monitor, window.model.product_core
    combo_box = window.processing._product_view_controller.get_widget()
    runs = monitor.get_completed_runs()
    window.processing._actions_view.reconstruct_button.click()
    assert combo_box.currentIndex() == index + 1, 'the host selects its copy'
    window.wait(lambda: monitor.get_completed_runs() > runs)
    window.wait(lambda: combo_box.currentIndex() == index)
    assert len(products.product_repository) == index + 2
    for dialog in window.view.processing_status_view.findChildren(QMessageBox):
        dialog.close()


def test_a_training_shows_the_object_beside_its_losses(
    window: Window, workflow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(job: Job) -> Generator[Message, None, None]:
        yield Stage(FITTING_PROBE)
        yield Progress(1, 10)
        yield Losses(1, 0.5, 0.6)
        np.save(job.folder / 'preview.npy', np.full((40, 30), 0.5 + 0.1j, dtype=np.complex64))
        yield Preview(job.folder / 'preview.npy')
        yield from finish(job)

    monkeypatch.setattr(runs_module, 'run_job', FakeWorker(train))
    folder = tmp_path / 'empty'
    folder.mkdir()
    dialogs, view = window.processing._file_dialog_factory, window.view.processing_status_view
    monkeypatch.setattr(dialogs, 'get_existing_directory_path', lambda *_args, **_kwargs: folder)
    load_workflow(window, workflow_folder)
    index = load_workflow(window, workflow_folder)
    window.select(KEYS[0])
    monitor = window.model.processing_core.processing_api.task_monitor
    runs = monitor.get_completed_runs()
    window.processing._actions_view.train_button.click()
    window.wait(lambda: monitor.get_completed_runs() > runs)
    window.wait(lambda: len(view.figure.axes) == 3)
    assert [axes.get_title() for axes in view.figure.axes[1:]] == ['Amplitude, epoch 1', 'Phase, epoch 1']
    shown = view.figure.axes[1].get_images()[0].get_array()
    assert shown is not None
    assert shown.shape == (40, 30)
    assert 'epoch 2 of' in view.progress_bar.format()
    combo_box = window.processing._product_view_controller.get_widget()
    combo_box.setCurrentIndex(0)
    assert view.figure.axes == [view.axes], 'another product has no such picture'
    combo_box.setCurrentIndex(index)
    assert len(view.figure.axes) == 3


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
from ptychopinn_torch_plugin.host.panel.factory import PtychoPINNViewControllerFactory as Factory
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
