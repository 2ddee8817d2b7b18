"""Schemas of what programs send one another, and of the arguments of tools."""

from __future__ import annotations

from constrain.schema_parts import (
    COUNT,
    FLAG,
    TEXT,
    Json,
    closed,
    form,
    like,
    mapping,
    maybe,
    number,
    of,
    ref,
    some,
    tagged,
    text,
    whole,
)

HEX = like("^[0-9a-f]{40}$")


def requests() -> dict[str, Json]:
    return _bodies() | _events() | _tools()


def _bodies() -> dict[str, Json]:
    money = closed(amount=whole(0, 99999), currency=of("eur", "usd", "jpy"))
    return {
        "charge": closed(
            ["money", "source"],
            money=money,
            source=tagged(
                "object",
                card=closed(last4=like("^[0-9]{4}$"), exp_month=whole(1, 12), exp_year=whole(2025, 2040)),
                sepa_debit=closed(iban=like("^[A-Z]{2}[0-9]{20}$")),
            ),
            capture={"type": "boolean", "default": True},
        ),
        "refund": closed(["charge"], charge=like("^ch_[A-Za-z0-9]{8}$"), reason=maybe(of("duplicate", "fraudulent"))),
        "cart": closed(
            items=some(closed(["sku", "quantity"], sku=like("^[A-Z]{3}-[0-9]{3}$"), quantity=whole(1, 99), note=TEXT)),
            coupon=maybe(like("^[A-Z0-9]{6}$")),
        ),
        "problem details": closed(
            ["title", "status"],
            type={"type": "string", "format": "uri-reference"},
            title=TEXT,
            status=whole(100, 599),
            detail=TEXT,
            errors=some(closed(pointer=form("json-pointer"), reason=TEXT)),
        ),
        "cursor page": {
            **closed(
                ["data", "has_more"], data=some(closed(id=COUNT)), has_more=FLAG, cursor=like("^[A-Za-z0-9_-]{8}$")
            ),
            "if": {"properties": {"has_more": {"const": True}}, "required": ["has_more"]},
            "then": {"required": ["cursor"]},
        },
        "token response": closed(
            ["access_token", "token_type"],
            access_token=like(r"^[A-Za-z0-9_-]{4}(\.[A-Za-z0-9_-]{4}){2}$"),
            token_type={"const": "Bearer"},
            expires_in=whole(1, 86400),
            scope=like("^[a-z]+( [a-z]+){0,3}$"),
        ),
        "key set": closed(
            keys=some(
                tagged(
                    "kty",
                    RSA=closed(n=like("^[A-Za-z0-9_-]{8,16}$"), e={"const": "AQAB"}),
                    EC=closed(crv=of("P-256", "P-384"), x=like("^[A-Za-z0-9_-]{6}$"), y=like("^[A-Za-z0-9_-]{6}$")),
                ),
                2,
                1,
            )
        ),
        "user update": {
            **closed([], nickname=text(2, 10), bio=maybe(TEXT), locale=like("^[a-z]{2}$")),
            "minProperties": 1,
        },
        "password change": closed(old=text(8, 12), new=like("^[!-~]{12,16}$")),
        "search request": closed(
            ["query"],
            query={
                "oneOf": [
                    closed(match=mapping(TEXT, "^[a-z_]{1,8}$", 1)),
                    closed(range=mapping(closed([], gte=COUNT, lte=COUNT), "^[a-z_]{1,8}$", 1)),
                    closed(match_all=closed()),
                ]
            },
            size=whole(0, 100),
            sort=some(of("asc", "desc"), 1),
        ),
        "boolean query": {
            "$defs": {
                "q": {
                    "oneOf": [
                        closed(**{"and": some(ref("q"), 2, 2)}),
                        closed(**{"or": some(ref("q"), 2, 2)}),
                        closed(**{"not": ref("q")}),
                        closed(term=like("^[a-z]{1,6}$")),
                    ]
                }
            },
            "$ref": "#/$defs/q",
        },
        "aggregation": closed(
            group_by=some(of("day", "country", "device"), 2, 1),
            measure=of("count", "sum", "avg"),
            having=maybe(closed(op=of(">", ">=", "<"), value=COUNT)),
        ),
        "graphql response": {
            "anyOf": [
                closed(data=mapping(TEXT, "^[a-z]{1,5}$")),
                closed(
                    errors=some(closed(["message"], message=TEXT, path=some({"type": ["string", "integer"]}))), data={}
                ),
            ]
        },
        "feature collection": closed(
            type={"const": "FeatureCollection"},
            features=some(
                closed(
                    type={"const": "Feature"},
                    geometry=maybe(closed(type={"const": "Point"}, coordinates=some(number(-180, 180), 3, 2))),
                    properties=mapping({"type": ["string", "number", "null"]}),
                )
            ),
        ),
        "bounding box": {
            "type": "array",
            "prefixItems": [number(-180, 180), number(-90, 90), number(-180, 180), number(-90, 90)],
            "items": False,
            "minItems": 4,
        },
        "chat message": closed(
            ["role", "content"],
            role=of("system", "user", "assistant"),
            content={
                "anyOf": [
                    TEXT,
                    some(
                        tagged("type", text=closed(text=TEXT), image_url=closed(image_url=closed(url=form("uri")))),
                        2,
                        1,
                    ),
                ]
            },
        ),
        "embedding": closed(index=whole(0, 9), embedding=some(number(-1, 1), 4, 4), object={"const": "embedding"}),
        "batch result": some(
            {"oneOf": [closed(id=COUNT, ok={"const": True}), closed(id=COUNT, ok={"const": False}, error=TEXT)]}, 2, 1
        ),
        "upload parts": closed(
            upload=like("^[0-9a-f]{16}$"),
            parts=some(closed(number=whole(1, 10000), etag=like('^"[0-9a-f]{8}"$')), 2, 1),
        ),
        "dns record": tagged(
            "type",
            A=closed(name=form("hostname"), address=form("ipv4")),
            AAAA=closed(name=form("hostname"), address=form("ipv6")),
            MX=closed(name=form("hostname"), exchange=form("hostname"), preference=whole(0, 65535)),
            TXT=closed(name=form("hostname"), text=text(0, 20)),
        ),
    }


