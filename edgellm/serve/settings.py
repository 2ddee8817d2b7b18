"""Settings of the server, said once: flags and help pages are made of them (see edgellm/option.py)."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from edgellm.errors import InvalidParameter
from edgellm.option import Flag, Params, Real, Strings, Text, Whole, of_options, option
from edgellm.params import LoadParams

WHERE, WHO, WHAT = "Where it listens", "Who may ask", "Models"
where, who, what = (partial(option, section=each) for each in (WHERE, WHO, WHAT))
FOREVER = -1.0  # seconds that a model stays which is never unloaded for being idle
YEARS = 20 * 365 * 86400.0  # seconds; what stays for longer stays for ever


@of_options
@dataclass(frozen=True, slots=True)
class ServeParams(Params):
    """How the server listens, whom it answers, and which models it runs."""

    host: str = where("127.0.0.1", Text(), "Address to listen on; one that other machines reach needs a key")
    port: int = where(11435, Whole(0, 65535), "Port to listen on; 0 takes a free one")
    stdio: bool = where(
        False, Flag(), "Do not listen: JSON lines on stdin and stdout, with the program that starts it (docs/stdio.md)"
    )
    api_key: str | None = who(
        None, Text(), "Key that every request must bring, as Bearer or x-api-key", unset="EDGELLM_API_KEY, or none"
    )
    origin: Sequence[str] = who(
        (), Strings(), "Origin of web pages that may ask, such as app://obsidian.md; may be repeated"
    )
    max_body: int = who(64 << 20, Whole(1024, unit="bytes"), "Largest request")
    queue: int = who(512, Whole(1), "Requests that may be unanswered at once; more get 429")
    alias: Sequence[str] = what(
        (), Strings(), "PATTERN=MODEL: another name of a model, such as 'claude-*=smollm2'; may be repeated"
    )
    folder: Sequence[str] = what((), Strings(), "Folder whose models may be asked for; may be repeated")
    keep_alive: float = what(
        300.0, Real(-1, unit="seconds"), "How long an idle model stays loaded; -1 forever; those named here stay"
    )

    @property
    def loopback(self) -> bool:
        """Whether this machine alone reaches it."""
        return is_loopback(self.host)

    def aliases(self) -> Mapping[str, str]:
        """Models by the patterns that stand for them. Raises InvalidParameter."""
        found = {}
        for each in self.alias:
            pattern, equals, model = each.partition("=")
            if not (pattern and equals and model):
                raise InvalidParameter(f"alias={each!r}: must be PATTERN=MODEL, such as 'gpt-*=smollm2'")
            found[pattern] = model
        return found


def lasting(keep: float) -> float:
    """Seconds that a model stays, as a request says it: FOREVER for what is below zero. Raises InvalidParameter for
    what is no number."""
    if keep != keep or keep == math.inf:
        raise InvalidParameter(f"keep_alive={keep}: must be a number of seconds")
    return keep if 0 <= keep <= YEARS else FOREVER


def is_loopback(host: str) -> bool:
    """Whether an address is one that this machine alone reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served: settings, the models that were named, and how each is loaded."""

    params: ServeParams
    named: Sequence[str] = ()
    load: LoadParams = field(default_factory=LoadParams)
