"""/v1/models, also in Anthropic's shape for its clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.errors import InvalidParameter
from edgellm.serve.endpoint import Call, Empty, Reply
from edgellm.serve.models import Listed

LARGEST_PAGE = 1000


async def models(call: Call[Empty]) -> Reply:
    listed = call.state.models.shown()
    if "anthropic-version" not in call.headers:
        return Reply({"object": "list", "data": [_for_openai(each) for each in listed]})
    page, more = _page(listed, call.query)
    ends = {"first_id": page[0].name if page else None, "last_id": page[-1].name if page else None}
    return Reply({"data": [_for_anthropic(each) for each in page], "has_more": more, **ends})


def _page(listed: list[Listed], query: Mapping[str, str]) -> tuple[list[Listed], bool]:
    """The models that a client of Anthropic's asks for, and whether there are more on that side; all if it does not say
    how many. Raises InvalidParameter."""
    after, before, limit = (query.get(name) for name in ("after_id", "before_id", "limit"))
    if limit is not None and not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:5]) <= LARGEST_PAGE):
        raise InvalidParameter(f"limit: must be between 1 and {LARGEST_PAGE}")
    names = [each.name for each in listed]
    for name in (after, before):
        if name is not None and name not in names:
            raise InvalidParameter(f"there is no model {name[:200]!r} to list from")
    most = len(listed) if limit is None else int(limit)
    if before is not None:
        rest = listed[: names.index(before)]
        return rest[-most:], len(rest) > most
    rest = listed if after is None else listed[names.index(after) + 1 :]
    return rest[:most], len(rest) > most


async def model(call: Call[Empty]) -> Reply:
    name = call.path["id"]
    listed = call.state.models.find(name)
    if "anthropic-version" in call.headers:
        return Reply({**_for_anthropic(listed), "id": name})
    return Reply({**_for_openai(listed), "id": name})


def _for_openai(listed: Listed) -> dict[str, Any]:
    return {"id": listed.name, "object": "model", "created": int(listed.modified), "owned_by": "edgellm"}


def _for_anthropic(listed: Listed) -> dict[str, Any]:
    created = listed.modified_at.partition(".")[0] + "Z"
    about = {"type": "model", "id": listed.name, "display_name": listed.name, "created_at": created}
    return {**about, "lifecycle": "active"}
