"""Formats: what they let through, against readers that are not ours, and by walks."""

from __future__ import annotations

import datetime
import ipaddress
import random
import re
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from masks import matcher, walk

from edgellm.constrain.formats import NAMES, fits
from edgellm.constrain.parsed import strict_json
from edgellm.constrain.schema import prepare


def _zoned(text: str) -> str:
    whole, point, rest = text.upper().replace("Z", "+00:00").partition(".")
    zone = re.search("[+-].*", rest)
    return f"{whole}.{re.split('[+-]', rest)[0][:6]:0<6}{zone.group() if zone else ''}" if point else whole


READERS: dict[str, Callable[[str], object]] = {
    "date": datetime.date.fromisoformat,
    "date-time": lambda text: datetime.datetime.fromisoformat(_zoned(text)),
    "time": lambda text: datetime.time.fromisoformat(_zoned(text)),
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
    "uri": urlsplit,
    "uri-reference": urlsplit,
}


@pytest.mark.parametrize("name", NAMES)
def test_walks_give_texts_of_the_format(name: str) -> None:
    start, chance, texts = matcher(prepare({"type": "string", "format": name})), random.Random(name), []
    for _ in range(30):
        text = walk(start, chance)
        if text is not None:
            texts.append(strict_json(text))
    assert texts
    for text in texts:
        assert fits(name, text)
        READERS.get(name, str)(text)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "date",
            ["2024-02-29", "2000-02-29", "0001-12-31"],
            ["2023-02-29", "1900-02-29", "0000-01-01", "2024-04-31", "24-1-1", "2024-01-01\n"],
        ),
        (
            "time",
            ["23:59:59Z", "08:30:06.283185z", "00:00:00-23:59"],
            ["24:00:00Z", "08:30:06", "8:30:06Z", "08:30:60Z", "12:00:00+24:00"],
        ),
        (
            "date-time",
            ["1990-12-31T15:59:50.123-08:00"],
            ["1990-02-31T15:59:59Z", "1990-12-31 15:59:59Z", "1990-12-31T15:59:59"],
        ),
        ("duration", ["P4DT12H30M5S", "P1W", "PT0S", "P1Y2M"], ["P", "PT", "P1", "P1Y2W", "P2S", "4DT", "P1Y1D"]),
        ("email", ["joe.bloggs@example.com", "te~st@example.com"], ["2962", ".a@b.c", "a..b@c.d", "a@", "a@-b.c"]),
        (
            "hostname",
            ["www.example.com", "a", "a" * 63 + ".b", "1host"],
            ["", "-a", "a-", "a" * 64, "a..b", "a_b", ".", "ab--cd", "a." * 127 + "a"],
        ),
        ("ipv4", ["127.0.0.1", "255.255.255.255"], ["256.1.1.1", "1.1.1", "01.1.1.1", "1.1.1.1.1"]),
        (
            "ipv6",
            ["::", "::1", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4", "1::8"],
            ["1", ":::", "1:2:3:4:5:6:7:8:9", "12345::", "::1%eth0", "1::2::3"],
        ),
        (
            "uuid",
            ["2EB8AA08-aa98-11ea-b4aa-73b441d16380"],
            ["2eb8aa08aa9811eab4aa73b441d16380", "2eb8aa08-aa98-11ea-b4aa-73b441d1638"],
        ),
        (
            "uri",
            ["http://a.b/?q=%20#f", "urn:a:b", "http://[::1]:80/", "tel:+1"],
            ["//a", "a b", "http:// a", "http://[::1", "a", "http://a/{b}"],
        ),
        ("uri-reference", ["/a?b", "#f", "", "../a", "//h/p"], ["\\\\a\\b", "#a\\b", ":a", "%"]),
        ("json-pointer", ["", "/a/b~0~1", "/"], ["a", "/~", "/~2"]),
        ("relative-json-pointer", ["0", "1/a", "10#"], ["", "-1", "01", "/a", "0##"]),
    ],
)
def test_what_is_of_a_format(name: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fits(name, text)] == []
    assert [text for text in bad if fits(name, text)] == []


def test_every_day_of_four_centuries_is_a_date() -> None:
    first = datetime.date(1900, 1, 1)
    days = [(first + datetime.timedelta(days=day)).isoformat() for day in range(0, 146_097, 59)]
    assert all(fits("date", day) for day in days)
    leaps = [year for year in range(1, 2401) if fits("date", f"{year:04}-02-29")]
    assert leaps == [year for year in range(1, 2401) if year % 4 == 0 and (year % 100 or year % 400 == 0)]
