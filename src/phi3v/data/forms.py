"""Reads a raw record, in whatever form it is written, as roles, texts and media.

The form is told by the keys of the record:

- ``conversations``: LLaVA's turns with ``from`` and ``value``, or ``role`` and ``content``; or
  pairs of ``user`` and ``assistant`` with their ``images``, as in Microsoft's recipe;
- ``messages``: turns with ``role`` and ``content``, a text or a list of parts;
- ``texts``: pairs of ``user`` and ``assistant``;
- ``question`` and ``answer`` (or ``answers``, of which the first is taken).

Where pairs or a question name no place for their media, these stand in front.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from phi3v.data.faults import Fault
from phi3v.data.references import kind_of, read_media
from phi3v.data.turns import MEDIA_TAG, Media, MediaKind

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_PART_KINDS: dict[str, MediaKind] = {
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}
_FORMS = ("conversations", "messages", "texts", "question")

Spoken = list[tuple[str, str]]


def read_form(raw: Any) -> tuple[Spoken, list[Media]]:
    """Read a raw record.

    Args:
        raw: An object in one of the forms above, with ``image`` / ``images`` / ``video`` /
            ``videos`` for the media that are not named where they stand.

    Returns:
        Role ("system", "user" or "assistant") and text of every turn, the texts with their media
        tags; and all media, pictures and videos each in the order of their tags.

    Raises:
        ValueError: If it has no form of these, a key is missing, or a value is of the wrong type.
    """
    if not isinstance(raw, Mapping):
        raise Fault(
            f"is {kind_of(raw)}; expected an object with 'conversations' or 'messages'",
            "wrong type",
        )
    found = [key for key in _FORMS if raw.get(key) is not None]
    if found[:2] == ["conversations", "messages"]:
        raise Fault("has both of 'conversations' and 'messages'; write exactly one", "wrong type")
    if not found:
        keys = ", ".join(map(repr, raw)) or "none"
        raise Fault(
            "has neither of 'conversations' and 'messages', nor 'texts' or 'question'; write one "
            f"(its keys: {keys})",
            "missing key",
        )
    listed = [*_listed(raw, "image"), *_listed(raw, "video")]
    inner: list[Media] = []
    if found[0] == "question":
        spoken = _read_question(raw)
    else:
        spoken, inner = _read_turns(found[0], raw[found[0]], listed)
    if listed and inner:
        raise Fault(
            "has media in its turns and in 'image' or 'video' too; write them in one place",
            "tags and media differ",
        )
    if found[0] in ("texts", "question") and not any(MEDIA_TAG.search(text) for _, text in spoken):
        spoken[0] = ("user", _with_tags(spoken[0][1], listed))
    return spoken, listed or inner


def _read_turns(key: str, entries: Any, listed: Sequence[Media]) -> tuple[Spoken, list[Media]]:
    if isinstance(entries, Mapping) and entries and key != "messages":
        entries = _transposed(entries)
    if not isinstance(entries, list):
        raise Fault(f"'{key}' is {kind_of(entries)}; expected a list of turns", "wrong type")
    if not entries:
        raise Fault(f"'{key}' is empty; write at least one question and its answer", "missing key")
    spoken: Spoken = []
    inner: list[Media] = []
    objects = [entry for entry in entries if isinstance(entry, Mapping)]
    if key == "texts" or any("user" in entry or "assistant" in entry for entry in objects):
        for number, entry in enumerate(entries, start=1):
            spoken += _read_pair(entry, number, inner)
        return spoken, inner
    names = ("role", "content")
    if key == "conversations" and not any("role" in entry for entry in objects):
        names = ("from", "value")
    for number, entry in enumerate(entries, start=1):
        spoken.append(_read_turn(entry, number, names, inner, can_be_listed=bool(listed)))
    return spoken, inner


def _transposed(columns: Mapping[str, Any]) -> Any:
    """Turn lists of roles and of texts, as older data sets store them, into turns."""
    lists = list(columns.values())
    if not all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _read_question(raw: Mapping[str, Any]) -> Spoken:
    answer = raw.get("answer")
    if answer is None and isinstance(raw.get("answers"), list) and raw["answers"]:
        answer = raw["answers"][0]
    spoken = []
    for role, name, text in (
        ("user", "question", raw["question"]),
        ("assistant", "answer", answer),
    ):
        if not isinstance(text, str):
            raise Fault(f"'{name}' is {kind_of(text)}; expected text", "wrong type")
        spoken.append((role, _checked(text, role, f"'{name}'")))
    return spoken


def _read_pair(entry: Any, number: int, inner: list[Media]) -> Spoken:
    """Read a question and its answer; their media are added to `inner`."""
    if not isinstance(entry, Mapping) or not {"user", "assistant"} <= entry.keys():
        raise Fault(
            f"pair {number} is {kind_of(entry)}; expected an object with 'user' and 'assistant'",
            "missing key",
        )
    spoken = []
    for role in ("user", "assistant"):
        if not isinstance(entry[role], str):
            raise Fault(
                f"pair {number}: '{role}' is {kind_of(entry[role])}; expected text", "wrong type"
            )
        spoken.append((role, _checked(entry[role], role, f"pair {number}")))
    media = [*_listed(entry, "image"), *_listed(entry, "video")]
    if not MEDIA_TAG.search(spoken[0][1]):
        spoken[0] = ("user", _with_tags(spoken[0][1], media))
    inner += media
    return spoken


def _with_tags(text: str, media: Sequence[Media]) -> str:
    return "".join(f"<{one.kind}>\n" for one in media) + text


def _read_turn(
    entry: Any, number: int, names: tuple[str, str], inner: list[Media], *, can_be_listed: bool
) -> tuple[str, str]:
    """Read role and text of one turn; media of content parts are added to `inner`."""
    role_key, text_key = names
    if not isinstance(entry, Mapping) or not all(key in entry for key in names):
        raise Fault(
            f"turn {number} is {kind_of(entry)}; expected an object with '{role_key}' and "
            f"'{text_key}'",
            "missing key",
        )
    role, text = entry[role_key], entry[text_key]
    if not isinstance(role, str) or role not in ROLES:
        raise Fault(
            f"turn {number}: unknown role {role!r}; expected one of {', '.join(ROLES)}",
            "unknown role",
        )
    if isinstance(text, list) and text_key == "content":
        text = "".join(_read_part(part, number, inner, can_be_listed) for part in text)
    if not isinstance(text, str):
        raise Fault(f"turn {number}: '{text_key}' is {kind_of(text)}; expected text", "wrong type")
    return ROLES[role], _checked(text, ROLES[role], f"turn {number}")


def _checked(text: str, role: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Fault(
            f"{name} holds half of a surrogate pair (\\ud800 to \\udfff); write the whole "
            "character",
            "bad text",
        ) from None
    if role == "assistant" and not text.strip():
        raise Fault(
            f"{name}: the answer is empty; write it, or remove it with its question", "empty answer"
        )
    return text


def _read_part(part: Any, number: int, inner: list[Media], can_be_listed: bool) -> str:
    """Write one content part as text with a tag, as the chat template of the processor does."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if isinstance(kind, str) and kind in _PART_KINDS:
        value = next((part[key] for key in (kind, "url", "path") if part.get(key)), None)
        if kind.endswith("_url") and isinstance(value, Mapping):
            value = value.get("url")
        tag = f"<{_PART_KINDS[kind]}>\n"
        if value is None and can_be_listed:
            return tag
        if value:
            try:
                inner.append(read_media(value, _PART_KINDS[kind]))
            except ValueError as error:
                raise Fault(f"turn {number}: a content part {error}", "wrong type") from None
            return tag
    found = f"of type {kind!r}" if kind is not None else kind_of(part)
    raise Fault(
        f"turn {number}: a content part is {found}; expected type 'text', 'image', 'image_url' or "
        "'video' with a text or a file path under the key of that name",
        "wrong type",
    )


def _listed(raw: Mapping[str, Any], kind: MediaKind) -> list[Media]:
    """Read the media that stand under the name of their kind, or its plural."""
    keys = [key for key in (kind, f"{kind}s") if raw.get(key) not in (None, [])]
    if len(keys) > 1:
        raise Fault(f"has both of '{kind}' and '{kind}s'; write exactly one", "wrong type")
    if not keys:
        return []
    value = raw[keys[0]]
    media = []
    for one in value if isinstance(value, list) else [value]:
        try:
            media.append(read_media(one, kind))
        except ValueError as error:
            raise Fault(f"'{keys[0]}' {error}", "wrong type") from None
    return media
