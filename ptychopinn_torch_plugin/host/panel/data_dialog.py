"""The button "Check data" of the panels, and the dialog with its findings."""

from __future__ import annotations

from PyQt5.QtCore import Qt
from PyQt5.QtWidgets import QApplication, QMessageBox, QWidget

from ..contract import HostWindow
from ..data_check import check_data


def show_findings(window: HostWindow, parent: QWidget) -> None:
    """Check the data of the selected product and show the findings in a dialog that does not block the window."""
    index = window.product_box.currentIndex()
    QApplication.setOverrideCursor(Qt.CursorShape.WaitCursor)
    try:
        is_usable, findings = check_data(window.prepare_input(index)) if index >= 0 else (False, [NO_PRODUCT])
    except Exception as error:  # the host refuses products in many ways, and an error here would end the application
        is_usable, findings = False, [f'Ptychodus cannot prepare the data: {error}']
    finally:
        QApplication.restoreOverrideCursor()
    dialog = QMessageBox(parent)
    dialog.setIcon(QMessageBox.Icon.Information if is_usable else QMessageBox.Icon.Warning)
    dialog.setWindowTitle('Check data')
    dialog.setText('The data can be reconstructed.' if is_usable else 'The data cannot be reconstructed as they are.')
    dialog.setInformativeText('\n\n'.join(findings))
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.open()


NO_PRODUCT = 'No product is selected: load patterns and a product first.'
