"""Reading JSON that is still being written: the arguments of a tool call, delta by delta.

A model streams its arguments as text. A client wants to show them while they come, so the text
so far is completed (open strings, arrays and objects are closed, a key without its value is left
out) and parsed. The result is for display: it is replaced by the checked input at the end.
Spec: chat-agent §4.2.4, R-150; the completions are those of the AI SDK's reducer.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

#: Characters of a string that neither end it nor begin an escape.
_PLAIN: Final = re.compile(r'[^"\\]+')
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER_CHARS: Final = re.compile(r"[-+.eE0-9]*")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_LITERALS: Final = {"t": "true", "f": "false", "n": "null"}

_decode = msgspec.json.decode


class Unreadable(Exception):
    """The text is not the beginning of any JSON value."""


def parse_partial(text: str) -> tuple[Any, bool]:
    """`(value, True)` for what can be read of `text`; `(None, False)` when nothing can."""
    try:
        return _decode(text), True
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        pass
    try:
        return _decode(complete(text)), True
    except (Unreadable, msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None, False


def complete(text: str) -> str:
    """The longest readable beginning of `text`, closed so that it parses.

    Raises Unreadable when `text` cannot be the beginning of a JSON value or holds none yet.
    """
    return _Completer(text).run()


class _Completer:
    """One pass over the text. `keep` is where the readable beginning ends so far.

    `closers` are the brackets open at `keep`, not at the place being read: when the text breaks
    off inside a key, the object around it is closed after its last whole member.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._keep = 0
        self._tail = ""  # what must follow `keep` to close a string or finish a word
        self._open: list[str] = []

    def run(self) -> str:
        try:
            self._value()
            while self._open:
                self._next_member()
        except _EndOfText:
            pass
        if self._keep == 0:
            raise Unreadable
        return self._text[: self._keep] + self._tail + "".join(reversed(self._open))

    def _next_member(self) -> None:
        closer = self._open[-1]
        char = self._skip_space()
        if char == closer:
            self._at += 1
            self._open.pop()
            self._keep, self._tail = self._at, ""
            return
        if char == ",":
            self._at += 1
            self._skip_space()
        if closer == "}":
            self._key()
        self._value()

    def _key(self) -> None:
        if self._skip_space() != '"':
            raise Unreadable
        self._string(is_key=True)
        if self._skip_space() != ":":
            raise Unreadable
        self._at += 1

    def _value(self) -> None:
        char = self._skip_space()
        if char in "{[":
            self._at += 1
            self._open.append("}" if char == "{" else "]")
            self._keep, self._tail = self._at, ""
        elif char == '"':
            self._string(is_key=False)
        elif char in _LITERALS:
            self._literal(_LITERALS[char])
        else:
            self._number()

    def _string(self, *, is_key: bool) -> None:
        """Read a string. A key is worth nothing until its value begins, so it is not kept."""
        self._at += 1
        self._keep_string(is_key)
        while True:
            plain = _PLAIN.match(self._text, self._at)
            if plain is not None:
                self._at = plain.end()
                self._keep_string(is_key)
            if self._at >= len(self._text):
                raise _EndOfText
            if self._text[self._at] == '"':
                self._at += 1
                if not is_key:
                    self._keep, self._tail = self._at, ""
                return
            self._escape()
            self._keep_string(is_key)

    def _keep_string(self, is_key: bool) -> None:
        if not is_key:
            self._keep, self._tail = self._at, '"'

    def _escape(self) -> None:
        """Step over one escape. Half a surrogate pair waits for its other half."""
        end = self._at + (6 if self._text[self._at + 1 : self._at + 2] == "u" else 2)
        if end > len(self._text):
            raise _EndOfText
        if end - self._at == 6 and self._text[self._at + 2 : self._at + 4].lower() in _HIGH:
            end += 6
            if end > len(self._text):
                raise _EndOfText
        self._at = end

    def _literal(self, word: str) -> None:
        rest = self._text[self._at : self._at + len(word)]
        if not word.startswith(rest):
            raise Unreadable
        self._at += len(rest)
        self._keep, self._tail = self._at, word[len(rest) :]
        if self._tail:
            raise _EndOfText

    def _number(self) -> None:
        found = _NUMBER_CHARS.match(self._text, self._at)
        whole = _NUMBER.match(self._text, self._at)
        if found is None or found.end() == self._at:
            raise Unreadable
        if whole is not None:
            self._keep, self._tail = whole.end(), ""
        self._at = found.end()
        if self._at >= len(self._text):
            raise _EndOfText
        if whole is None or whole.end() != self._at:
            raise Unreadable

    def _skip_space(self) -> str:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space is not None else self._at
        if self._at >= len(self._text):
            raise _EndOfText
        return self._text[self._at]


_HIGH: Final = frozenset({"d8", "d9", "da", "db"})


class _EndOfText(Exception):
    """The text broke off; what was kept so far is the answer."""
