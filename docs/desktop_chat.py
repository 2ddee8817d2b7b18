"""A chat window: PySide6 around edgellm. docs/embedding.md explains it.

pip install PySide6-Essentials .
python docs/desktop_chat.py MODEL
"""

import sys

from PySide6.QtCore import QThread, Signal
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import QApplication, QLineEdit, QPlainTextEdit, QPushButton, QVBoxLayout, QWidget

import edgellm


class Answer(QThread):
    """One answer, made on a thread of its own; the first one loads the model, too."""

    piece = Signal(str)
    read = Signal(int, int)  # tokens of the prompt, of all

    def __init__(self, window: "Window", question: str) -> None:
        super().__init__(window)
        self.window, self.question, self.cancel = window, question, edgellm.CancelToken()

    def run(self) -> None:
        try:
            chat = self.window.conversation()
            for chunk in chat.stream(self.question, cancel=self.cancel, progress=self.read.emit):
                self.piece.emit(chunk.text)
        except edgellm.EdgeLLMError as error:
            self.piece.emit(f"[{error}]")


class Window(QWidget):
    def __init__(self, model: str) -> None:
        super().__init__(windowTitle="edgellm")
        self.name, self.model, self.chat, self.answer = model, None, None, None
        self.text = QPlainTextEdit(readOnly=True)
        self.line = QLineEdit(placeholderText="Ask something")
        self.stop = QPushButton("Stop", enabled=False)
        layout = QVBoxLayout(self)
        for widget in (self.text, self.line, self.stop):
            layout.addWidget(widget)
        self.line.returnPressed.connect(self.ask)
        self.stop.clicked.connect(lambda: self.answer.cancel.cancel())

    def conversation(self) -> edgellm.Chat:
        if self.chat is None:
            self.model = edgellm.load(self.name)
            self.chat = self.model.chat()
        return self.chat

    def ask(self) -> None:
        self.show_piece(f"\n\n> {self.line.text()}\n\n")
        self.answer = Answer(self, self.line.text())
        self.answer.piece.connect(self.show_piece)
        self.answer.read.connect(self.show_read)
        self.answer.finished.connect(lambda: self.busy(False))
        self.busy(True)
        self.answer.start()

    def show_piece(self, text: str) -> None:
        self.text.moveCursor(self.text.textCursor().MoveOperation.End)
        self.text.insertPlainText(text)

    def show_read(self, done: int, total: int) -> None:
        self.stop.setText(f"Stop (reading {done:,} of {total:,} tokens)" if done < total else "Stop")

    def busy(self, busy: bool) -> None:
        self.line.setEnabled(not busy)
        self.stop.setEnabled(busy)
        if not busy:
            self.stop.setText("Stop")
            self.line.clear()
            self.line.setFocus()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 (Qt's name)
        if self.answer is not None:
            self.answer.cancel.cancel()  # the answer ends within one pass
            self.answer.wait()
        if self.model is not None:
            self.model.close()
        event.accept()


if __name__ == "__main__":
    app = QApplication(sys.argv)
    window = Window(sys.argv[1])
    window.resize(640, 480)
    window.show()
    sys.exit(app.exec())
