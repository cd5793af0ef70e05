"""The files of the live page."""

from __future__ import annotations

import re

import httpx
import pytest
from live_server import Server

from pybatch.serve.routes.page import PAGE

FILES = {name: content.decode() for name, (content, _) in PAGE.items()}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in PAGE)])
def test_a_file_comes_with_its_type_and_a_strict_policy(server: Server, path: str) -> None:
    response = httpx.get(server.url + path)
    name = path.removeprefix("/page").removeprefix("/") or "index.html"
    assert response.status_code == 200
    assert response.text == FILES[name]
    assert response.headers["Content-Type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(each.strip().partition(" ")[::2] for each in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"


def test_a_file_that_has_not_changed_is_not_sent_again(server: Server) -> None:
    tag = httpx.get(f"{server.url}/page/main.js").headers["ETag"]
    again = httpx.get(f"{server.url}/page/main.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert httpx.get(f"{server.url}/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2froutes%2fpage.py", "%2e%2e/settings.py", ""])
def test_no_other_file_is_served(server: Server, name: str) -> None:
    assert httpx.get(f"{server.url}/page/{name}").status_code == 404


def test_all_that_the_page_loads_is_its_own() -> None:
    text = "\n".join(FILES.values())
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # the name of a format
    loaded = re.findall(r'(?:href|src)="(?!#)([^"]+)"', FILES["index.html"])
    loaded += [f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)]
    assert len(loaded) > 20
    assert {name.removeprefix("page/") for name in loaded} == set(FILES) - {"index.html"}


def test_nothing_makes_markup_or_code_of_text() -> None:
    scripts = "\n".join(text for name, text in FILES.items() if name.endswith(".js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", scripts)
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", FILES["index.html"])


# ---- colours ----


def colors(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", css))


def luminance(color: str) -> float:
    """Of WCAG 2."""
    digits = color[1:] if len(color) == 7 else "".join(2 * each for each in color[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


LIGHT, _, DARK = FILES["style.css"].partition("@media (prefers-color-scheme: dark)")
PALETTES = {"light": colors(LIGHT), "dark": colors(DARK)}
TEXT = [
    *((text, back) for text in ("text", "soft") for back in ("page", "card", "back")),
    *(("good", "good-back"), ("bad", "bad-back"), ("bad", "card"), ("on-main", "main"), ("card", "bad")),
]
GRAPHICS = [*((line, "card") for line in ("first", "second", "field")), ("main", "card"), ("main", "page")]


@pytest.mark.parametrize("scheme", PALETTES)
def test_the_colors_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    palette = PALETTES[scheme]
    assert palette.keys() == PALETTES["light"].keys()
    found = {(one, other): contrast(palette[one], palette[other]) for one, other in TEXT}
    assert not {pair: ratio for pair, ratio in found.items() if ratio < 4.5}
    found = {(one, other): contrast(palette[one], palette[other]) for one, other in GRAPHICS}
    assert not {pair: ratio for pair, ratio in found.items() if ratio < 3}
