"""The panel in the Ptychodus window, built from the same field metadata as the settings.

This is the one module of the package that imports Qt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ptychodus.api.parameters import BooleanParameter, IntegerParameter, RealParameter, StringParameter
from ptychodus.controller.parameters import ParameterViewBuilder
from ptychodus.controller.processing import ReconstructorViewControllerFactory
from PyQt5.QtCore import Qt
from PyQt5.QtWidgets import QGroupBox, QLabel, QWidget

from .library import PtychoPINNPyTorchLibrary
from .settings import SECTIONS, PtychoPINNSettings, SettingField, is_shown, iter_setting_fields

logger = logging.getLogger(__name__)


class PtychoPINNViewControllerFactory(ReconstructorViewControllerFactory):
    """Creates the panel of each reconstructor; all share one set of settings."""

    def __init__(self, library: PtychoPINNPyTorchLibrary) -> None:
        super().__init__()
        self._library = library

    @property
    def name(self) -> str:
        """Name of the library, by which the host finds the factory."""
        return self._library.name

    def create_view_controller(self, reconstructor_name: str) -> QWidget:
        """Return the panel: a box per section, labels with units, tool tips, without settings that are not used."""
        builder = ParameterViewBuilder()
        fields = [
            field
            for section in SECTIONS
            for field in iter_setting_fields(section)
            if is_shown(reconstructor_name, field)
        ]

        for field in fields:
            _add_row(builder, self._library.settings, field)

        panel = builder.build_widget()
        _finish_labels(panel, {(_box(field), _label(field)): field.tip for field in fields})
        return panel


def _box(field: SettingField) -> str:
    return field.section.capitalize()


def _label(field: SettingField) -> str:
    return f'{field.caption}:'


def _add_row(builder: ParameterViewBuilder, settings: PtychoPINNSettings, field: SettingField) -> None:
    """Add the widget for the field's type to the box of its section."""
    parameter = settings.get_parameter(field.section, field.name)
    label, group = _label(field), _box(field)

    if isinstance(parameter, BooleanParameter):
        builder.add_check_box(parameter, label, tool_tip=field.tip, group=group)
    elif isinstance(parameter, StringParameter):
        builder.add_combo_box(parameter, field.choices, label, tool_tip=field.tip, group=group)
    elif isinstance(parameter, IntegerParameter):
        builder.add_integer_line_edit(parameter, label, tool_tip=field.tip, group=group)
    elif isinstance(parameter, RealParameter):
        builder.add_decimal_line_edit(parameter, label, tool_tip=field.tip, group=group)
    else:
        raise TypeError(f'{field.section}.{field.name}: no widget for {type(parameter).__name__}.')


def _finish_labels(panel: QWidget, tips: Mapping[tuple[str, str], str]) -> None:
    """Set the tool tips of the labels, and one width for all, so that the fields of all boxes are aligned."""
    labels = [
        (box, label) for box in panel.findChildren(QGroupBox) for label in box.findChildren(QLabel) if label.text()
    ]
    width = max(label.sizeHint().width() for _, label in labels)

    for box, label in labels:
        label.setMinimumWidth(width)
        label.setToolTip(tips.get((box.title(), label.text()), ''))


class GuardedViewControllerFactory(ReconstructorViewControllerFactory):
    """Shows a message in place of a panel that cannot be built; without it, the host could not start its window."""

    def __init__(self, factory: ReconstructorViewControllerFactory) -> None:
        super().__init__()
        self._factory = factory

    @property
    def name(self) -> str:
        """Name of the guarded factory."""
        return self._factory.name

    def create_view_controller(self, reconstructor_name: str) -> QWidget:
        """Return the panel of the guarded factory, or a label that says why there is none."""
        try:
            return self._factory.create_view_controller(reconstructor_name)
        except Exception as error:
            text = f'The panel of {self.name} cannot be shown: {type(error).__name__}: {error}'
            logger.warning(text)
            label = QLabel(text)
            label.setWordWrap(True)
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            return label