def _events() -> dict[str, Json]:
    return {
        "push event": closed(
            ref=like("^refs/(heads|tags)/[a-z0-9-]{1,10}$"),
            before=HEX,
            after=HEX,
            commits=some(closed(id=HEX, message=TEXT, added=some(TEXT)), 2),
        ),
        "cloud event": {
            **closed(
                ["specversion", "id", "source", "type"],
                specversion={"const": "1.0"},
                id=text(1, 8),
                source=form("uri-reference"),
                type=like(r"^[a-z]+(\.[a-z]+){1,3}$"),
                time=form("date-time"),
                data=True,
            ),
            "title": "CloudEvent",
        },
        "log line": closed(
            ["ts", "level", "msg"],
            ts=form("date-time"),
            level=of("TRACE", "DEBUG", "INFO", "WARN", "ERROR"),
            msg=TEXT,
            trace=like("^[0-9a-f]{32}$"),
            fields=mapping({"type": ["string", "integer", "boolean"], "maxLength": 6}),
        ),
        "metric": closed(
            name=like("^[a-zA-Z_:][a-zA-Z0-9_:]{0,15}$"),
            kind=of("counter", "gauge"),
            labels=mapping(TEXT, "^[a-z_]{1,8}$"),
            value={"type": "number", "minimum": 0, "maximum": 1e9},
        ),
        "histogram": closed(
            buckets=some({"type": "array", "prefixItems": [number(0, 10), COUNT], "items": False, "minItems": 2}, 3, 1),
            sum=number(0, 1e6),
        ),
        "span": closed(
            ["trace_id", "span_id", "start"],
            trace_id=like("^[0-9a-f]{32}$"),
            span_id=like("^[0-9a-f]{16}$"),
            parent=maybe(like("^[0-9a-f]{16}$")),
            start=whole(0, 2**53),
            status=closed(["code"], code=of("UNSET", "OK", "ERROR"), description=TEXT),
        ),
        "sensor reading": closed(
            device=like("^([0-9A-F]{2}:){5}[0-9A-F]{2}$"),
            readings={
                "type": "object",
                "properties": {"celsius": number(-40, 85), "humidity": whole(0, 100), "battery": number(0, 4.2)},
                "minProperties": 2,
                "additionalProperties": False,
            },
        ),
        "gps fix": closed(
            ["lat", "lon"], lat=number(-90, 90), lon=number(-180, 180), hdop=number(0, 50), satellites=whole(0, 32)
        ),
        "mqtt topic": closed(topic=like("^[a-z0-9]+(/[a-z0-9]+){0,4}$"), qos=of(0, 1, 2), retain=FLAG, payload=TEXT),
        "audit entry": closed(
            actor=tagged("kind", user=closed(email=form("email")), service=closed(id=form("uuid"))),
            action=like("^(create|read|update|delete):[a-z]{1,10}$"),
            from_ip={"anyOf": [form("ipv4"), form("ipv6")]},
        ),
        "state change": {
            "type": "object",
            "properties": {"from": of("open", "paid", "sent"), "to": of("paid", "sent", "closed")},
            "required": ["from", "to"],
            "additionalProperties": False,
            "anyOf": [
                {"properties": {"from": {"const": "open"}, "to": {"enum": ["paid", "closed"]}}},
                {"properties": {"from": {"const": "paid"}, "to": {"const": "sent"}}},
                {"properties": {"from": {"const": "sent"}, "to": {"const": "closed"}}},
            ],
        },
        "build result": closed(
            ["job", "conclusion"],
            job=TEXT,
            conclusion=of("success", "failure", "skipped", None),
            duration=form("duration"),
            matrix=mapping(of("3.10", "3.11", "3.12"), "^python$", 1),
        ),
        "calendar invite": closed(
            uid=form("uuid"),
            rule=like("^FREQ=(DAILY|WEEKLY|MONTHLY)(;COUNT=[1-9][0-9]?)?$"),
            attendees=some(closed(["mail"], mail=form("email"), state=of("accepted", "declined")), 2, 1),
        ),
    }


