"""A Jinja sandbox for templates that come with model files, which nobody has read.

Jinja's own sandbox keeps a template away from private attributes and from changing values; it does not stop one that
runs for hours or fills the memory. Here every operation goes through a Meter as well:

    source ── parse ──▶ tree ── check ──▶ Python code ── compile ──▶ render
               size      kinds of nodes,      operators, literals,     steps, bytes,
                         depth, counts        slices call the meter    seconds

Calls are refused unless they are known: macros, the global names, the loop's helpers, and the methods that text.py
lists. There is no loader, so no include, import or extends, and no constant is computed while compiling. Documentation
of the parts: https://jinja.palletsprojects.com/en/stable/sandbox/ and .../extensions/.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import BuiltinMethodType, MethodType, TracebackType
from typing import Any

import jinja2
from jinja2 import Template, TemplateSyntaxError, meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, pass_context

from edgellm.errors import TemplateError
from edgellm.prompts import filters, names, text
from edgellm.prompts.meter import MAX_INT_BITS, Meter, Stopped, size_of

MAX_SOURCE = 2**17  # characters; the longest templates in use have 17,000
MAX_NODES = 6_000  # of the syntax tree; the largest in use have 1,300
MAX_TREE_DEPTH = 150
MAX_COMPARISONS = 16  # in one chain
MAX_BRANCH_NAMES = 100_000  # branches times assignments: the compiler looks at every pair
MAX_MESSAGE = 500  # characters of an error message that come from the template

ADVICE = "use another template, or complete plain text without one"

_SCOPES = ("_loop_vars", "_block_vars")  # arguments that generated code adds to calls

_FORBIDDEN: Mapping[type[nodes.Node], str] = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.ScopedEvalContextModifier: "autoescape",
}


class _Code(CodeGenerator):
    """Generates code whose literals, slices, comparisons and `~` report to the meter."""

    def _wrap(self, function: str, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{function}(")
        visit(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._wrap("meter.made", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._wrap("meter.made", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._wrap("meter.made", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self._wrap("meter.made", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self._wrap("compared", super().visit_Compare, node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """{% generation %}...{% endgeneration %}, which marks what the model wrote: here only a scope."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@pass_context
