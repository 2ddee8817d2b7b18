"""Schemas of files that programs are configured by."""

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

NAME = like("^[a-z][a-z0-9-]{0,10}$")
SIZE = like("^[1-9][0-9]{0,3}(Ki|Mi|Gi)$")


def settings() -> dict[str, Json]:
    return _machines() | _builds() | _programs()


def _machines() -> dict[str, Json]:
    return {
        "container": closed(
            ["name", "image"],
            name=NAME,
            image=like("^[a-z]{1,8}/[a-z]{1,8}:[a-z0-9.]{1,6}$"),
            ports=some(closed(["port"], port=whole(1, 65535), protocol=of("TCP", "UDP"))),
            resources=closed([], cpu=like("^[1-9][0-9]{0,3}m$"), memory=SIZE),
            env=some({"oneOf": [closed(name=TEXT, value=TEXT), closed(name=TEXT, secret=NAME)]}),
        ),
        "probe": {
            "type": "object",
            "properties": {"httpGet": closed(path=TEXT, port=whole(1, 65535)), "tcp": whole(1, 65535), "period": COUNT},
            "additionalProperties": False,
            "oneOf": [{"required": ["httpGet"]}, {"required": ["tcp"]}],
        },
        "compose": closed(
            services=mapping(
                closed(["image"], image=TEXT, depends_on=some(NAME), restart=of("no", "always")), "^[a-z]{1,6}$"
            ),
            volumes=mapping({"type": "null"}, "^[a-z]{1,6}$"),
        ),
        "volume": tagged(
            "driver", local=closed(path=TEXT), nfs=closed(server=form("hostname"), share=TEXT), tmpfs=closed(size=SIZE)
        ),
        "ingress": closed(
            host=form("hostname"),
            tls={"type": ["boolean", "object"], "properties": {"secret": NAME}, "additionalProperties": False},
            paths=some(closed(path=like("^/[a-z]{0,8}$"), service=NAME), 2, 1),
        ),
        "firewall": some(
            closed(
                ["action", "cidr"],
                action=of("allow", "deny"),
                cidr=like(r"^(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}/([12]?\d|3[0-2])$"),
                ports={"anyOf": [whole(1, 65535), {"const": "any"}]},
            ),
            2,
        ),
        "cron": closed(
            schedule=like(r"^(\*|[0-5]?\d) (\*|1?\d|2[0-3]) \* \* (\*|[0-6])$"), command=TEXT, keep=whole(1, 10)
        ),
        "systemd unit": closed(
            Unit=closed(Description=TEXT, After=some(like("^[a-z]{1,8}[.](service|target)$"))),
            Service=closed(["ExecStart"], ExecStart=like("^/[ -~]{1,20}$"), Restart=of("no", "on-failure", "always")),
        ),
        "autoscaler": {
            **closed(["min", "max"], min=whole(1, 3), max=whole(4, 20), target_cpu=whole(10, 95)),
            "dependentRequired": {"target_cpu": ["max"]},
        },
        "policy": closed(
            Version={"const": "2012-10-17"},
            Statement=some(
                closed(
                    ["Effect", "Action"],
                    Effect=of("Allow", "Deny"),
                    Action={"oneOf": [like("^[a-z0-9]{2,6}:[A-Z*][A-Za-z*]{0,8}$"), some(TEXT, 2, 1)]},
                    Condition=mapping(mapping(TEXT), "^[A-Z][A-Za-z]{2,8}$", 1),
                ),
                2,
                1,
            ),
        ),
        "database": {
            **closed(
                ["engine"],
                engine=of("sqlite", "postgres"),
                file=like("^[a-z]{1,8}[.]db$"),
                host=form("hostname"),
                pool=whole(1, 50),
            ),
            "if": {"properties": {"engine": {"const": "sqlite"}}},
            "then": {"required": ["file"], "properties": {"host": False, "pool": False}},
            "else": {"required": ["host"], "properties": {"file": False}},
        },
        "replicas": {"type": "integer", "minimum": 1, "maximum": 99, "not": {"enum": [13, 66]}},
        "backup": closed(
            at=form("time"), keep=closed([], daily=whole(0, 31), weekly=whole(0, 52)), target=form("uri"), encrypt=FLAG
        ),
    }