def _tools() -> dict[str, Json]:
    return {
        "get_weather": closed(["city"], city=TEXT, unit={"enum": ["celsius", "fahrenheit"], "default": "celsius"}),
        "send_email": closed(
            ["to", "subject"],
            to=some(form("email"), 2, 1),
            subject=text(1, 20),
            body=text(0, 40),
            cc=some(form("email")),
        ),
        "run_sql": closed(
            statement=like("^SELECT [a-z, ]{1,12} FROM [a-z]{1,8}( LIMIT [1-9][0-9]{0,2})?$"), read_only={"const": True}
        ),
        "read_file": closed(
            ["path"], path=like(r"^(/[A-Za-z0-9._-]{1,8}){1,4}$"), offset=whole(0, 2**31), limit=whole(1, 2000)
        ),
        "edit_file": closed(path=like("^[a-z/]{1,12}[.]py$"), old=text(1, 20), new=text(0, 20), all=FLAG),
        "shell": closed(
            ["argv"], argv=some(text(1, 8), 4, 1), timeout_s={"type": "number", "exclusiveMinimum": 0, "maximum": 600}
        ),
        "calculate": closed(expression=like(r"^[0-9]{1,4}( [-+*/] [0-9]{1,4}){1,3}$")),
        "convert_units": closed(value=number(-1e6, 1e6), from_unit=of("km", "mi", "m"), to_unit=of("km", "mi", "m")),
        "set_light": {
            **closed(
                ["room"],
                room=of("kitchen", "hall", "bath"),
                on=FLAG,
                brightness=whole(0, 100),
                color=like("^#[0-9a-f]{6}$"),
            ),
            "minProperties": 2,
        },
        "set_thermostat": {
            **closed(["mode"], mode=of("off", "heat", "cool"), target={"type": "number", "multipleOf": 0.5}),
            "oneOf": [
                {"properties": {"mode": {"const": "off"}, "target": False}},
                {"properties": {"mode": {"const": "heat"}, "target": number(5, 25)}, "required": ["target"]},
                {"properties": {"mode": {"const": "cool"}, "target": number(18, 30)}, "required": ["target"]},
            ],
        },
        "book_table": closed(
            ["when", "guests"], when=form("date-time"), guests=whole(1, 20), seating=maybe(of("inside", "outside"))
        ),
        "play_music": {
            "anyOf": [
                closed(["artist"], artist=TEXT, song=TEXT),
                closed(playlist=TEXT),
                closed(station=number(87.5, 108)),
            ]
        },
        "set_timer": {
            "type": "object",
            "properties": {u: whole(0, 59) for u in ("hours", "minutes", "seconds")},
            "additionalProperties": False,
            "minProperties": 1,
        },
        "translate_text": closed(["text", "to"], text=text(1, 30), to=like("^[a-z]{2}(-[A-Z]{2})?$"), formal=FLAG),
        "web_search": closed(
            ["queries"], queries=some(text(2, 16), 3, 1), recency=of("day", "week", "year"), site=form("hostname")
        ),
        "plot": closed(
            ["kind", "series"],
            kind=of("line", "bar", "pie"),
            series=some(closed(label=TEXT, points=some(number(-100, 100), 3, 1)), 2, 1),
            axis=closed([], log=FLAG, range=some(number(0, 100), 2, 2)),
        ),
        "move_robot": closed(
            path=some({"oneOf": [closed(turn=whole(-180, 180)), closed(forward=number(0, 5)), of("stop")]}, 3, 1)
        ),
        "plan": {
            "$defs": {"task": closed(["do"], do=text(1, 12), then=some(ref("task")))},
            **closed(goal=TEXT, tasks=some(ref("task"), 2, 1)),
        },
        "no arguments": closed(),
    }
