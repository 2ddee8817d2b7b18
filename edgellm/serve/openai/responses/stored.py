"""Stored: answers that can be asked for, gone on from and deleted, while the ledger remembers them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.errors import InvalidParameter, Unsupported
from edgellm.serve.endpoint import Call, Empty, Reply, dumped
from edgellm.serve.ledger import Ledger
from edgellm.serve.openai.responses.ids import response_of
from edgellm.serve.openai.responses.items import Find, Item
from edgellm.serve.refusal import Refusal

PAGE, LARGEST_PAGE = 20, 100  # items of a listing


@dataclass(frozen=True)
class Kept:
    """An answer. items: the conversation that it answered, whole: answers that go on from it need no other."""

    response: dict[str, Any]
    items: list[Item]

    @property
    def nbytes(self) -> int:
        return len(dumped(self.response)) + len(dumped(self.items))


def kept(ledger: Ledger, id: str) -> Kept | None:
    entry = ledger.get(id)
    return entry.kept if entry is not None and isinstance(entry.kept, Kept) else None


def before(ledger: Ledger, id: str | None) -> list[Item]:
    """The conversation up to an answer, with that. Raises Refusal where it is not remembered."""
    if id is None:
        return []
    found = kept(ledger, id)
    if found is None:
        said = f"Previous response with id {id[:100]!r} not found: it was not stored, was deleted, or is too old"
        raise Refusal(400, said, "previous_response_not_found", "previous_response_id")
    return [*found.items, *found.response["output"]]


def finder(ledger: Ledger) -> Find:
    """What gives the item with an id, of what was asked or answered; None where it is not remembered. Each once: the
    same one again and again would be a prompt of any size. Raises InvalidParameter."""
    known: dict[str, dict[str, Item]] = {}
    given: set[str] = set()

    def find(id: str) -> Item | None:
        response = response_of(id)
        if response not in known:
            found = kept(ledger, response)
            every = [] if found is None else [*found.items, *found.response["output"]]
            known[response] = {each["id"]: each for each in reversed(every)}
        if id in given:
            raise InvalidParameter(f"input: there is more than one reference to item {id[:100]!r}")
        given.add(id)
        return known[response].get(id)

    return find


def _asked_for(call: Call[Empty]) -> Kept:
    id = call.path["id"]
    found = kept(call.state.ledger, id)
    if found is None:
        raise Refusal(404, f"Response with id {id[:100]!r} not found", "not_found", "response_id")
    return found


async def retrieve(call: Call[Empty]) -> Reply:
    if call.query.get("stream") == "true":
        raise Unsupported("stream: answers are not streamed again; ask for this one without")
    return Reply(_asked_for(call).response)


async def delete(call: Call[Empty]) -> Reply:
    id = _asked_for(call).response["id"]
    call.state.ledger.remove(id)
    return Reply({"id": id, "object": "response", "deleted": True})


async def cancel(call: Call[Empty]) -> Reply:
    _asked_for(call)
    raise InvalidParameter("only answers in the background can be cancelled, and there are none; close the connection")


async def input_items(call: Call[Empty]) -> Reply:
    """The conversation that was answered, the last item first."""
    items = _asked_for(call).items
    order, after, limit = (call.query.get(name) for name in ("order", "after", "limit"))
    if limit is not None and not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= LARGEST_PAGE):
        raise InvalidParameter(f"limit: must be between 1 and {LARGEST_PAGE}")
    if order not in (None, "asc", "desc"):
        raise InvalidParameter("order: must be asc or desc")
    listed = items if order == "asc" else items[::-1]
    if after is not None:
        listed = listed[next((at for at, each in enumerate(listed, 1) if each["id"] == after), 0) :]
    page = listed[: int(limit or PAGE)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": "", "last_id": ""}
    return Reply({"object": "list", "data": page, "has_more": len(page) < len(listed), **ends})