def _builds() -> dict[str, Json]:
    version = like(r"^(\^|~)?\d{1,3}\.\d{1,3}\.\d{1,3}(-(alpha|beta|rc)\.\d)?$")
    return {
        "package.json": closed(
            ["name", "version"],
            name=like("^(@[a-z]{1,8}/)?[a-z][a-z0-9-]{0,12}$"),
            version=version,
            private=FLAG,
            scripts=mapping(TEXT, "^[a-z]{2,8}(:[a-z]{2,6})?$"),
            dependencies=mapping(version, "^[a-z][a-z-]{1,10}$"),
            type=of("module", "commonjs"),
        ),
        "tsconfig": closed(
            ["compilerOptions"],
            compilerOptions=closed(
                [],
                target=of("ES2020", "ES2022", "ESNext"),
                strict=FLAG,
                paths=mapping(some(TEXT, 2, 1), "^@[a-z]{1,6}/[*]$"),
                lib=some(of("DOM", "ES2022"), 2),
            ),
            include=some(TEXT),
        ),
        "lint rules": {
            "type": "object",
            "patternProperties": {
                "^[a-z]{2,8}(-[a-z]{2,8}){0,2}$": {
                    "oneOf": [
                        of("off", "warn", "error"),
                        whole(0, 2),
                        {
                            "type": "array",
                            "prefixItems": [of("warn", "error"), {"type": "object", "maxProperties": 1}],
                            "items": False,
                            "minItems": 1,
                        },
                    ]
                }
            },
            "additionalProperties": False,
            "maxProperties": 2,
        },
        "workflow": closed(
            ["on", "jobs"],
            on={"anyOf": [of("push", "pull_request"), some(of("push", "pull_request"), 2, 1)]},
            jobs=mapping(
                closed(
                    ["steps"],
                    needs=some(NAME),
                    steps=some(
                        {
                            "oneOf": [
                                closed(["run"], run=TEXT, name=TEXT),
                                closed(uses=like("^[a-z]{1,6}/[a-z]{1,6}@v[1-9]$")),
                            ]
                        },
                        2,
                        1,
                    ),
                ),
                "^[a-z]{1,6}$",
                1,
            ),
        ),
        "dependency lock": some(
            closed(["name", "version"], name=NAME, version=version, sha256=like("^[0-9a-f]{64}$"), markers=maybe(TEXT)),
            2,
        ),
        "release notes": closed(
            version=version,
            date=form("date"),
            **{kind: some(text(3, 20)) for kind in ("added", "changed", "fixed", "removed")},
        ),
        "code review": closed(
            comments=some(
                closed(
                    ["file", "line", "severity"],
                    file=like("^[a-z]{1,8}([/][a-z]{1,8}){0,2}[.](py|rs|ts)$"),
                    line=whole(1, 9999),
                    severity=of("nit", "minor", "major"),
                    suggestion=maybe(text(1, 20)),
                )
            ),
            verdict=of("approve", "request changes"),
        ),
        "commit message": closed(
            ["type", "subject"],
            type=of("feat", "fix", "docs", "refactor", "test", "chore"),
            scope=like("^[a-z-]{1,8}$"),
            subject=like("^[a-z][a-z ]{2,28}[a-z]$"),
            breaking=FLAG,
        ),
        "test report": closed(
            passed=COUNT, failed=COUNT, failures=some(closed(test=like(r"^test_[a-z_]{1,10}$"), trace=some(TEXT, 3)))
        ),
        "coverage": mapping({"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.1}, "^[a-z/]{1,8}[.]c$"),
        "migration": some(
            tagged(
                "op",
                create_table=closed(name=NAME, columns=mapping(of("int", "text", "bool"), "^[a-z_]{1,8}$")),
                drop_table=closed(name=NAME, cascade=FLAG),
                add_index=closed(table=NAME, on=some(NAME, 2, 1), unique=FLAG),
            ),
            2,
            1,
        ),
        "devcontainer": closed(
            [], image=TEXT, forwardPorts=some({"oneOf": [whole(1, 65535), like("^[a-z]{1,6}:[0-9]{2,5}$")]}), init=FLAG
        ),
    }


def _programs() -> dict[str, Json]:
    return {
        "key binding": some(
            closed(["key", "command"], key=like("^((ctrl|alt|shift)[+]){0,2}[a-z0-9]$"), command=TEXT, when=TEXT)
        ),
        "theme": closed(
            name=TEXT,
            kind=of("light", "dark"),
            colors={
                "type": "object",
                "patternProperties": {r"^[a-z]{2,8}\.[a-z]{2,8}$": like("^#[0-9a-f]{6}([0-9a-f]{2})?$")},
                "additionalProperties": False,
                "maxProperties": 2,
            },
        ),
        "snippet": closed(prefix={"anyOf": [NAME, some(NAME, 2, 1)]}, body=some(text(0, 16), 3, 1), scope=maybe(NAME)),
        "web manifest": closed(
            ["name", "icons"],
            name=TEXT,
            icons=some(closed(src=form("uri-reference"), sizes=like(r"^([1-9]\d{1,3}x[1-9]\d{1,3}|any)$")), 2, 1),
            display=of("browser", "standalone"),
            theme_color=like("^#[0-9a-f]{6}$"),
        ),
        "extension": closed(
            ["manifest_version", "permissions"],
            manifest_version={"const": 3},
            permissions=some(of("tabs", "storage", "alarms"), 3),
            content_scripts=some(
                closed(matches=some(like("^https://[*]?[a-z.]{1,12}/[*]$"), 2, 1), js=some(TEXT, 1, 1))
            ),
        ),
        "feature flag": closed(
            ["key", "enabled"],
            key=like("^[a-z]+(-[a-z]+){0,3}$"),
            enabled=FLAG,
            rollout={"oneOf": [whole(0, 100), closed(attribute=TEXT, percent=whole(0, 100))]},
            until=form("date"),
        ),
        "experiment": closed(
            arms=mapping(number(0, 1), "^[A-D]$", 4),
            metric=of("clicks", "revenue"),
            days={"type": "integer", "enum": [7, 14, 28]},
        ),
        "training run": closed(
            ["lr", "epochs", "optimizer"],
            lr={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            epochs=whole(1, 500),
            optimizer=tagged(
                "name",
                sgd=closed(momentum=number(0, 0.99)),
                adamw=closed(betas=some(number(0, 0.999), 2, 2), weight_decay=number(0, 1)),
            ),
            seed=maybe(whole(0, 2**32 - 1)),
        ),
        "layers": {
            "$defs": {
                "layer": tagged(
                    "type",
                    dense=closed(units=whole(1, 4096), activation=of("relu", "gelu", None)),
                    dropout=closed(rate=number(0, 0.9)),
                    residual=closed(inner=some(ref("layer"), 2, 1)),
                )
            },
            "type": "array",
            "items": ref("layer"),
            "minItems": 1,
            "maxItems": 2,
        },
        "router": closed(
            default=NAME,
            rules=some(closed(["to"], to=NAME, header=mapping(TEXT, "^X-[A-Z][a-z]{1,6}$", 1), weight=whole(1, 100))),
        ),
        "retry policy": closed(
            ["attempts"],
            attempts=whole(1, 10),
            backoff={
                "type": "object",
                "properties": {"base_ms": whole(1, 9999), "factor": number(1, 10)},
                "required": ["base_ms"],
                "additionalProperties": False,
            },
            on=some(of(408, 429, 500, 502, 503), 3),
        ),
        "alert rule": closed(
            when=like("^[a-z_]{1,8} (>|<|==) [0-9]{1,4}$"), hold=form("duration"), notify=some(form("email"), 2, 1)
        ),
        "game save": closed(
            level=whole(1, 99),
            position={"type": "array", "items": number(-100, 100), "minItems": 3, "maxItems": 3},
            inventory=some(closed(["item"], item=TEXT, count=whole(1, 64), enchanted=FLAG), 3),
            flags=mapping(FLAG, "^[a-z_]{1,8}$"),
        ),
        "dice": like(r"^[1-9]\d?d(4|6|8|10|12|20|100)([+-][1-9]\d?)?$"),
        "locale": closed(
            language=like("^[a-z]{2,3}$"), region=maybe(like("^([A-Z]{2}|[0-9]{3})$")), calendar=of("gregory")
        ),
    }
