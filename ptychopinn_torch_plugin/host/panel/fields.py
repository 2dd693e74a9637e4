"""Widgets of single settings. Whatever is typed, none of them raises an error or takes a value out of its range.

The host's own line edits are not used: its ``DecimalLineEdit`` raises in Qt's event loop when a comma is typed, which
ends the application.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ptychodus.api.observer import Observable, Observer
from ptychodus.api.parameters import BooleanParameter, IntegerParameter, Parameter, RealParameter, StringParameter
from PyQt5.QtCore import Qt, QTimer
from PyQt5.QtGui import QFocusEvent, QValidator, QWheelEvent
from PyQt5.QtWidgets import QAbstractSpinBox, QCheckBox, QComboBox, QDoubleSpinBox, QSpinBox, QWidget

if TYPE_CHECKING:
    from ..settings import SettingField

LARGEST_INTEGER: Final = 2**31 - 1
LARGEST_REAL: Final = 1e12
SMALLEST_POSITIVE: Final = 1e-12
"""Least value of a setting that must be above 0."""
DIGITS: Final = 7
"""Significant digits of a real number on display."""
CHOICE_WORDS: Final = {'auto': 'automatic'}
"""Words shown for values of a choice; the others are shown as they stand in a settings file."""
FIELD_WIDTH: Final = 130
"""Least width of a field in pixels."""


class IntegerField(QSpinBox):
    """A whole number with its unit; a word in place of 0 where 0 has a meaning of its own."""

    def __init__(self, field: SettingField) -> None:
        super().__init__()
        lowest = -LARGEST_INTEGER if field.minimum is None else int(field.minimum)
        self.setRange(lowest, LARGEST_INTEGER if field.maximum is None else int(field.maximum))
        self._unit = field.unit
        self.valueChanged.connect(self._fit_unit)
        _finish_number(self, field)

    def _fit_unit(self, value: int) -> None:
        """Show the unit of one in the singular."""
        unit = self._unit.removesuffix('es' if self._unit.endswith('ches') else 's') if value == 1 else self._unit
        self.setSuffix(f' {unit}' if unit else '')

    def focusInEvent(self, event: QFocusEvent | None) -> None:  # noqa: N802 - Qt's name
        """Select the text, so that typing replaces it; in the middle of a word no number can be typed."""
        super().focusInEvent(event)
        QTimer.singleShot(0, self.selectAll)

    def wheelEvent(self, event: QWheelEvent | None) -> None:  # noqa: N802 - Qt's name
        """Scroll the panel, unless the field has the focus: scrolling past a field must not change it."""
        _scroll_panel_unless_focused(self, event, super().wheelEvent)


class RealField(QDoubleSpinBox):
    """A real number with its unit; point and comma are both decimal separators, and ``1e-3`` is understood."""

    def __init__(self, field: SettingField) -> None:
        super().__init__()
        self.setDecimals(12)
        lowest = SMALLEST_POSITIVE if field.minimum is None else float(field.minimum)
        self.setRange(lowest, LARGEST_REAL if field.maximum is None else float(field.maximum))
        self.setStepType(QAbstractSpinBox.StepType.AdaptiveDecimalStepType)
        _finish_number(self, field)

    def textFromValue(self, value: float) -> str:  # noqa: N802 - Qt's name
        """Return ``value`` without trailing zeros."""
        return f'{value:.{DIGITS}g}'

    def valueFromText(self, text: str | None) -> float:  # noqa: N802 - Qt's name
        """Return the number in ``text``; the present value where there is none."""
        number = self._number(text or '')
        return self.value() if number is None else number

    def validate(self, text: str | None, position: int) -> tuple[QValidator.State, str, int]:
        """Accept a number in the range; let everything that may become one be typed."""
        typed = text or ''
        number = self._number(typed)
        if number is not None and self.minimum() <= number <= self.maximum():
            return QValidator.State.Acceptable, typed, position
        bare = self._bare(typed)
        is_begun = all(character in '0123456789.,eE+-' for character in bare)
        return (QValidator.State.Intermediate if is_begun else QValidator.State.Invalid), typed, position

    def focusInEvent(self, event: QFocusEvent | None) -> None:  # noqa: N802 - Qt's name
        """Select the text, so that typing replaces it."""
        super().focusInEvent(event)
        QTimer.singleShot(0, self.selectAll)

    def wheelEvent(self, event: QWheelEvent | None) -> None:  # noqa: N802 - Qt's name
        """Scroll the panel, unless the field has the focus."""
        _scroll_panel_unless_focused(self, event, super().wheelEvent)

    def _bare(self, text: str) -> str:
        return text.strip().removesuffix(self.suffix().strip()).strip()

    def _number(self, text: str) -> float | None:
        if self.specialValueText() and text.strip() == self.specialValueText():
            return self.minimum()
        try:
            number = float(self._bare(text).replace(',', '.'))
        except ValueError:
            return None
        return number if math.isfinite(number) else None


class ChoiceField(QComboBox):
    """One of several words."""

    def __init__(self, field: SettingField) -> None:
        super().__init__()
        for choice in field.choices:
            self.addItem(CHOICE_WORDS.get(choice, choice), choice)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMinimumWidth(FIELD_WIDTH)

    def show_value(self, value: str) -> None:
        """Show ``value``; one that is none of the choices, from a settings file, is added and marked."""
        index = self.findData(value)
        if index < 0:
            self.addItem(f'{value} (unknown)', value)
            index = self.count() - 1
        self.setCurrentIndex(index)

    def wheelEvent(self, event: QWheelEvent | None) -> None:  # noqa: N802 - Qt's name
        """Scroll the panel, unless the field has the focus."""
        _scroll_panel_unless_focused(self, event, super().wheelEvent)


class BoundField(Observer):
    """Connects the widget of a setting with its parameter in the host, in both directions."""

    def __init__(self, field: SettingField, parameter: Parameter[Any]) -> None:
        super().__init__()
        self.field = field
        self._parameter = parameter
        self._is_updating = False
        self._problem = ''
        self._need = ''
        self.widget = self._make_widget()
        self._show_parameter()
        parameter.add_observer(self)

    def set_need(self, need: str) -> None:
        """Enable the widget where ``need`` is empty; else disable it, and name the need in the tool tip."""
        self._need = need
        self.widget.setEnabled(not need)
        self._set_tip()

    def _make_widget(self) -> QWidget:
        field, parameter = self.field, self._parameter
        if isinstance(parameter, BooleanParameter):
            box = QCheckBox()
            box.toggled.connect(self._store)
            return box
        if isinstance(parameter, IntegerParameter):
            integer = IntegerField(field)
            integer.valueChanged.connect(self._store)
            return integer
        if isinstance(parameter, RealParameter):
            real = RealField(field)
            real.valueChanged.connect(self._store)
            return real
        if isinstance(parameter, StringParameter) and field.choices:
            choice = ChoiceField(field)
            choice.activated.connect(lambda index: self._store(choice.itemData(index)))
            return choice
        raise TypeError(f'{field.section}.{field.name}: no widget for {type(parameter).__name__}.')

    def _store(self, value: bool | int | float | str) -> None:
        """Set the parameter; the widget keeps the text that is being typed."""
        if self._is_updating:
            return
        self._is_updating = True
        try:
            self._parameter.set_value(value)
        finally:
            self._is_updating = False
        self._mark('')

    def _show_parameter(self) -> None:
        """Show the value of the parameter; one out of its range, which the run would refuse, is marked."""
        text, widget, problem = self._parameter.get_value_as_string(), self.widget, ''
        self._is_updating = True
        try:
            if isinstance(widget, QCheckBox):
                widget.setChecked(bool(self._parameter.get_value()))
            elif isinstance(widget, ChoiceField):
                widget.show_value(text)
                problem = '' if text in self.field.choices else f'The settings hold "{text}": choose another.'
            elif isinstance(widget, QSpinBox):
                value = int(text)
                widget.setValue(max(widget.minimum(), min(value, widget.maximum())))
                problem = _range_problem(value, widget)
            elif isinstance(widget, QDoubleSpinBox):
                number = float(text)
                widget.setValue(number if math.isfinite(number) else widget.minimum())
                problem = _range_problem(number, widget)
        finally:
            self._is_updating = False
        self._mark(problem)

    def _mark(self, problem: str) -> None:
        """Draw a red border where the value cannot be used, and say why in the tool tip."""
        self._problem = problem
        self.widget.setStyleSheet('border: 1px solid #c00000;' if problem else '')
        self._set_tip()

    def _set_tip(self) -> None:
        need = f'Not used at present: needs {self._need}.' if self._need else ''
        self.widget.setToolTip(_paragraphs(self._problem, need, self.field.tip))

    def _update(self, observable: Observable) -> None:
        if observable is self._parameter and not self._is_updating:
            self._show_parameter()


def tool_tip(field: SettingField) -> str:
    """Return the tool tip of a setting's label."""
    return _paragraphs(field.tip)


