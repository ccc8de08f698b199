"""Sentences that people read on nodes, in English, each with a key and values from which the front end makes it in its own language.

A sentence is a `Text`, defined beside the code that uses it. tools/help.py writes all of them to locales/, with the translations in
tools/chinese.json. Logs, errors and JSON have the English sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class Text(str):
    """A sentence, or a part of one: a str with a key.

    Parameters
    ----------
    key: its name in locales/: letters, digits and _. Raises ValueError where another text has it.
    english: the sentence. {name} is replaced by a value.
    values: by name: str, int, Text, or a list of them, which is joined by commas. Numbers are rounded by the caller. None: a text
        that is still to be filled in, or that has no values.
    """

    known: ClassVar[dict[str, str]] = {}  # key -> English
    key: str
    english: str
    values: dict[str, Any]

    def __new__(cls, key: str, english: str, values: dict[str, Any] | None = None) -> Text:
        if cls.known.setdefault(key, english) != english:
            raise ValueError(f"the key {key} has another text: {cls.known[key]}")
        filled = english if values is None else english.format_map({k: _plain(v) for k, v in values.items()})
        return cls._made(filled, key, english, values or {})

    @classmethod
    def _made(cls, filled: str, key: str, english: str, values: dict[str, Any]) -> Text:
        text = super().__new__(cls, filled)
        text.key, text.english, text.values = key, english, values
        return text

    def of(self, **values: Any) -> Text:
        """The text with values. Of an exception its message is taken."""
        return Text(self.key, self.english, {k: said(v) if isinstance(v, Exception) else v for k, v in values.items()})

    def capital(self) -> Text:
        """With a capital letter at the beginning."""
        return self._made(self[:1].upper() + self[1:], self.key, self.english, self.values)

    def __reduce__(self) -> tuple[Any, ...]:
        return Text._made, (str(self), self.key, self.english, self.values)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: `{"text", "key", "values"}`; a value that is a Text is such a dict too."""
        return {"text": str(self), "key": self.key, "values": {k: _ready(v) for k, v in self.values.items()}}


def translatable(sentences: Iterable[str]) -> list[dict[str, Any]]:
    """`as_dict` of those that are a Text, each once."""
    return [text.as_dict() for text in dict.fromkeys(sentences) if isinstance(text, Text)]


def said(error: Exception) -> str:
    """An exception's message, as a Text where it was raised with one."""
    return error.args[0] if len(error.args) == 1 and isinstance(error.args[0], Text) else str(error)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _ready(value: Any) -> Any:
    if isinstance(value, Text):
        return value.as_dict()
    return [_ready(v) for v in value] if isinstance(value, list | tuple) else value
