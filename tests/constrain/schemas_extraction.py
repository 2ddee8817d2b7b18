"""Schemas of what is read out of texts: letters, reports, listings, notes."""

from __future__ import annotations

from constrain.schema_parts import (
    COUNT,
    FLAG,
    PRICE,
    TEXT,
    Json,
    closed,
    form,
    like,
    maybe,
    number,
    of,
    ref,
    some,
    tagged,
    text,
    whole,
)


def extraction() -> dict[str, Json]:
    return _people() | _papers() | _things() | _labels()


def _people() -> dict[str, Json]:
    return {
        "business card": closed(
            ["name", "company"], name=TEXT, company=TEXT, phone=like(r"^\+[1-9]\d{6,14}$"), email=form("email")
        ),
        "patient intake": closed(
            initials=like("^[A-Z]{2,3}$"),
            born=form("date"),
            blood=of("A+", "A-", "B+", "B-", "AB+", "AB-", "0+", "0-"),
            allergies=some(closed(substance=TEXT, severity=of("mild", "moderate", "severe"))),
        ),
        "prescription": closed(
            drug=TEXT,
            dose={"type": "number", "exclusiveMinimum": 0, "maximum": 2000},
            unit=of("mg", "ml", "IU"),
            per_day=whole(1, 6),
            until=maybe(form("date")),
        ),
        "vital signs": closed(
            systolic=whole(60, 250), diastolic=whole(30, 150), pulse=whole(20, 240), temperature=number(30, 43.5)
        ),
        "family": {
            "$defs": {"person": closed(["name"], name=TEXT, parents=some(ref("person")))},
            **closed(root=ref("person")),
        },
        "job advert": closed(
            ["title", "kind"],
            title=TEXT,
            kind=of("full-time", "part-time", "contract", "internship"),
            salary=closed(["low", "high", "currency"], low=COUNT, high=COUNT, currency=like("^[A-Z]{3}$")),
            remote={"type": ["boolean", "string"], "maxLength": 8},
        ),
        "biography": closed(
            name=TEXT, born=whole(1000, 2025), died=maybe(whole(1000, 2025)), known_for=some(TEXT, 3, 1)
        ),
        "league table": some(closed(team=TEXT, won=whole(0, 38), drawn=whole(0, 38), goals=whole(-99, 99)), 3, 1),
        "match report": closed(
            home=TEXT,
            away=TEXT,
            score={"type": "array", "prefixItems": [whole(0, 19), whole(0, 19)], "items": False, "minItems": 2},
            scorers=some(closed(player=TEXT, minute=whole(1, 120))),
        ),
        "meeting minutes": closed(
            ["held", "decisions"],
            held=form("date-time"),
            present=some(TEXT, 3, 1),
            decisions=some(closed(what=text(3, 20), owner=maybe(TEXT), due=maybe(form("date")))),
        ),
        "contact preference": {
            **closed(
                ["channel"], channel=of("email", "phone", "none"), email=form("email"), phone=like("^[0-9]{5,9}$")
            ),
            "allOf": [
                {
                    "if": {"properties": {"channel": {"const": "email"}}, "required": ["channel"]},
                    "then": {"required": ["email"]},
                },
                {
                    "if": {"properties": {"channel": {"const": "phone"}}, "required": ["channel"]},
                    "then": {"required": ["phone"]},
                },
            ],
        },
    }


