"""Answers are whatever a model says: nothing in them acts."""

from __future__ import annotations

import json
from pathlib import Path

from serve.page.chat_page import ChatPage
from serve.page.stub import Stub, text

RUN = "window.__pwned=1;alert(1)"

HOSTILE = [
    f"<script>{RUN}</script>",
    f"<img src=x onerror='{RUN}'>",
    f"<svg onload='{RUN}'><circle r=9></svg>",
    f"<svg><script>{RUN}</script></svg>",
    f'<iframe src="javascript:{RUN}"></iframe>',
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    f"<body onload='{RUN}'><details open ontoggle='{RUN}'>x</details>",
    f"<input autofocus onfocus='{RUN}'><video src=x onerror='{RUN}'></video>",
    "<style>body{display:none}</style><link rel=stylesheet href=https://evil.example/x.css>",
    "<base href=https://evil.example/><meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<form action=https://evil.example/><input name=q><button>Send</button></form>",
    "<object data=https://evil.example/x></object><embed src=https://evil.example/x>",
    f"[a link](javascript:{RUN}) [b](JaVaScRiPt:{RUN}) [c](java&#x73;cript:{RUN}) <javascript:{RUN}>",
    f"[d](data:text/html,<script>{RUN}</script>) [e](vbscript:x) [f](file:///etc/passwd) [g](blob:x)",
    f"[h]: javascript:{RUN}\n\n[h]",
    "![picture](https://evil.example/track.png) ![p](//evil.example/y.png) ![q](/v1/models)",
    f'![svg](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+) ![x](x"onerror="{RUN})',
    f'![r](data:image/png;base64,AAAA"onerror="{RUN})',
    f"$\\href{{javascript:{RUN}}}{{x}}$ $\\htmlStyle{{position:fixed}}{{x}}$ $\\includegraphics{{https://evil.example/x.png}}$",
    f"$$\\text{{<img src=x onerror={RUN}>}}$$ $\\unicode{{x}}$ $\\def\\a{{\\a\\a}}\\a$",
    f"```<img/src=x/onerror={RUN}>\n<script>{RUN}</script>\n```",
    f"```html\n<script>{RUN}</script>\n```",
    f'```"onmouseover="{RUN}\ncode\n```',
    f"`<img src=x onerror={RUN}>` <a href='javascript:{RUN}'>x</a>",
    f'<math><mtext><table><mglyph><style><!--</style><img title="--><img src=x onerror={RUN}>">',
    f'<noscript><p title="</noscript><img src=x onerror={RUN}>">',
    f"| a |\n| - |\n| <img src=x onerror={RUN}> |",
    "<div id=app></div><a id=message></a><img name=body>",
    'https://evil.example/auto and http://evil.example/"onclick=alert(1)',
    "<https://evil.example/x>",
    "\u202eevil\u202c \x00 \ufeff &lt;script&gt; &#60;script&#62;alert(1)&#60;/script&#62;",
]

ACTING = "script, style, iframe, object, embed, form, input, button, link, base, meta, svg, video, audio, [id], [name]"


def test_nothing_in_an_answer_acts(chat: ChatPage, stub: Stub) -> None:
    stub.will({"reasoning_content": "\n\n".join(HOSTILE)}, *(text(each + "\n\n") for each in HOSTILE))
    chat.send("Attack")
    chat.page.locator(".reasoning summary").click()
    box = chat.page.locator(".text")
    box.nth(1).wait_for()
    found = box.last.locator(ACTING).evaluate_all(
        "nodes => nodes.filter((node) => !node.matches('.copy')).map((node) => node.outerHTML)"
    )
    assert found == []
    handlers = box.evaluate_all(
        "boxes => boxes.flatMap((box) => [...box.querySelectorAll('*')]"
        ".flatMap((node) => [...node.attributes].filter((a) => a.name.startsWith('on') || a.name === 'style')))"
        ".map((a) => a.name)"
    )
    assert handlers == []
    links = box.locator("a").evaluate_all("nodes => nodes.map((a) => [a.getAttribute('href'), a.target, a.rel])")
    assert len(links) >= 6
    assert all(href.startswith(("http://", "https://")) for href, _, _ in links)
    assert {(target, rel) for _, target, rel in links} == {("_blank", "noopener noreferrer")}
    assert [each for each in links if each[0] == "https://evil.example/track.png"]  # a link, where a picture would load
    sources = box.locator("img").evaluate_all("nodes => nodes.map((node) => node.src)")
    assert all(source.startswith("data:image/png") for source in sources)
    chat.page.locator("article.assistant").hover()
    chat.page.wait_for_timeout(200)  # time for what should not happen
    assert chat.page.url == f"{stub.address}/"
    assert chat.page.locator("#message").is_visible()


