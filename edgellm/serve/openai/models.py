"""/v1/models, also in Anthropic's shape for its clients."""

from __future__ import annotations

from typing import Any

from edgellm.serve.endpoint import Call, Empty, Reply
from edgellm.serve.models import Listed


async def models(call: Call[Empty]) -> Reply:
    listed = call.state.models.listed()
    if "anthropic-version" in call.headers:
        data = [_for_anthropic(each) for each in listed]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return Reply({"data": data, "has_more": False, **ends})
    return Reply({"object": "list", "data": [_for_openai(each) for each in listed]})


async def model(call: Call[Empty]) -> Reply:
    listed = call.state.models.find(call.path["id"])
    return Reply(_for_anthropic(listed) if "anthropic-version" in call.headers else _for_openai(listed))


def _for_openai(listed: Listed) -> dict[str, Any]:
    return {"id": listed.name, "object": "model", "created": int(listed.modified), "owned_by": "edgellm"}


def _for_anthropic(listed: Listed) -> dict[str, Any]:
    created = listed.modified_at.partition(".")[0] + "Z"
    about = {"type": "model", "id": listed.name, "display_name": listed.name, "created_at": created}
    return {**about, "lifecycle": "active"}
