"""The panel of one reconstructor: preset, estimate, the settings that matter most, and the others in folded parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from ptychodus.api.observer import Observable, Observer
from PyQt5.QtCore import Qt
from PyQt5.QtGui import QShowEvent
from PyQt5.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from ...presets import PRESETS, matching_preset, preset_settings
from ..settings import SECTIONS, PtychoPINNSettings, SettingField, iter_setting_fields
from .fields import BoundField, tool_tip
from .fold import Fold
from .inspection_box import InspectionBox
from .layout import folded_fields, main_fields, unused_because
from .model_box import ModelBox

logger = logging.getLogger(__name__)

CUSTOM: Final = 'Custom'
CUSTOM_PURPOSE: Final = 'Your own settings: they are those of no preset.'
EstimateText = Callable[[], str]


class SettingsPage(QWidget):
    """The panel of one reconstructor."""

    def __init__(self, reconstructor_name: str, settings: PtychoPINNSettings) -> None:
        super().__init__()
        self._settings = settings
        self._bound: list[BoundField] = []
        self._folds: list[tuple[Fold, Sequence[SettingField]]] = []
        self._estimate_text: EstimateText = str
        self.preset_box = QComboBox()
        self.check_button = QPushButton('Check and find geometry')
        self.check_button.setToolTip(
            'Check patterns, positions and probe of the selected product as a run would, then find orientation, '
            'defocus and faults of the patterns, and propose. Nothing is changed unless you accept it.'
        )
        self.inspection_box = InspectionBox(settings)
        self.purpose_label = _wrapped_label()
        self.estimate_label = _wrapped_label()
        self.top = QVBoxLayout()
        """Layout below the estimate, for what the window adds."""

        for name, preset in PRESETS.items():
            self.preset_box.addItem(preset.label, name)
        self.preset_box.addItem(CUSTOM, '')
        self.preset_box.activated.connect(self._choose_preset)
        self.preset_box.setToolTip('Sets the settings that other presets change; all others stay as they are.')
        self.estimate_label.setToolTip(
            'An estimate, good to a factor of two; a finished run makes the next one better.'
        )
        self.model_box = None if reconstructor_name.casefold() == 'refine' else ModelBox()
        """The loaded model; None for a reconstructor that has none."""
        if self.model_box is not None:
            self.top.addWidget(self.model_box)
        self.top.addWidget(self.inspection_box)
        self._build(reconstructor_name)
        self._observer = _Callback(self.refresh)
        for section in SECTIONS:
            settings.get_group(section).add_observer(self._observer)
        self.refresh()

    def set_estimate(self, text: EstimateText) -> None:
        """Show what ``text`` returns as the estimate; it is called whenever a setting changes."""
        self._estimate_text = text
        self.refresh()

    def refresh(self) -> None:
        """Show preset, estimate, and which settings have an effect, for the present values."""
        values = self._values()
        name = matching_preset({key: value for key, value in values.items() if key in preset_settings('balanced')})
        self.preset_box.setCurrentIndex(self.preset_box.findData(name or ''))
        self.purpose_label.setText(CUSTOM_PURPOSE if name is None else PRESETS[name].purpose)
        text = self._estimate_text()
        self.estimate_label.setText(text)
        self.estimate_label.setVisible(bool(text))
        for bound in self._bound:
            bound.set_need(unused_because((bound.field.section, bound.field.name), values))
        for fold, fields in self._folds:
            changed = sum(values[field.section, field.name] != field.default for field in fields)
            fold.set_note(f'{changed} changed' if changed else '')

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802 - Qt's name
        """Let the stack of panels be as high as the panel on display; by itself it is as high as the highest one."""
        super().showEvent(event)
        stack = self.parentWidget()
        if isinstance(stack, QStackedWidget):
            fit_to_current(stack)

    def _build(self, reconstructor_name: str) -> None:
        head = QFormLayout()
        head.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        row = QHBoxLayout()
        row.addWidget(self.preset_box, 1)
        row.addWidget(self.check_button)
        head.addRow('Preset:', row)
        layout = QVBoxLayout(self)
        layout.addLayout(head)
        layout.addWidget(self.purpose_label)
        layout.addWidget(self.estimate_label)
        layout.addLayout(self.top)
        labels: list[QLabel] = []
        layout.addWidget(self._form(main_fields(reconstructor_name), labels))
        for title, fields in folded_fields(reconstructor_name).items():
            fold = Fold(title, self._form(fields, labels))
            self._folds.append((fold, fields))
            layout.addWidget(fold)
        layout.addStretch()
        width = max(label.sizeHint().width() for label in labels)
        for label in labels:
            label.setMinimumWidth(width)

    def _form(self, fields: Sequence[SettingField], labels: list[QLabel]) -> QWidget:
        widget = QWidget()
        form = QFormLayout(widget)
        form.setContentsMargins(8, 4, 4, 4)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for field in fields:
            bound = BoundField(field, self._settings.get_parameter(field.section, field.name))
            label = QLabel(f'{field.label}:')
            label.setToolTip(tool_tip(field))
            label.setBuddy(bound.widget)
            form.addRow(label, bound.widget)
            labels.append(label)
            self._bound.append(bound)
        return widget

    def _values(self) -> dict[tuple[str, str], bool | int | float | str]:
        return {
            (section, field.name): self._settings.get_parameter(section, field.name).get_value()
            for section in SECTIONS
            for field in iter_setting_fields(section)
        }

    def _choose_preset(self, index: int) -> None:
        name = self.preset_box.itemData(index)
        if name:
            for (section, field), value in preset_settings(name).items():
                self._settings.get_parameter(section, field).set_value(value)
        self.refresh()


class _Callback(Observer):
    """Calls a function when what it observes has changed; Qt's widgets cannot be observers themselves."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self._function = function

    def _update(self, observable: Observable) -> None:
        self._function()


def fit_to_current(stack: QStackedWidget) -> None:
    """Make ``stack`` as high as its present page needs, now and whenever another page is chosen."""
    if stack.property('fits_current_page'):
        return
    stack.setProperty('fits_current_page', True)

    def fit(current: int) -> None:
        for index in range(stack.count()):
            page = stack.widget(index)
            if page is not None:
                policy = QSizePolicy.Policy.Preferred if index == current else QSizePolicy.Policy.Ignored
                page.setSizePolicy(QSizePolicy.Policy.Preferred, policy)
        stack.updateGeometry()

    stack.currentChanged.connect(fit)
    fit(stack.currentIndex())


def _wrapped_label() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