def test_each_alone_and_in_pieces(chat: ChatPage, stub: Stub) -> None:
    """Cut after every few characters, as they stream, drawn at every cut."""
    for each in HOSTILE:
        steps = [step for at in range(0, len(each), 7) for step in (text(each[at : at + 7]),)]
        stub.will(*steps)
        chat.send("x")
    assert chat.page.locator("article.assistant").count() == len(HOSTILE)
    assert (
        chat.page.locator(".text")
        .locator(ACTING)
        .evaluate_all("nodes => nodes.filter((n) => !n.matches('.copy')).length")
        == 0
    )


def test_hostile_names_and_errors(chat: ChatPage, stub: Stub, tmp_path: Path) -> None:
    markup = f"<img src=x onerror={RUN}>"
    stub.refuses(400, markup)
    chat.send(markup)
    assert chat.titles == [markup]
    assert markup in chat.page.locator(".notice").inner_text()
    call = {"index": 0, "id": markup, "type": "function", "function": {"name": markup, "arguments": markup}}
    stub.will({"tool_calls": [call]}, finish="tool_calls")
    chat.button("Try again").click()
    chat.page.locator(".card summary", has_text=markup).wait_for()
    file = tmp_path / "`<img>`.txt"
    file.write_text("```\n" + markup, encoding="utf-8")
    chat.page.set_input_files("[aria-label=Files]", file)
    chat.page.locator(".chips li", has_text="_<img>_.txt").wait_for()
    assert chat.page.locator("img[src=x]").count() == 0


def test_a_hostile_file_of_conversations(chat: ChatPage, tmp_path: Path) -> None:
    markup = f"<img src=x onerror={RUN}>"
    node = {"type": "script", "props": {"children": RUN}, "constructor": None, "__k": None}
    script = {"name": markup, "url": "javascript:alert(1)"}
    vector = {"name": "x", "url": "data:image/svg+xml,<svg/>"}
    answer = {
        "content": node,
        "reasoning": markup,
        "state": "running",
        "model": node,
        "calls": [{"id": 1, "name": node, "arguments": markup}],
        "report": {"cache": {"reason": node, "from_live": node}, "timings": node},
    }
    turns = {
        "a": {"id": "a", "parent": "", "role": "user", "content": markup, "files": [script]},
        "b": {"id": "b", "parent": "a", "role": "assistant", **answer},
        "c": {"id": "c", "parent": "b", "role": "user", "content": "And?", "files": [vector]},
    }
    chosen = {"__proto__": "a", "": "zz"}
    settings = {"system": node, "schema": markup}
    value = {"id": "x", "title": node, "settings": settings, "turns": turns, "chosen": chosen}
    file = tmp_path / "import.json"
    file.write_text(
        json.dumps({"format": "edgellm-conversations", "version": 1, "conversations": [value]}), encoding="utf-8"
    )
    chat.page.set_input_files("[aria-label='File to import']", file)
    chat.page.locator(".entry", has_text="Without a title").click()
    chat.page.locator("article.user", has_text="And?").wait_for()
    assert chat.page.locator("article.user img").count() == 0
    chat.reload()
    chat.page.locator("article.user", has_text="And?").wait_for()


def test_a_long_answer_stays_quick(chat: ChatPage, stub: Stub) -> None:
    """Nested markup and much of it: the page still answers."""
    stub.will(
        text("> " * 500 + "x\n\n"), text("[" * 2000), text("\n\n" + "*a " * 3000), text("\n\n" + "$" + "{" * 3000 + "$")
    )
    chat.send("Go")
    chat.page.evaluate("1 + 1")
    assert chat.page.locator("#message").is_enabled()
