"""An assistant with three tools: a calculator, today's date, and the files of one folder.

    python examples/assistant_with_tools.py MODEL FOLDER

It asks before it runs a tool. Take a model that was made for tools, such as qwen3:1.7b: small ones call them badly.
"""

import ast
import datetime
import operator
import sys
from pathlib import Path

import edgellm

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
}
MOST = 20_000  # characters of a file that the model is given

folder = Path()


def calculate(expression: str) -> float:
    """Compute an arithmetic expression such as (3 + 4) * 2.5."""

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return node.value
        if isinstance(node, ast.UnaryOp):
            return OPERATIONS[type(node.op)](value(node.operand))
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"{ast.unparse(node)} is no arithmetic")  # the model reads this and may do better

    return value(ast.parse(expression, mode="eval").body)


def today() -> str:
    """Today's date and weekday."""
    return datetime.date.today().strftime("%Y-%m-%d, a %A")


def read_file(name: str) -> str:
    """Read a text file by its name."""
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:  # whatever the model was talked into
        raise PermissionError(f"{name} is outside of the folder")
    if not path.is_file():
        there = sorted(each.name for each in folder.iterdir() if each.is_file())
        raise FileNotFoundError(f"there is no {name}; there are: {', '.join(there)}")
    return path.read_text("utf-8", "replace")[:MOST]


def approve(call: edgellm.ToolCall) -> bool | str:
    """Whether a call may run; a text is told to the model as the reason why not."""
    words = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    said = input(f"  run {call.name}({words})? [y, or why not] ").strip()
    return said.lower() in ("y", "yes") or said


def main(model_name: str, folder_name: str) -> None:
    global folder
    folder = Path(folder_name)
    with edgellm.load(model_name) as model:
        chat = model.chat("You are a helpful assistant. Use the tools where they help.")
        while question := input("> ").strip():
            try:
                done = chat.run(question, tools=[calculate, today, read_file], approve=approve)
            except edgellm.EdgeLLMError as error:
                print(f"[{error}]")
            else:
                print(done.text)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except EOFError:
        print()