def _finalize(context: Context, value: Any) -> str:
    """The text of an expression that is printed."""
    meter: Meter = context.environment.meter  # type: ignore[attr-defined]
    meter.tick()
    return meter.text(value)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. `meter` is replaced before each rendering."""

    code_generator_class = _Code
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            extensions=[_Generation, loopcontrols],
        )
        self.now = now
        self.meter = Meter()
        self.globals = dict(names.GLOBALS)
        self.filters = dict(filters.FILTERS)
        self.tests = dict(filters.TEST_FUNCTIONS)

    # What generated code calls.

    def compared(self, value: Any) -> Any:
        self.meter.tick()
        return value

    def concat(self, parts: Iterable[Any]) -> str:
        return self.meter.joined(self.meter.listed(parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return self.operate(operator, left, right)

    def operate(self, op: str, left: Any, right: Any) -> Any:
        """left op right, where the operands allow it: numbers, and strings and lists for `+`, `*` and `%`."""
        meter = self.meter
        meter.tick()
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            return _OPERATORS[op](left, right)
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            if op == "**" and isinstance(left, int) and isinstance(right, int) and right > MAX_INT_BITS:
                meter.stop(f"raises to a power above {MAX_INT_BITS}")
            return meter.made(_OPERATORS[op](left, right))
        if op == "+":
            if isinstance(left, str) and isinstance(right, str):
                meter.fits(size_of(len(left) + len(right), left, right))
                return left + right
            if (isinstance(left, list) and isinstance(right, list)) or (
                isinstance(left, tuple) and isinstance(right, tuple)
            ):
                return meter.chained(left, right)
        if op == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    return text.repeat(meter, value, times)
        if op == "%" and isinstance(left, str):
            return text.percent(meter, left, right)
        kinds = f"{type(left).__name__!r} and {type(right).__name__!r}"
        raise TypeError(f"unsupported operand type(s) for {op}: {kinds}")

    # What the sandbox allows.

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"access to attribute {attribute!r:.40} of {type(obj).__name__!r} object is unsafe")

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.tick()  # filters follow long paths with it
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(value, BuiltinMethodType) and value.__name__ in ("format", "format_map"):
            owner = value.__self__
            if isinstance(owner, str):
                return text.Format(self, self.meter, owner, value.__name__ == "format_map")
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = self.meter
        meter.tick()
        meter.weigh_arguments(args, {name: value for name, value in kwargs.items() if name not in _SCOPES})
        if isinstance(obj, BuiltinMethodType):
            for scope in _SCOPES:
                kwargs.pop(scope, None)
            try:
                return text.call(meter, obj.__self__, obj.__name__, args, kwargs)
            except LookupError as error:
                if error.args != (obj.__name__,):
                    raise
                owner = type(obj.__self__).__name__
                raise SecurityError(f"method {obj.__name__!r} of {owner!r} is not for chat templates") from None
        known = isinstance(obj, (Macro, LoopContext, Joiner, Undefined, text.Format))
        known = known or any(obj is function for function in names.GLOBALS.values())
        if isinstance(obj, MethodType):
            known = isinstance(obj.__self__, (LoopContext, Cycler, names.DictMaker))
        if not known:
            raise SecurityError(f"an object of type {type(obj).__name__!r} is not for chat templates to call")
        return super().call(context, obj, *args, **kwargs)


_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


class Program:
    """A compiled template. Rendering is safe from any thread; one rendering runs at a time.

    variables: the names it reads that it does not set itself.

    Raises TemplateError when the source is too large, does not compile, or uses what is not allowed.
    """

    def __init__(self, source: str, now: Callable[[], datetime] = datetime.now) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source):,} characters, more than {MAX_SOURCE:,}; {ADVICE}")
        self._lock = threading.RLock()
        self._environment = Sandbox(now)
        try:
            tree = self._environment.parse(source)
            _check(tree)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            code = self._environment.compile(tree)
            self._template = Template.from_code(self._environment, code, self._environment.make_globals(None))
        except Exception as error:
            line = error.lineno if isinstance(error, TemplateSyntaxError) else 0
            where = f" (line {line})" if line else ""
            raise TemplateError(f"the chat template does not compile{where}: {_reason(error)}; {ADVICE}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables, which must be plain values (None, bool, int, float, str, list, tuple, dict).

        Raises TemplateError when the template fails, raises an error of its own, or reaches a limit.
        """
        with self._lock:
            interrupted = self._environment.meter  # of a rendering in the midst of which a signal handler asks for one
            meter = self._environment.meter = Meter()
            try:
                meter.weigh(dict(variables))
                context = self._template.new_context(dict(variables))
                parts = self._template.root_render_func(context)
                return self._environment.concat(parts)
            except Exception as error:
                explained = self._explained(error)
                raise explained from error.with_traceback(None)  # its frames hold what the template made
            finally:
                self._environment.meter = interrupted

    def _explained(self, error: Exception) -> TemplateError:
        line = self._line(error.__traceback__)
        where = f" (line {line})" if line else ""
        if isinstance(error, names.Raised):
            return TemplateError(f"the model's chat template refuses this conversation{where}: {_reason(error)}")
        if isinstance(error, Stopped):
            return TemplateError(f"the chat template was stopped{where}: it {_reason(error)}; {ADVICE}")
        return TemplateError(
            f"the chat template failed{where}: {_reason(error)}; "
            f"check that the messages have what it asks for, or {ADVICE}"
        )

    def _line(self, traceback: TracebackType | None) -> int:
        """The line of the template where an error arose."""
        line = 0
        while traceback is not None:
            if traceback.tb_frame.f_globals.get("__jinja_template__") is self._template:
                line = self._template.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line


def _check(tree: nodes.Template) -> None:
    """Refuse what is forbidden, too deep or too large to compile quickly; make every loop report its turns."""
    stack: list[tuple[nodes.Node, int]] = [(tree, 0)]
    count = branches = stores = 0
    while stack:
        node, depth = stack.pop()
        count += 1
        branches += isinstance(node, (nodes.If, nodes.CondExpr))
        stores += isinstance(node, nodes.Name) and node.ctx != "load"
        if count > MAX_NODES or depth > MAX_TREE_DEPTH or branches * stores > MAX_BRANCH_NAMES:
            raise TemplateSyntaxError("too large or too deeply nested", getattr(node, "lineno", None) or 0)
        if type(node) in _FORBIDDEN:
            raise TemplateSyntaxError(f"the tag {_FORBIDDEN[type(node)]!r} is not for chat templates", node.lineno)
        if isinstance(node, nodes.Compare) and len(node.ops) > MAX_COMPARISONS:
            raise TemplateSyntaxError(f"more than {MAX_COMPARISONS} comparisons in a chain", node.lineno)
        if isinstance(node, nodes.Const) and isinstance(node.value, int) and node.value.bit_length() > MAX_INT_BITS:
            raise TemplateSyntaxError(f"an integer of more than {MAX_INT_BITS} bits", node.lineno)
        stack.extend((child, depth + 1) for child in node.iter_child_nodes())
        if isinstance(node, nodes.For):
            node.iter = nodes.Filter(node.iter, filters.STEPS, [], [], None, None, lineno=node.lineno)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself too deeply"
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    message = error.message or "" if isinstance(error, jinja2.TemplateError) else str(error)
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "..."
    if isinstance(error, (names.Raised, Stopped, jinja2.TemplateError)):
        return message
    return f"{type(error).__name__}: {message}"
