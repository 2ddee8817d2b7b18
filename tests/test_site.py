"""The documentation as a site: it builds without a warning, holds every page, and fetches nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from source_tree import ROOT

from edgellm.cli import COMMANDS
from edgellm.params import GenerateParams

pytest.importorskip("mkdocs", reason="the site needs edgellm[docs]")
pytest.importorskip("material", reason="the site needs edgellm[docs]")
FETCHED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "audio": "src",
    "object": "data",
}
NEEDED_BY_OLD_BROWSERS = ("resize-observer-polyfill", "mermaid@")  # the theme's; nothing here asks for them


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        env={
            **os.environ,
            "NO_MKDOCS_2_WARNING": "1",
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        },
        cwd=folder,  # of which Python takes modules first
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Page(HTMLParser):
    """What a page fetches when it is opened, its links, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.append(str(given["id"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        address = given.get(FETCHED.get(tag, ""))
        if address and given.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(address)


def _in_nav(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for each in entry.values() if isinstance(entry, dict) else entry:
            yield from _in_nav(each)


def test_every_page_is_there(site: Path) -> None:
    from mkdocs.config import load_config

    nav = list(_in_nav(load_config(str(ROOT / "mkdocs.yml"))["nav"]))
    assert len(nav) == len(set(nav)) > 20
    for name in nav:
        assert (site / name).with_suffix(".html").is_file(), name
    written = {each.name for each in (ROOT / "docs").glob("*.md")}
    assert written <= set(nav)
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {each["location"].partition("#")[0] for each in index["docs"]}
    assert found >= {Path(name).with_suffix(".html").name for name in nav}
    assert (site / "search" / "search_index.js").is_file()  # for pages that are opened from a folder


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    outside = re.compile(r"^(?:[a-z]+:)?//")
    for path in site.rglob("*.html"):
        assert [each for each in Page(path).fetched if outside.match(each)] == [], path.name
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"""(?:url\(|@import )\s*["']?((?:https?:)?//[^"')]*)""", text) == [], path.name
    for path in site.rglob("*.js"):
        text = path.read_text(encoding="utf-8")
        hosts = re.findall(
            r"""["'`](https?://(?:unpkg|cdn|fonts|[\w.-]*(?:jsdelivr|googleapis|cloudflare))[^"'`]*)""", text
        )
        assert [each for each in hosts if not any(one in each for one in NEEDED_BY_OLD_BROWSERS)] == [], path.name


def test_links_lead_somewhere(site: Path) -> None:
    """Over the whole site, pages made by the build included."""
    pages = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    lost = []
    for name, page in pages.items():
        for link in page.links if name != "404.html" else ():
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            to = (
                (site / name).parent.joinpath(target).resolve().relative_to(site.resolve()).as_posix()
                if target
                else name
            )
            if to == ".":
                to = "index.html"
            if to not in pages:
                lost += [f"{name}: {link}"] * (not (site / to).is_file())
            elif anchor and anchor not in pages[to].anchors:
                lost.append(f"{name}: {link}")
    assert lost == []


def test_what_the_build_makes_is_whole(site: Path) -> None:
    commands = Page(site / "commands.html")
    for name in COMMANDS:
        assert f"edgellm-{name}" in commands.anchors
    assert "edgellm-cache-ls" in commands.anchors
    options = Page(site / "options.html").text
    for name in GenerateParams.OPTIONS:
        assert f"<code>{name}</code>" in options
    reference = Page(site / "api.html")
    assert {"edgellm.Model", "edgellm.Model.stream", "edgellm.Chat.fork", "edgellm.load"} <= set(reference.anchors)
    shown = " ".join(re.sub(r"<[^>]+>", "", reference.text).split())
    assert re.search(r"Usage\( prompt_tokens: int = 0, cached_tokens: int = 0,", shown)
    assert re.search(r"convert\( source: str \| PathLike\[str\], target:", shown)
    assert "not run:" not in re.sub(r"<!--.*?-->", "", Page(site / "clients.html").text)


@pytest.mark.parametrize("width", [1280, 375])
def test_in_a_browser_from_a_folder(site: Path, browser: Any, width: int) -> None:
    """No page is wider than a phone, asks another host, or has an error; and the search finds."""
    context = browser.new_context(viewport={"width": width, "height": 720}, color_scheme="dark")
    seen: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: seen.append(request.url))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("console", lambda message: seen.append(message.text) if message.type in ("error", "warning") else None)
    few = ("index", "api", "performance") if width > 1000 else ()
    for path in sorted(site.glob("*.html")):
        if path.stem != "404" and (not few or path.stem in few):
            page.goto(path.as_uri())
            page.wait_for_function("document.readyState === 'complete'")
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width, path.name
    page.goto((site / "index.html").as_uri())
    if width < 1000:
        page.click("label.md-header__button[for=__search]")
    page.click(".md-search__input")
    page.keyboard.type("checkpoint")
    page.wait_for_selector(".md-search-result__item a")
    assert [each for each in seen if not each.startswith(("file:", "data:", "blob:", "about:"))] == []
    context.close()
