"""JSON requests as TF Serving reads them: NaN is a number, text after the document is ignored.

What is wrong is told in the words of its parser (RapidJSON), with the offset in bytes.
"""

import json
import math
import re
from typing import Any, NamedTuple, NoReturn

import orjson

from fct_tf.serving import json_arrays
from fct_tf.serving.errors import ServingError, invalid

# A value in an error message is cut here: the request may be megabytes.
_LONGEST_VALUE = 1024

_WORDS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid escape character in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.S)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.S)
_WHITESPACE = " \t\r\n"


class Document(NamedTuple):
    """A JSON object. `has_booleans`: false where no `true` or `false` can be in it."""

    members: dict[str, Any]
    has_booleans: bool


def parse(body: bytes) -> Document:
    """The object that a request's body spells.

    Raises:
      ServingError: INVALID_ARGUMENT, no JSON or no object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = _parse_leniently(body)
    if not isinstance(value, dict):
        raise format_error(value, "Is not object")
    return Document(value, b"true" in body or b"false" in body)


def format_error(value: Any, text: str) -> ServingError:
    return invalid(f"JSON Value: {spelled(value)} {text}")


def type_name(value: Any) -> str:
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def spelled(value: Any) -> str:
    """A value for an error message, indented as the original does it; a long one is cut."""
    if isinstance(value, float):
        return json_arrays.decimal(value, single=abs(value) <= 3.4028234e38)
    text = ""
    try:
        for part in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
            text += part
            if len(text) > _LONGEST_VALUE:
                return text[:_LONGEST_VALUE] + "..."
    except RecursionError:
        return text[:_LONGEST_VALUE] + "..."
    return text


def _parse_leniently(body: bytes) -> Any:
    # Bytes that are no UTF-8 are kept as they are, as the original keeps them.
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    start = len(text) - len(text.lstrip(_WHITESPACE))
    if start == len(text):
        _fail("The document is empty.", text, start)

    def number(token: str) -> float:
        value = float(token)
        if math.isinf(value):
            _fail("Number too big to be stored in double.", text, max(0, text.find(token)))
        return value

    def integer(token: str) -> int | float:
        if len(token) > 20 or not -(2**63) <= int(token) < 2**64:
            return number(token)
        return int(token)

    decoder = json.JSONDecoder(parse_int=integer, parse_float=number)
    try:
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        _fail(*_told(error.msg, text, error.pos))
    except RecursionError:
        raise invalid("JSON Parse error: The document is nested too deeply.") from None
    _check_surrogates(text, end)
    return value


def readable(text: str) -> str:
    """A string of a document, with marks in the place of bytes that are no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _check_surrogates(text: str, end: int) -> None:
    """Halves of pairs, spelled as escapes, have no UTF-8; the `json` module lets them pass."""
    high_end = -1  # Where a first half ended.
    for match in _ESCAPE.finditer(text, 0, end):
        code = int(match[1] or "0", 16)
        low = 0xDC00 <= code < 0xE000
        if high_end >= 0 and not (low and match.start() == high_end) or (low and high_end < 0):
            at = high_end - 6 if high_end >= 0 else match.start()
            _fail("The surrogate pair in string is invalid.", text, at)
        high_end = match.end() if 0xD800 <= code < 0xDC00 else -1
    if high_end >= 0:
        _fail("The surrogate pair in string is invalid.", text, high_end - 6)


def _fail(words: str, text: str, position: int) -> NoReturn:
    offset = len(text[:position].encode("utf-8", "surrogateescape"))
    raise invalid(f"JSON Parse error: {words} at offset: {offset}")


def _told(message: str, text: str, position: int) -> tuple[str, str, int]:
    """Words, text and place of RapidJSON for an error of the `json` module."""
    after_digit = text[position - 1 : position].isdigit()
    here = text[position : position + 1]
    if message == "Expecting ',' delimiter":
        if after_digit and here == ".":
            return "Miss fraction part in number.", text, position + 1
        if after_digit and here in ("e", "E"):
            signed = text[position + 1 : position + 2] in ("+", "-")
            return "Miss exponent in number.", text, position + 1 + signed
        if _innermost(text[:position]) == "{":
            return "Missing a comma or } after an object member.", text, position
        return "Missing a comma or ] after an array element.", text, position
    if message == "Unterminated string starting at":
        return _WORDS[message], text, len(text)
    if message == "Invalid \\uXXXX escape":  # At the u; the original tells of the backslash.
        return _WORDS[message], text, position - 1
    if message == "Invalid control character at" and here == "\0":
        return _WORDS["Unterminated string starting at"], text, position
    if message == "Expecting value":
        # The original has read the part of a literal that is right.
        for literal in _LITERALS:
            right = 0
            while text[position + right : position + right + 1] == literal[right : right + 1]:
                right += 1
            if right > 0:
                return "Invalid value.", text, position + right
    return _WORDS.get(message, "Unspecific syntax error."), text, position


def _innermost(text: str) -> str:
    """The bracket that is open at the end of a text."""
    open_brackets = []
    for match in _TOKENS.finditer(text):
        if match[0] in "[{":
            open_brackets.append(match[0])
        elif match[0] in "]}":
            open_brackets.pop()
    return open_brackets[-1] if open_brackets else ""
