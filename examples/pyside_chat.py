"""A chat window: PySide6 around edgellm in the same process.

    pip install 'PySide6-Essentials!=6.12.0' .
    python examples/pyside_chat.py MODEL

The model is loaded and asked on threads, so the window is never stuck, and can be closed at any moment: it goes at
once, and the program ends when what ran has stopped. docs/embedding.md explains what of this any toolkit needs.
PySide6 6.12.0 ends a program on Python 3.11 or older after some hundred signals from other threads: each gives up a
reference to True that it does not have (sys.getrefcount(True) shows it).
"""

import sys

from PySide6.QtCore import QThread, Signal
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

import edgellm


class Loading(QThread):
    """The model, opened on a thread of its own."""

    loaded = Signal(object)
    failed = Signal(str)

    def __init__(self, window: QWidget, name: str) -> None:
        super().__init__(window)
        self.name = name

    def run(self) -> None:
        try:
            self.loaded.emit(edgellm.load(self.name))
        except edgellm.EdgeLLMError as error:
            self.failed.emit(f"[{error}]")


class Answer(QThread):
    """One answer, made on a thread of its own."""

    piece = Signal(str)
    read = Signal(int, int)  # tokens of the prompt, of all

    def __init__(self, window: QWidget, chat: edgellm.Chat, question: str) -> None:
        super().__init__(window)
        self.chat, self.question, self.cancel = chat, question, edgellm.CancelToken()

    def run(self) -> None:
        try:
            for chunk in self.chat.stream(self.question, cancel=self.cancel, progress=self.read.emit):
                self.piece.emit(chunk.text)
        except edgellm.EdgeLLMError as error:
            self.piece.emit(f"[{error}]")


class Window(QWidget):
    def __init__(self, name: str) -> None:
        super().__init__(windowTitle=f"edgellm: {name}")
        self.model: edgellm.Model | None = None
        self.chat: edgellm.Chat | None = None
        self.answer: Answer | None = None
        self.text = QPlainTextEdit(readOnly=True)
        self.bar = QProgressBar(visible=False, format="reading: %v of %m tokens")
        self.line = QLineEdit(placeholderText="Loading the model…", enabled=False)
        self.stop = QPushButton("Stop", enabled=False)
        layout, row = QVBoxLayout(self), QHBoxLayout()
        layout.addWidget(self.text)
        layout.addWidget(self.bar)
        layout.addLayout(row)
        row.addWidget(self.line)
        row.addWidget(self.stop)
        self.line.returnPressed.connect(self.ask)
        self.stop.clicked.connect(self.cancel)
        self.loading = Loading(self, name)
        self.loading.loaded.connect(self.begin)
        self.loading.failed.connect(self.show_piece)
        self.loading.start()

    def begin(self, model: edgellm.Model) -> None:
        self.model = model
        try:
            self.chat = model.chat()
        except edgellm.EdgeLLMError as error:  # it has no chat template
            self.show_piece(f"[{error}]")
        else:
            self.busy(False)

    def ask(self) -> None:
        question = self.line.text().strip()
        if not question or self.chat is None:
            return
        self.show_piece(f"> {question}\n\n")
        self.answer = Answer(self, self.chat, question)
        self.answer.piece.connect(self.show_piece)
        self.answer.read.connect(self.show_read)
        self.answer.finished.connect(self.answered)
        self.busy(True)
        self.answer.start()

    def answered(self) -> None:
        self.show_piece("\n\n")
        self.busy(False)

    def cancel(self) -> None:
        if self.answer is not None:
            self.answer.cancel.cancel()  # it ends within one pass

    def show_piece(self, text: str) -> None:
        if text:
            self.bar.hide()
        self.text.moveCursor(self.text.textCursor().MoveOperation.End)
        self.text.insertPlainText(text)
        self.text.ensureCursorVisible()

    def show_read(self, done: int, total: int) -> None:
        self.bar.setRange(0, total)
        self.bar.setValue(done)
        self.bar.setVisible(done < total)

    def busy(self, busy: bool) -> None:
        self.line.setEnabled(not busy)
        self.stop.setEnabled(busy)
        self.bar.hide()
        if not busy:
            self.line.clear()
            self.line.setPlaceholderText("Ask something")
            self.line.setFocus()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 (Qt's name)
        self.cancel()
        running = [each for each in (self.loading, self.answer) if each is not None and each.isRunning()]
        if running:  # out of sight now, closed when that has stopped
            running[0].finished.connect(self.close)
            self.hide()
            event.ignore()
        else:
            event.accept()
            QApplication.exit()  # closing a window that is hidden already does not


def main(name: str) -> int:
    app = QApplication(sys.argv)
    window = Window(name)
    window.resize(640, 480)
    window.show()
    code = app.exec()
    if window.model is not None:
        window.model.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
