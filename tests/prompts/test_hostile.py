"""Templates that attack the machine or the sandbox: each ends in a TemplateError, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from edgellm.errors import TemplateError
from edgellm.prompts import meter
from edgellm.prompts.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hi"}]

_DOUBLE = (
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s STEP %}{% endfor %}{{ ns.s }}"
)
_TREE = (
    "{% set ns = namespace(a=[], b=[]) %}{% for i in range(60) %}{% set ns.a = LEFT %}{% set ns.b = RIGHT %}"
    "{% endfor %}"
)
_BIG = "{% set a = 'a' * 4000000 %}"

TOO_LONG = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "loops in macros": "{% macro m() %}{% for b in range(99999) %}{% endfor %}{% endmacro %}"
    "{% for a in range(99999) %}{{ m() }}{% endfor %}",
    "recursive loop": "{% for a in range(9999) recursive %}{{ loop(range(9999)) if loop.depth < 9 }}{% endfor %}",
    "macro tree": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "loop length": "{% for a in range(999) %}{% for b in range(999) %}{{ '' if loop.length }}{% endfor %}{% endfor %}",
    "loop over text": "{% for c in 'a' * 4000000 %}{% endfor %}",
    "lazy filters": "{% for a in range(9999) %}{% if range(99999)|reject|list %}{% endif %}{% endfor %}",
    "chained filters": "{{ range(99999)" + "|select" * 120 + "|list|length }}",
    "map of tests": "{% for a in range(9999) %}{% if range(99999)|select('odd')|list %}{% endif %}{% endfor %}",
    "unique tuples": "{% for a in range(9999) %}{% if range(99999)|unique|list %}{% endif %}{% endfor %}",
    "sorting": "{% for a in range(9999) %}{% if range(60000)|list|sort(reverse=true) %}{% endif %}{% endfor %}",
    "long searches": "{% set a = 'a' * 4000000 %}{% for i in range(99999) %}{% if 'b' in a %}{% endif %}{% endfor %}",
    "search from the end": "{% set a = 'a' * 4000000 %}{{ a.rfind('b' + 'a' * 4000000) }}",
    "split from the end": "{% set a = 'a' * 4000000 %}{{ a.rsplit('b' + 'a' * 4000000) }}",
    "strip of many": "{% set a = 'a' * 4000000 %}{{ a.strip('!' * 4000000 + 'a') }}",
    "trim of many": "{% set a = 'a' * 4000000 %}{{ a|trim('!' * 4000000 + 'a') }}",
    "tests": "{% set a = 'a' * 4000000 %}{% for i in range(99999) %}{% if a is lower %}{% endif %}{% endfor %}",
    "sort of a text": "{{ ('a' * 4000000)|sort|length }}",
    "largest of a text": "{{ ('a' * 4000000)|max(attribute='0.0.0.0.0.0') }}",
    "selection from a text": "{{ ('a' * 4000000)|selectattr('x')|list }}",
    "groups of a text": "{{ ('a' * 4000000)|groupby('x') }}",
    "long path": "{{ ['a' * 9]|map(attribute='0' ~ '.0' * 3000000)|list }}",
    "long path in a sum": "{{ ['a' * 9]|sum(attribute='0' ~ '.0' * 3000000) }}",
    "sum of lists": "{% set a = [[1]] * 60000 %}{{ a|sum(start=[])|length }}",
    "long integers": "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "power of a power": "{{ (2 ** 62) ** 64 }}",
    "equal trees": _TREE.replace("LEFT", "[ns.a, ns.a]").replace("RIGHT", "[ns.b, ns.b]") + "{{ ns.a == ns.b }}",
    "equal dicts": _TREE.replace("LEFT", "{1: ns.a, 2: ns.a}").replace("RIGHT", "{1: ns.b, 2: ns.b}")
    + "{{ ns.a == ns.b }}",
    "hash of a tree": _TREE.replace("LEFT", "(ns.a, ns.a)").replace("RIGHT", "1") + "{{ {ns.a: 1} }}",
    "trees in arguments": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}"
    "{% endmacro %}{{ m(60, 1, 2) }}",
    "trees in named arguments": "{% macro m(n) %}{{ m(n - 1, a=kwargs, b=kwargs) if n else kwargs }}{% endmacro %}"
    "{{ m(60) }}",
}

TOO_MUCH = {
    "text times": "{{ 'a' * 10 ** 9 }}",
    "times text": "{{ 10 ** 9 * 'a' }}",
    "list times": "{{ ([0] * 10 ** 9)|length }}",
    "tuple times": "{{ ((0, 1) * 10 ** 9)|length }}",
    "constant in a set": "{% set a = 'a' * 999999999 %}",
    "constant in a filter": "{{ 'a'|center(999999999) }}",
    "doubling ~": _DOUBLE.replace("STEP", "~ ns.s"),
    "doubling +": _DOUBLE.replace("STEP", "+ ns.s"),
    "doubling *": _DOUBLE.replace("STEP", "* 2"),
    "doubling %": _DOUBLE.replace("ns.s STEP", "'%s%s' % (ns.s, ns.s)"),
    "doubling format": _DOUBLE.replace("ns.s STEP", "'{0}{0}'.format(ns.s)"),
    "doubling format filter": _DOUBLE.replace("ns.s STEP", "'%s%s'|format(ns.s, ns.s)"),
    "doubling join": _DOUBLE.replace("ns.s STEP", "[ns.s, ns.s]|join"),
    "doubling join method": _DOUBLE.replace("ns.s STEP", "''.join([ns.s, ns.s])"),
    "doubling replace": _DOUBLE.replace("ns.s STEP", "ns.s.replace('a', 'aa')"),
    "doubling replace filter": _DOUBLE.replace("ns.s STEP", "ns.s|replace('a', 'aa')"),
    "doubling escape": _DOUBLE.replace("ns.s STEP", "('<' ~ ns.s)|e").replace("range(60)", "range(99999)"),
    "doubling list": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling set block": "{% set ns = namespace(s='aa') %}{% for i in range(60) %}"
    "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}{% endfor %}",
    "doubling macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='aa') %}"
    "{% for i in range(60) %}{% set ns.s = m(ns.s) %}{% endfor %}",
    "doubling filter block": "{% set ns = namespace(s='aa') %}{% for i in range(60) %}"
    "{% set x %}{% filter replace('a', 'aa') %}{{ ns.s }}{% endfilter %}{% endset %}{% set ns.s = x %}{% endfor %}",
    "printed tree": _TREE.replace("LEFT", "[ns.a, ns.a]").replace("RIGHT", "1") + "{{ ns.a }}",
    "json tree": _TREE.replace("LEFT", "[ns.a, ns.a]").replace("RIGHT", "1") + "{{ ns.a|tojson }}",
    "named tree": _TREE.replace("LEFT", "dict(a=ns.a, b=ns.a)").replace("RIGHT", "1") + "{{ ns.a|string }}",
    "deep list": "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}",
    "deep tuple": "{% set ns = namespace(a=()) %}{% for i in range(99999) %}{% set ns.a = (ns.a,) %}{% endfor %}",
    "width %": "{{ '%1000000000d' % 5 }}",
    "precision %": "{{ '%.1000000000f' % 5 }}",
    "star %": "{{ '%*d' % (1000000000, 5) }}",
    "key %": "{{ '%((a))1000000000s' % {'(a)': 'x'} }}",
    "percent in a key %": "{{ '%(a%b)1000000000s' % {'a%b': 'x'} }}",
    "width format filter": "{{ '%1000000000d'|format(5) }}",
    "width format": "{{ '{:>1000000000}'.format(1) }}",
    "width format of another script": "{{ '{:>N}'.format(1) }}".replace("N", "\u0661" + "\u0660" * 9),
    "computed width format": "{{ '{:>{}}'.format(1, 10 ** 9) }}",
    "precision format": "{{ '{:.1000000000f}'.format(1.5) }}",
    "width format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "center": "{{ 'a'.center(10 ** 9) }}",
    "ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "rjust": "{{ 'a'.rjust(10 ** 9) }}",
    "zfill": "{{ 'a'.zfill(10 ** 9) }}",
    "expandtabs": "{{ '\t\t\t'.expandtabs(10 ** 9) }}",
    "indent": "{{ 'a\nb'|indent(10 ** 9) }}",
    "indent all": "{{ ('\n' * 60000)|indent(60000, true, true) }}",
    "indent with a text": _BIG + "{{ 'a\nb\nc\nd'|indent(a) }}",
    "batch": "{{ [1]|batch(10 ** 9, 'x')|list }}",
    "slice": "{{ [1]|slice(10 ** 9)|list }}",
    "join": _BIG + "{{ range(1000)|join(a) }}",
    "join method": _BIG + "{{ a.join('abcdef') }}",
    "replace nothing": _BIG + "{{ 'abcdef'.replace('', a) }}",
    "split": _BIG + "{{ a.split('a') }}",
    "split at spaces": "{% set a = ' a' * 4000000 %}{{ a.split() }}",
    "splitlines": "{{ ('\n' * 4000000).splitlines() }}",
    "list of a text": _BIG + "{{ a|list }}",
    "slices kept": _BIG
    + "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [a[1:]] %}{% endfor %}",
    "values kept": "{% set ns = namespace(l=()) %}{% for i in range(99999) %}"
    "{% set ns.l = (ns.l[-50:] + ('a' * 90000 ~ i,)) %}{% endfor %}",
    "wide characters": "{{ '\U0001f600' * 4000000 }}",
    "json indent": "{{ [[1, 2], [3]]|tojson(indent=10 ** 9) }}",
    "json separators": _BIG + "{{ [1, 2, 3]|tojson(separators=(a, a)) }}",
    "json ascii": "{{ ('\U0001f600' * 1900000)|tojson(ensure_ascii=true) }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "output of lists": "{% set a = [1] * 60000 %}" + "{{ a }}" * 3000,
    "output kept in a macro": "{% set a = [1] * 60000 %}{% macro m() %}"
    + "{{ a }}" * 3000
    + "{% endmacro %}{{ m()|length }}",
    "strftime": "{{ strftime_now('%Y' * 999999) }}",
    "title": "{{ ('a-' * 2000000)|title }}",
    "error message": "{{ raise_exception('a' * 10 ** 9) }}",
}

REFUSED = {
    "macro recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "integer of a text": "{{ ('9' * 4000000)|int }}",
    "float of a text": "{{ ('9' * 4000000)|float }}",
    "rounding": "{{ 1.5|round(999999999, 'ceil') }}",
    "integer literal": "{{ " + "9" * 4000 + " }}",
    "range": "{{ range(10 ** 9)|list }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "translate": "{{ ('a' * 1000).translate({97: 'a' * 1000000}) }}",
    "encode": "{{ ('a' * 4000000).encode('punycode') }}",
    "width % of a test": "{{ '%1000000000d' is odd }}{{ '%1000000000d' is divisibleby 5 }}",
}

ESCAPES = {
    "class": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "cycler globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner globals": "{{ joiner.__init__.__globals__ }}",
    "namespace globals": "{{ namespace.__init__.__globals__ }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self context": "{{ self._TemplateReference__context }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "attr filter built up": "{{ ''|attr('__cla' ~ 'ss__')|attr('__mro__') }}",
    "map attribute": "{{ [messages]|map(attribute='__class__')|list }}",
    "map attr": "{{ [messages]|map('attr', '__class__')|list }}",
    "selectattr": "{{ [messages]|selectattr('__class__')|list }}",
    "sort attribute": "{{ [messages, messages]|sort(attribute='__class__')|list }}",
    "groupby": "{{ [messages]|groupby('__class__')|list }}",
    "join attribute": "{{ [messages]|join(',', attribute='__class__') }}",
    "sum attribute": "{{ [1]|sum(attribute='__class__') }}",
    "item": "{{ ''['__class__'] }}",
    "format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "format item": "{{ '{0[__class__]}'.format(messages) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "stored format": "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
    "mapped format": "{{ ['{0.__class__}']|map(attribute='format')|first()(1) }}",
    "attr format": "{{ ('{0.__class__}'|attr('format'))(1) }}",
    "function globals": "{{ raise_exception.__globals__ }}",
    "method function": "{{ dict.fromkeys.__func__.__globals__ }}",
    "macro function": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "loop": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "loop iterator": "{% for i in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "generator frame": "{{ ([1]|map('string')).gi_frame.f_globals }}",
    "generator code": "{{ ([1]|select).gi_code }}",
    "undefined": "{{ missing.__class__.__init__.__globals__ }}",
    "environment": "{{ environment.loader }}",
    "import": "{% import 'os' as os %}",
    "from": "{% from 'os' import system %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "block": "{% block x %}{{ self.x() }}{% endblock %}{{ self.x() }}",
    "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "do": "{% do messages.append(1) %}",
    "append": "{{ messages.append(1) }}",
    "clear": "{{ messages.clear() }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "namespace private": "{{ namespace(__class__=1) }}",
    "namespace private dict": "{{ namespace({'_Namespace__attrs': 1}) }}",
    "namespace set": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "generator send": "{{ ([1]|map('string')).close() }}",
    "unknown filter": "{{ 'x'|urlize }}",
    "open": "{{ open('/etc/passwd') }}",
    "tuple key": "{{ dict([((1, 2), 3)]) }}",
}

TOO_LARGE = {
    "long source": "a" * 2**18,
    "many nodes": "{{ a }}" * 15000,
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep minus": "{{ " + "-" * 20000 + "1 }}",
    "deep not": "{{ " + "not " * 20000 + "1 }}",
    "long sum": "{{ " + "1+" * 20000 + "1 }}",
    "long filter chain": "{{ 1" + "|abs" * 20000 + " }}",
    "long attribute chain": "{{ a" + ".b" * 20000 + " }}",
    "long call chain": "{{ a" + "()" * 20000 + " }}",
    "long comparison": "{{ 1" + " < 1" * 20000 + " }}",
    "deep if": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "deep for": "{% for a in b %}" * 3000 + "{% endfor %}" * 3000,
    "deep for 30": "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "deep condition": "{{ " + "1 if a else " * 6000 + "1 }}",
    "many branches": "{% if a %}{% set b = 1 %}{% endif %}" * 2000,
    "unclosed": "{{ " * 20000,
    "unclosed blocks": "{% " * 20000,
    "unclosed comments": "{# " * 20000,
    "unclosed texts": "{{ '" * 20000,
    "unclosed raw": "{% raw %}" + "{% " * 20000,
    "syntax": "{% if %}",
    "null character": "{{ '\0' }}{% x %}",
}

RUN_ALL = """
import resource, sys
from edgellm.errors import TemplateError
from edgellm.prompts.template import ChatTemplate
ChatTemplate("{{ messages }}").render([{"role": "user", "content": "Hi"}])
with open("/proc/self/statm") as statm:
    now = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 512 * 2**20,) * 2)