def _papers() -> dict[str, Json]:
    amount = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 100000, "multipleOf": 0.01}
    return {
        "bank statement": closed(
            iban=like("^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$"),
            balance={"type": "number", "minimum": -100000, "maximum": 100000, "multipleOf": 0.01},
            entries=some(closed(booked=form("date"), text=TEXT, amount=amount, side=of("debit", "credit"))),
        ),
        "cheque": closed(payee=TEXT, amount=amount, memo=maybe(TEXT)),
        "tax form": closed(
            ["year", "status"],
            year=whole(2000, 2030),
            status=of("single", "married", "widowed"),
            dependents=whole(0, 12),
            income=some(tagged("source", wages=closed(employer=TEXT, gross=PRICE), interest=closed(gross=PRICE))),
        ),
        "contract clause": closed(
            kind=of("term", "payment", "liability", "termination"),
            number=like(r"^[1-9]\d?(\.[1-9]\d?){0,2}$"),
            quote=text(5, 30),
            risk=whole(1, 5),
        ),
        "lease": closed(
            ["rent", "from"],
            **{"rent": PRICE, "from": form("date"), "to": form("date"), "deposit months": whole(0, 3), "pets": FLAG},
        ),
        "court ruling": closed(
            docket=like(r"^\d{2}-[A-Z]{2}-\d{3,5}$"), judges=some(TEXT, 3, 1), outcome=of("affirmed", "reversed", None)
        ),
        "citation": closed(
            ["authors", "title", "year"],
            authors=some(closed(["family"], family=TEXT, given=TEXT), 2, 1),
            title=TEXT,
            year=whole(1900, 2030),
            doi=like(r"^10\.\d{4,9}/[-._;()/:A-Za-z0-9]{1,10}$"),
            pages=like("^[0-9]{1,4}-[0-9]{1,4}$"),
        ),
        "abstract": closed(
            background=text(1, 20), method=text(1, 20), finding=text(1, 20), n=maybe(whole(1, 100000)), p=number(0, 1)
        ),
        "table of contents": {
            "$defs": {"entry": closed(["title", "page"], title=TEXT, page=whole(1, 999), below=some(ref("entry")))},
            "type": "array",
            "items": ref("entry"),
            "maxItems": 2,
        },
        "delivery note": closed(
            order=like("^PO[0-9]{6}$"),
            parcels=some(closed(barcode=like("^[0-9]{8}([0-9]{5})?$"), kg=number(0.1, 70)), 2, 1),
            signed_by=maybe(TEXT),
        ),
        "customs form": closed(
            contents=of("gift", "documents", "sample", "goods", "other"),
            hs_code=like(r"^\d{4}\.\d{2}(\.\d{2})?$"),
            origin=like("^[A-Z]{2}$"),
            value=PRICE,
        ),
        "boarding pass": closed(
            flight=like("^[A-Z]{2}[0-9]{1,4}$"),
            seat=like("^([1-9]|[1-4][0-9])[A-K]$"),
            gate=maybe(like("^[A-Z]?[0-9]{1,2}$")),
            boards=form("time"),
        ),
        "itinerary": closed(
            legs=some(
                tagged(
                    "by",
                    train=closed(number=TEXT, leaves=form("date-time")),
                    plane=closed(flight=TEXT, leaves=form("date-time"), airport=like("^[A-Z]{3}$")),
                    foot=closed(minutes=whole(1, 90)),
                ),
                2,
                1,
            )
        ),
        "insurance claim": {
            **closed(
                ["policy", "kind", "amount"],
                policy=like("^[A-Z]-[0-9]{5}$"),
                kind=of("theft", "fire", "water"),
                amount=PRICE,
                police_report=like("^[0-9]{4}/[0-9]{2}$"),
            ),
            "if": {"properties": {"kind": {"const": "theft"}}},
            "then": {"required": ["police_report"]},
        },
    }


