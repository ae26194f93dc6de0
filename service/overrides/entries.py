"""Entries of overrides and their validation, the same for the API and the file."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)

from model_store.text import MAX_QUERY_CHARS, normalise
from service.errors import FieldError, InvalidRequest
from service.filtering.words import words

MAX_PINNED = 32
"""Most rewrites of one pin, the same as of one request."""
_MAX_RAW_CHARS = 4096
_MAX_AUTHOR_CHARS = 64
_MAX_REASON_CHARS = 500
_MAX_ERRORS = 20

Source = Literal["api", "file"]


def fold(text: str) -> str:
    """The form of a normalised text that ignores case."""
    return text.lower() if text.isascii() else normalise(text, fold_case=True)


def _tidy(text: str) -> str:
    if text.isascii() and text.isprintable():
        return " ".join(text.split())  # the same normal form, quickly
    return normalise(text, fold_case=False)


def _text(raw: str) -> str:
    text = _tidy(raw)
    if not text:
        raise ValueError("holds no printable text")
    return _bounded(text, MAX_QUERY_CHARS)


def _bounded(text: str, most: int) -> str:
    # Normalising can lengthen a text, and stored texts are checked again when they are read.
    if len(text) > most:
        raise ValueError(f"is {len(text)} characters long, and at most {most} are taken")
    return text


def _term(raw: str) -> str:
    text = _text(raw)
    if not words(text):
        raise ValueError("holds no letter or digit, so no rewrite could hold it as a word")
    return text


def _line(raw: str, *, most: int) -> str:
    text = _tidy(raw)
    if not text:
        raise ValueError("is empty; say it in a few words")
    return _bounded(text, most)


def _instant(value: object) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    # A plain date, in YAML also an unquoted one, has no time zone either.
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("must be a time with its zone, as in 2030-01-31T18:00:00+01:00")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is too far away") from None


def written(time: datetime) -> str:
    """A time as it is stored and shown."""
    return time.isoformat().replace("+00:00", "Z")


Text = Annotated[str, StringConstraints(max_length=_MAX_RAW_CHARS), AfterValidator(_text)]
Term = Annotated[str, StringConstraints(max_length=_MAX_RAW_CHARS), AfterValidator(_term)]
ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Id = Annotated[str, StringConstraints(pattern=f"^{ID}$")]
Author = Annotated[
    str,
    StringConstraints(max_length=_MAX_AUTHOR_CHARS),
    AfterValidator(partial(_line, most=_MAX_AUTHOR_CHARS)),
]
Reason = Annotated[
    str,
    StringConstraints(max_length=_MAX_REASON_CHARS),
    AfterValidator(partial(_line, most=_MAX_REASON_CHARS)),
]
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    PlainSerializer(written),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class _Entry(BaseModel):
    # Strict, so that a YAML "no" or 2024 that was meant as text is refused.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    subject_field: ClassVar[str] = "query"

    kind: str
    id: Annotated[Id | None, Field(description="Made up if left out.")] = None
    author: Annotated[Author | None, Field(description="Who says so; default: the caller.")] = None
    reason: Annotated[Reason, Field(description="Why, for those who find it later.")]
    created_at: Annotated[Instant | None, Field(description="Default: now.")] = None
    expires_at: Annotated[
        Instant | None, Field(description="When it ends, with its time zone; default: never.")
    ] = None

    @cached_property
    def subject(self) -> str:
        """What it is about; only one entry about it can be in force."""
        return fold(getattr(self, self.subject_field))

    @cached_property
    def expires(self) -> float:
        """When it ends, in seconds since the epoch; infinity if it does not."""
        return float("inf") if self.expires_at is None else self.expires_at.timestamp()

    def stored(self) -> dict[str, Any]:
        """As JSON, without what is not set."""
        return self.model_dump(exclude_none=True)


class BlockQuery(_Entry):
    """The query is answered without rewrites."""

    kind: Literal["block_query"]
    query: Annotated[Text, Field(description="The whole query; case does not matter.")]


class BlockTerm(_Entry):
    """No rewrite may hold these words in sequence."""

    subject_field: ClassVar[str] = "term"

    kind: Literal["block_term"]
    term: Annotated[
        Term,
        Field(description="One or more whole words; case, punctuation and plurals do not matter."),
    ]

    @cached_property
    def subject(self) -> str:
        """Its folded words, with a space between them."""
        return " ".join(words(self.term))


class Pin(_Entry):
    """The query is answered with these rewrites, each with a relevance of 1: a person chose them.

    ``min_relevance`` does not apply to them; ``max_rewrites`` and blocked terms do.
    """

    kind: Literal["pin"]
    query: Annotated[Text, Field(description="The whole query; case does not matter.")]
    rewrites: Annotated[
        list[Text],
        Field(
            min_length=1,
            max_length=MAX_PINNED,
            description="In the order in which they are wanted, answered as they are written here.",
        ),
    ]


Entry: TypeAlias = BlockQuery | BlockTerm | Pin
Kind = Literal["block_query", "block_term", "pin"]
MODELS: Mapping[str, type[BlockQuery] | type[BlockTerm] | type[Pin]] = {
    "block_query": BlockQuery,
    "block_term": BlockTerm,
    "pin": Pin,
}


def read_entry(content: object) -> Entry:
    """One entry out of JSON or YAML.

    Raises:
        InvalidRequest: it is invalid; each wrong field is named.
    """
    if not isinstance(content, Mapping):
        raise InvalidRequest([FieldError("", "must be an object with the fields of an override")])
    kind = content.get("kind")
    model = MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InvalidRequest([FieldError("kind", f"must be one of {', '.join(MODELS)}")])
    try:
        entry = model.model_validate(dict(content))
    except ValidationError as error:
        raise InvalidRequest([_field_error(one) for one in error.errors()]) from None
    if isinstance(entry, Pin):
        _check_pin(entry)
    return entry


def read_entries(content: object, *, most: int) -> list[Entry]:
    """A list of entries.

    Args:
        content: the list.
        most: entries that it may have.

    Raises:
        InvalidRequest: as :func:`read_entry`, with the place in front of each field
            (``overrides.3.reason``).
    """
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise InvalidRequest([FieldError("overrides", "must be a list of overrides")])
    if len(content) > most:
        raise InvalidRequest(
            [FieldError("overrides", f"has {len(content)} entries, and at most {most} are taken")]
        )
    entries: list[Entry] = []
    errors: list[FieldError] = []
    for i, one in enumerate(content):
        try:
            entries.append(read_entry(one))
        except InvalidRequest as error:
            errors += [FieldError(_place(i, e.field), e.detail) for e in error.errors]
            if len(errors) >= _MAX_ERRORS:
                break
    if errors:
        raise InvalidRequest(errors[:_MAX_ERRORS])
    return entries


def new_id() -> str:
    """A new random id."""
    return secrets.token_hex(8)


def _place(index: int, field: str) -> str:
    return f"overrides.{index}.{field}" if field else f"overrides.{index}"


def _field_error(one: Any) -> FieldError:
    advice = {
        "extra_forbidden": "is not a field of this kind of override; remove it or check its "
        "spelling",
        "missing": "is required",
        "string_type": "must be text (in YAML, put it in quotes)",
    }
    message = str(one["msg"]).removeprefix("Value error, ")
    field = ".".join(str(part) for part in one["loc"])
    return FieldError(field[:80], advice.get(one["type"], message))


def _check_pin(pin: Pin) -> None:
    """Refuse a pin whose rewrites repeat each other or the query."""
    seen = {fold(pin.query): "the query"}
    for i, rewrite in enumerate(pin.rewrites):
        same = seen.setdefault(fold(rewrite), f"rewrites.{i}")
        if same != f"rewrites.{i}":
            raise InvalidRequest(
                [FieldError(f"rewrites.{i}", f"is the same as {same}; leave it out")]
            )
