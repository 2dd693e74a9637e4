"""A part of a panel that is folded until its title is clicked."""

from __future__ import annotations

from PyQt5.QtCore import Qt
from PyQt5.QtWidgets import QFrame, QSizePolicy, QToolButton, QVBoxLayout, QWidget


class Fold(QWidget):
    """A title with an arrow, and the contents below it while it is open."""

    def __init__(self, title: str, contents: QWidget) -> None:
        super().__init__()
        self.title = title
        self.contents = contents
        self.button = QToolButton()
        self.button.setCheckable(True)
        self.button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.button.setStyleSheet('QToolButton { border: none; padding: 4px; text-align: left; }')
        self.button.toggled.connect(self._set_open)
        line = QFrame()
        line.setFrameShape(QFrame.Shape.HLine)
        line.setFrameShadow(QFrame.Shadow.Sunken)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(line)
        layout.addWidget(self.button)
        layout.addWidget(contents)
        self.set_note('')
        self._set_open(is_open=False)

    def set_note(self, note: str) -> None:
        """Show ``note`` behind the title."""
        self.button.setText(f'{self.title}   ({note})' if note else self.title)

    def _set_open(self, is_open: bool) -> None:
        self.button.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self.contents.setVisible(is_open)