for source in eval(sys.stdin.read()):
    try:
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])
    except TemplateError as error:
        assert "too much memory" not in str(error), (source[:200], str(error))
    else:
        raise AssertionError(source[:200])
sys.stdout.write("done")
"""


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "SECONDS", 0.3)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("name", TOO_LONG)
def test_too_long(name: str) -> None:
    with pytest.raises(TemplateError, match="was stopped"):
        ChatTemplate(TOO_LONG[name]).render(MESSAGES)


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much(name: str) -> None:
    with pytest.raises(TemplateError, match="was stopped"):
        ChatTemplate(TOO_MUCH[name]).render(MESSAGES)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(
        TemplateError, match=r"too deeply|64 bits|a number of|rounding|Range too big|not for chat|numbers"
    ):
        ChatTemplate(REFUSED[name]).render(MESSAGES)


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes(name: str) -> None:
    with pytest.raises(
        TemplateError, match=r"unsafe|not for chat|undefined|public names|unknown tag|No filter|a key of"
    ):
        ChatTemplate(ESCAPES[name]).render(MESSAGES)


@pytest.mark.parametrize("name", TOO_LARGE)
def test_too_large(name: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(TOO_LARGE[name])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space and reads /proc")
def test_memory_is_bounded() -> None:
    """Under a limit of 512 MiB above what an idle process has, no attack runs into it."""
    attacks = [*TOO_MUCH.values(), *REFUSED.values(), *TOO_LARGE.values()]
    run = [sys.executable, "-c", RUN_ALL]
    done = subprocess.run(run, input=ascii(attacks), capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "done", done.stderr


@pytest.mark.usefixtures("hurried")
def test_a_stopped_template_renders_again() -> None:
    source = (
        "{% if 'attack' in messages[0].content %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    )
    template = ChatTemplate(source + "{% endfor %}{% else %}{{ messages[0].content }}{% endif %}")
    assert template.render(MESSAGES) == "Hi"
    with pytest.raises(TemplateError, match=r"stopped \(line 1\): it (runs longer|needs more)"):
        template.render([{"role": "user", "content": "attack"}])
    assert template.render(MESSAGES) == "Hi"


def test_threads_share_a_template() -> None:
    template = ChatTemplate("{% for m in messages %}{% for i in range(50) %}{{ m.content }}{% endfor %}{% endfor %}")
    wrong: list[str] = []

    def work(mark: str) -> None:
        for _ in range(20):
            text = template.render([{"role": "user", "content": mark}])
            if text != mark * 50:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