def _paragraphs(*texts: str) -> str:
    """Return texts as paragraphs of rich text, which Qt wraps; plain tool tips become one long line."""
    escaped = (text.replace('&', '&amp;').replace('<', '&lt;') for text in texts if text)
    return ''.join(f'<p>{text}</p>' for text in escaped)


def _range_problem(value: float, widget: QSpinBox | QDoubleSpinBox) -> str:
    if widget.minimum() <= value <= widget.maximum():
        return ''
    return f'The settings hold {value:g}, which is out of range: enter another value.'


def _finish_number(widget: QSpinBox | QDoubleSpinBox, field: SettingField) -> None:
    if field.unit:
        widget.setSuffix(f' {field.unit}')
    if field.lowest:
        widget.setSpecialValueText(field.lowest)
    # A number counts when it is complete: of 1e9, which is out of range, the 1 must not be taken.
    widget.setKeyboardTracking(False)
    widget.setAlignment(Qt.AlignmentFlag.AlignLeft)
    widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    widget.setMinimumWidth(FIELD_WIDTH)


def _scroll_panel_unless_focused(
    widget: QWidget, event: QWheelEvent | None, scroll: Callable[[QWheelEvent | None], None]
) -> None:
    if widget.hasFocus():
        scroll(event)
    elif event is not None:
        event.ignore()
