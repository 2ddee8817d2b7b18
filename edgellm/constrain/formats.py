"""What each `format` of JSON Schema demands, as a pattern in the common form of regex.py.

A format is exact or narrower than its specification, never wider, and what is narrower says so. Patterns cannot count
years, so that dates are cut where leap years repeat. Formats that are not here are refused: a program that asks for one
relies on it.
"""

from __future__ import annotations

import re

from edgellm.constrain.regex import translate

# RFC 3339. Year 0000 is none to Python, the leap second 60 is there at the end of a UTC day alone: left out.
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_ZONE = "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,9}})?{_ZONE}"

# RFC 3339, appendix A. Numbers of at most nine digits, so that no answer counts forever.
_N = "[0-9]{1,9}"
_CLOCK = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DURATION = f"P(?:{_N}W|(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)(?:{_CLOCK})?|{_CLOCK})"

# RFC 1123: labels of 63 without hyphens at their ends, nor two of them at the third and fourth place: such names
# ("xn--") have rules of their own (RFC 5891), which no pattern can say.
_E, _I = "[A-Za-z0-9]", "[A-Za-z0-9-]"
_LABEL = f"(?:{_E}(?:{_I}{{0,2}}{_E})?|{_E}{_I}(?:{_E}{_I}|-{_E}){_I}{{0,58}}{_E})"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_H = "[0-9A-Fa-f]{1,4}"
_LAST = f"(?:{_H}:{_H}|{_IPV4})"
_IPV6 = (
    f"(?:(?:{_H}:){{6}}{_LAST}|::(?:{_H}:){{5}}{_LAST}|(?:{_H})?::(?:{_H}:){{4}}{_LAST}"
    f"|(?:(?:{_H}:){{0,1}}{_H})?::(?:{_H}:){{3}}{_LAST}|(?:(?:{_H}:){{0,2}}{_H})?::(?:{_H}:){{2}}{_LAST}"
    f"|(?:(?:{_H}:){{0,3}}{_H})?::{_H}:{_LAST}|(?:(?:{_H}:){{0,4}}{_H})?::{_LAST}"
    f"|(?:(?:{_H}:){{0,5}}{_H})?::{_H}|(?:(?:{_H}:){{0,6}}{_H})?::)"
)

# RFC 5321's dot-string at a name; quoted local parts and addresses in brackets are left out, as most programs do.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM})*@{_HOST}"

# RFC 3986.
_FREE = r"A-Za-z0-9\-._~!$&'()*+,;="
_HEX = "%[0-9A-Fa-f]{2}"
_PCHAR = f"(?:[{_FREE}:@]|{_HEX})"
_TAIL = rf"(?:\?(?:[{_FREE}:@/?]|{_HEX})*)?(?:#(?:[{_FREE}:@/?]|{_HEX})*)?"
_AUTHORITY = rf"(?:(?:[{_FREE}:]|{_HEX})*@)?(?:\[{_IPV6}\]|(?:[{_FREE}]|{_HEX})*)(?::[0-9]{{0,5}})?"
_PATH = f"(?:/{_PCHAR}*)*"
_HIER = f"(?://{_AUTHORITY}{_PATH}|/(?:{_PCHAR}+{_PATH})?|{_PCHAR}+{_PATH}|)"
_URI = rf"[A-Za-z][A-Za-z0-9+\-.]*:{_HIER}{_TAIL}"
_RELATIVE = f"(?://{_AUTHORITY}{_PATH}|/(?:{_PCHAR}+{_PATH})?|(?:[{_FREE}@]|{_HEX})+{_PATH}|){_TAIL}"

_POINTER = "(?:/(?:[^/~]|~[01])*)*"

_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": _DURATION,
    "email": _EMAIL,
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "uri": _URI,
    "uri-reference": f"(?:{_URI}|{_RELATIVE})",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]{{0,8}})(?:#|{_POINTER})",
}
NAMES = tuple(_PATTERNS)
LONGEST = {"hostname": 253, "email": 254}  # characters (RFC 1035, RFC 5321), which the patterns do not count


def pattern_of(name: str) -> str:
    """The pattern of a format, for a whole string."""
    return translate(f"^(?:{_PATTERNS[name]})$")


def fits(name: str, text: str) -> bool:
    """Whether a text is of a format."""
    return len(text) <= LONGEST.get(name, len(text)) and re.fullmatch(pattern_of(name), text) is not None
