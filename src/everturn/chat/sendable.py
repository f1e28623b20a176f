"""What every provider takes: the names, ids, files and values of a request (P-8).

A request that a provider refuses is refused again with every further message, because the history
it came from stays. So whatever no provider would take is changed on its way to the model, and only
there: the stored message keeps what it says. Nothing is invented; what cannot be said at all is
left out, and the parts beside it are kept.

* A tool's name and the id of a call are letters, digits, dashes and underscores. Ids are unique in
  the whole history: small models count their calls from zero in each answer.
* Text is not blank, unless the provider stored something of its own with it.
* A file is where a provider can fetch it, or its bytes are really there.
* A value is not nested deeper than the libraries beneath will write; beyond that it goes as text.
* Half of a character (a text that was cut between two UTF-16 units) is replaced, as browsers do.

The providers' rules are those of their chat interfaces in 2026.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from everturn.chat.parts import FINAL_STATES, Message, Part, is_tool_part, parts_of, tool_parts
from everturn.protocol import lenient

#: Deeper than any real tool result; the library beneath stops at about 250 levels.
NESTING_MAX: Final = 100
NAME_CHARS_MAX: Final = 64
#: The shortest bound of all: some count forty characters of an id.
CALL_ID_CHARS_MAX: Final = 40
_WORD: Final = re.compile(r"[a-zA-Z0-9_-]+")
_NO_WORD: Final = re.compile(r"[^a-zA-Z0-9_-]")
#: Where the model library keeps what a provider stored, and what its members are.
_LIBRARY: Final = "pydantic_ai"
_KINDS: Final[dict[str, type]] = {
    "id": str,
    "signature": str,
    "provider_name": str,
    "provider_details": dict,
}
#: What the library calls arguments that are no object, on their way to a provider.
_NO_OBJECT: Final = "INVALID_JSON"
#: Where a provider can fetch a file from. Others (`blob:`, `file:`) mean something to one machine.
_FETCHED: Final = ("https://", "http://", "gs://", "s3://")


def tool_name(name: str) -> str:
    """The name of a tool as every provider takes it; `unknown` for one without a name."""
    return _NO_WORD.sub("_", name)[:NAME_CHARS_MAX] or "unknown"


def text(value: str) -> str:
    """Text that can be written as UTF-8."""
    return lenient.whole(value)


def metadata(value: Any) -> dict[str, Any] | None:
    """What a provider stored with a part: an object of objects; None for anything else."""
    if not isinstance(value, dict) or not value:
        return None
    if not all(isinstance(item, dict) for item in value.values()):
        return None
    ours = value.get(_LIBRARY)
    if ours is None:
        return value
    kept = {key: item for key, item in ours.items() if isinstance(item, _KINDS.get(key, object))}
    return value if len(kept) == len(ours) else {**value, _LIBRARY: kept}


def speaks_without_words(part: Mapping[str, Any]) -> bool:
    """Whether a part without text still tells its provider something: by what it stored with it.

    Reasoning may be sealed (a signature, or an id it is known by), text may have details.
    """
    ours = part.get("providerMetadata", {}).get(_LIBRARY)
    if not isinstance(ours, dict):
        return False
    if part["type"] == "reasoning":
        sealed = ours.get("signature") if part.get("state") != "streaming" else None
        return bool(sealed or ours.get("id"))
    return bool(ours.get("provider_details"))


# --- calls ----------------------------------------------------------------------------------------


def distinct_calls(messages: Sequence[Message]) -> list[Message]:
    """The history with an id of its own for every call. Messages without such a call are shared.

    The first call of an id keeps it, so that a history that grows stays the same at its front. A
    call that is still to be carried out keeps its id too, since the decision about it names it.
    """
    given = [part.get("toolCallId") for message in messages for part in tool_parts(message)]
    if len(set(map(str, given))) == len(given) and all(map(_is_call_id, given)):
        return list(messages)
    open_ = {
        str(part.get("toolCallId"))
        for message in messages
        for part in tool_parts(message)
        if part.get("state") not in FINAL_STATES
    }
    names = _Names({str(call_id) for call_id in given}, taken=open_)
    return [_renamed(message, names) for message in messages]


class _Names:
    """Gives out ids that nothing in the history has."""

    def __init__(self, known: set[str], *, taken: set[str]) -> None:
        self._known = known
        self._taken = taken

    def of(self, call_id: Any) -> str:
        if _is_call_id(call_id) and call_id not in self._taken:
            self._taken.add(call_id)
            return str(call_id)
        base = _NO_WORD.sub("_", str(call_id))[: CALL_ID_CHARS_MAX - 8] or "call"
        number = 2
        while (made := f"{base}-{number}") in self._known or made in self._taken:
            number += 1
        self._taken.add(made)
        return made


def _is_call_id(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= CALL_ID_CHARS_MAX * 2
        and _WORD.fullmatch(value) is not None
    )


def _renamed(message: Message, names: _Names) -> Message:
    parts: list[Part] = []
    for part in parts_of(message):
        if is_tool_part(part) and part.get("state") in FINAL_STATES:
            call_id = names.of(part.get("toolCallId"))
            part = part if call_id == part.get("toolCallId") else {**part, "toolCallId": call_id}
        parts.append(part)
    return {**message, "parts": parts}


# --- files ----------------------------------------------------------------------------------------


def file(part: Mapping[str, Any]) -> Part | None:
    """The file of a part as a provider can read it; None when it cannot be."""
    url, media = part.get("url"), part.get("mediaType")
    if not isinstance(url, str):
        return None
    if url.startswith("data:"):
        return _inline(part, url)
    if not url.startswith(_FETCHED):
        return None
    if not isinstance(media, str) or "/" not in media:
        media = mimetypes.guess_type(url)[0]
    return None if media is None else {**part, "mediaType": media}


def _inline(part: Mapping[str, Any], url: str) -> Part | None:
    header, _, body = url.removeprefix("data:").partition(",")
    media, _, encoding = header.partition(";")
    try:
        if encoding.endswith("base64"):
            data = base64.b64decode(unquote_to_bytes(body), validate=True)
        else:
            data = unquote_to_bytes(body)
    except binascii.Error:
        return None
    if not data:
        return None
    if "/" not in media:
        given = part.get("mediaType")
        media = given if isinstance(given, str) and "/" in given else "text/plain"
    return {
        **part,
        "mediaType": media,
        "url": f"data:{media};base64,{base64.b64encode(data).decode()}",
    }


# --- values ---------------------------------------------------------------------------------------


def value(given: Any) -> Any:
    """A tool's result as it can be written; as JSON text when it is nested too deep."""
    if isinstance(given, str):
        return text(given)
    if _is_deep(given):
        return msgspec.json.encode(given).decode()
    try:
        msgspec.json.encode(given)
    except UnicodeEncodeError:
        return lenient.decode(lenient.encode(given))
    return given


def arguments(given: Any) -> Any:
    """Arguments of a call: an object, or text; anything else a model said is kept as JSON text."""
    if given is None:
        return None
    said = value(given)
    if not isinstance(said, str | dict):
        return msgspec.json.encode(said).decode()
    # The library reads text again, and would find the same depth in it.
    return {_NO_OBJECT: said} if isinstance(said, str) and _reads_deep(said) else said


def _reads_deep(said: str) -> bool:
    try:
        return _is_deep(msgspec.json.decode(said))
    except msgspec.DecodeError:
        return False
    except RecursionError:
        return True


def _is_deep(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(NESTING_MAX):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(v for v in item.values() if isinstance(v, dict | list))
            elif isinstance(item, list):
                inner.extend(v for v in item if isinstance(v, dict | list))
        if not inner:
            return False
        level = inner
    return True