def _things() -> dict[str, Json]:
    return {
        "flat listing": closed(
            ["rooms", "area", "price"],
            rooms={"type": "number", "minimum": 1, "maximum": 12, "multipleOf": 0.5},
            area=whole(8, 900),
            price=whole(1, 9_999_999),
            floor={"oneOf": [whole(-2, 60), of("ground", "attic")]},
            features=some(of("balcony", "lift", "garden", "garage"), 3),
        ),
        "car listing": closed(
            make=TEXT,
            year=whole(1950, 2026),
            fuel=of("petrol", "diesel", "electric", "hybrid"),
            mileage={"type": "integer", "minimum": 0, "maximum": 999000, "multipleOf": 1000},
            vin=like("^[A-HJ-NPR-Z0-9]{17}$"),
        ),
        "wine": closed(
            name=TEXT, vintage=maybe(whole(1900, 2025)), colour=of("red", "white", "rosé"), alcohol=number(5, 22)
        ),
        "nutrition label": closed(
            per={"const": "100 g"},
            energy_kj=whole(0, 3800),
            **{name: number(0, 100) for name in ("fat", "saturates", "carbohydrate", "sugars", "protein", "salt")},
        ),
        "ingredient": {
            "oneOf": [
                closed(name=TEXT, grams=whole(1, 2000)),
                closed(name=TEXT, pieces=whole(1, 24)),
                closed(name=TEXT, to_taste={"const": True}),
            ]
        },
        "book": closed(
            ["title", "isbn"],
            title=TEXT,
            isbn=like("^97[89]-[0-9]-[0-9]{2}-[0-9]{6}-[0-9]$"),
            language=like("^[a-z]{2}(-[A-Z]{2})?$"),
            series=closed(name=TEXT, volume=whole(1, 60)),
        ),
        "film": closed(title=TEXT, minutes=whole(1, 600), certificate=of("U", "PG", 12, 15, 18), rating=number(0, 10)),
        "playlist": closed(name=TEXT, tracks=some(closed(artist=TEXT, length=like("^[0-9]{1,2}:[0-5][0-9]$")), 3)),
        "weather report": closed(
            place=TEXT,
            celsius=number(-60, 60),
            wind=closed(from_=of("N", "NE", "E", "SE", "S", "SW", "W", "NW"), kmh=whole(0, 400)),
            warnings=some(of("storm", "flood", "heat")),
        ),
        "chemical": closed(
            formula=like("^([A-Z][a-z]?[0-9]{0,2}){1,4}$"),
            cas=like(r"^\d{2,7}-\d{2}-\d$"),
            density=maybe(number(0, 23)),
        ),
        "star": closed(
            designation=like("^(HD|HIP) [0-9]{1,6}$"),
            magnitude=number(-1.5, 20),
            spectral=like("^[OBAFGKM][0-9]I{0,3}$"),
        ),
        "earthquake": closed(
            at=form("date-time"), depth_km=number(0, 700), magnitude=number(0, 9.9), tsunami=maybe(FLAG)
        ),
        "recall notice": closed(
            product=TEXT,
            lots=some(like("^L[0-9]{4}$"), 3, 1),
            hazard=of("fire", "choking", "allergen"),
            url=form("uri"),
        ),
        "chess game": closed(
            white=TEXT, black=TEXT, result=of("1-0", "0-1", "1/2-1/2", "*"), moves=some(like("^[NBRQK]?[a-h][1-8]$"), 4)
        ),
    }


def _labels() -> dict[str, Json]:
    span = closed(start=COUNT, end=COUNT, label=of("PER", "ORG", "LOC", "MISC"))
    return {
        "entities": some(span, 3),
        "entities by kind": closed([], people=some(TEXT), places=some(TEXT), dates=some(form("date"))),
        "relations": some(closed(subject=TEXT, predicate=of("works for", "owns", "located in"), object=TEXT), 2, 1),
        "multi-label": {
            "type": "object",
            "properties": dict.fromkeys(("toxic", "obscene", "threat", "insult", "spam"), FLAG),
            "required": ["toxic", "obscene", "threat", "insult", "spam"],
            "additionalProperties": False,
        },
        "ranking": {
            "type": "array",
            "items": of("a", "b", "c", "d"),
            "minItems": 4,
            "maxItems": 4,
            "uniqueItems": True,
        },
        "scores with reasons": closed(
            **{aspect: closed(reason=text(1, 15), score=whole(1, 5)) for aspect in ("fluency", "accuracy", "style")}
        ),
        "verdict": closed(
            claim=TEXT, verdict=of("true", "false", "unproven"), confidence={"type": "number", "enum": [0.25, 0.5, 1]}
        ),
        "ticket triage": closed(
            ["category", "priority"],
            category=of("billing", "bug", "question", "abuse"),
            priority=like("^P[0-4]$"),
            language=of("en", "de", "fr", "other"),
            summary=text(10, 30),
            needs_human=FLAG,
        ),
        "translation": closed(source=like("^[a-z]{2}$"), target=like("^[a-z]{2}$"), text=text(1, 30), notes=some(TEXT)),
        "quiz": some(
            {
                **closed(question=text(5, 20), options=some(TEXT, 4, 4), right=whole(0, 3)),
                "title": "Question",
                "examples": [{"question": "2 + 2?", "options": ["1", "2", "3", "4"], "right": 3}],
            },
            2,
            1,
        ),
        "flash card": closed(front=text(1, 12), back=text(1, 12), deck=like("^[a-z]+(::[a-z]+){0,2}$")),
        "chain of steps": closed(
            steps=some(closed(thought=text(1, 20), result=maybe(number(-1000, 1000))), 3, 1),
            answer={"type": ["number", "string", "boolean"], "maxLength": 10, "minimum": -99, "maximum": 99},
        ),
    }
