"""Reading what people wrote about their pictures: lines, JSON, texts, and paths inside a folder.

Everything here takes input from outside: memory is bounded whatever a file holds, a path never
leaves the data set's folder, and what is wrong is said in one line (InputError).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from rb_jax.errors import InputError

MAX_LINE_BYTES = 2**20
MAX_INSTRUCTION = 2000  # characters
MAX_CAPTION = 10_000
_CHUNK = 2**16


class Offenders:
    """Collects what is wrong with many items, so that all are named at once, not the first."""

    SHOWN = 10

    def __init__(self):
        self._count, self._shown = 0, []

    def add(self, problem: str) -> None:
        self._count += 1
        if len(self._shown) < self.SHOWN:
            self._shown.append(problem)

    def check(self, advice: str = "") -> None:
        """InputError, in one line, if there were any."""
        if not self._count:
            return
        more = self._count - len(self._shown)
        rest = f"; and {more} more" if more else ""
        raise InputError("; ".join(self._shown) + rest + (f": {advice}" if advice else ""))


class Line(NamedTuple):
    """A line of a file that is not blank; ``text`` is None if it is too long to be one."""

    number: int  # from 1
    text: bytes | None
    end: int  # the offset of the next line


def lines(path: Path, number: int = 0, offset: int = 0) -> Iterator[Line]:
    """The lines that are not blank, after line ``number``, which ends at ``offset``.

    At most MAX_LINE_BYTES of a line are in memory; a longer one is passed over. OSError as open.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            long = len(line) > MAX_LINE_BYTES
            if long:
                while not line.endswith(b"\n") and (line := file.readline(_CHUNK)):
                    pass
            elif number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if long or line.strip():
                yield Line(number, None if long else line, file.tell())


def json_object(line: bytes | None) -> dict[str, Any]:
    """The JSON object of a line; InputError says what else it is."""
    if line is None:
        raise InputError(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text") from None
    except RecursionError:
        raise InputError("not JSON (nested too deeply)") from None
    except ValueError as error:
        raise InputError(f"not JSON ({error})") from None
    return as_object(fields)


def as_object(value: Any) -> dict[str, Any]:
    """``value`` if it is a JSON object."""
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, got {type(value).__name__}")
    return value


def json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of a JSON file that is one object, ("0", value) .. of one that is an array.

    The file is read as a stream, a value of at most MAX_LINE_BYTES at a time. InputError naming
    the file and the item where it stops being JSON; OSError as open.
    """
    with open(path, encoding="utf-8-sig") as file:
        text = _Text(file, path)
        opening = text.take()
        if opening not in ("{", "["):
            raise InputError(f"{path}: expected a JSON object or array")
        number, closing = 0, "}" if opening == "{" else "]"
        if text.peek() == closing:
            return
        while True:
            text.item = number + 1
            key = str(number)
            if opening == "{":
                key = text.value()
                if not isinstance(key, str) or text.take() != ":":
                    raise text.error("expected a key")
            yield key, text.value()
            number += 1
            mark = text.take()
            if mark == closing:
                return
            if mark != ",":
                raise text.error("expected a comma")


class _Text:
    """A window that moves over a JSON file."""

    def __init__(self, file: Any, path: Path):
        self._file, self._path = file, path
        self._window, self._place = "", 0
        self._decoder = json.JSONDecoder()
        self.item = 1

    def error(self, why: str) -> InputError:
        return InputError(f"{self._path}: item {self.item}: not JSON ({why})")

    def peek(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while True:
            while self._place < len(self._window):
                if self._window[self._place] not in " \t\r\n":
                    return self._window[self._place]
                self._place += 1
            if not self._more():
                return ""

    def take(self) -> str:
        character = self.peek()
        self._place += 1
        return character

    def value(self) -> Any:
        """The next value, with as much of the file as it needs."""
        self.peek()
        wanted = _CHUNK
        while True:
            while len(self._window) - self._place < wanted and self._more():
                pass
            whole = len(self._window) - self._place < wanted
            try:
                value, end = self._decoder.raw_decode(self._window, self._place)
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError as error:
                if whole:
                    raise self.error(str(error).partition(": ")[0]) from None
            else:
                # A number at the window's edge may go on behind it.
                if end < len(self._window) or whole:
                    self._place = end
                    return value
            if wanted >= MAX_LINE_BYTES:
                raise self.error(f"broken, or a value of more than {MAX_LINE_BYTES} characters")
            wanted *= 4

    def _more(self) -> bool:
        try:
            read = self._file.read(_CHUNK)
        except UnicodeDecodeError:
            raise InputError(f"{self._path}: not UTF-8 text") from None
        self._window, self._place = self._window[self._place :] + read, 0
        return bool(read)


def text(fields: Mapping[str, Any], key: str) -> str:
    """The string under a key that must be there."""
    if key not in fields:
        raise InputError(f"{key} is missing")
    return checked_text(fields[key], key)


def checked_text(value: Any, key: str, limit: int | None = None) -> str:
    """``value`` if it is a string of valid Unicode with at most ``limit`` characters."""
    if not isinstance(value, str):
        raise InputError(f"{key} must be a string, got {type(value).__name__}")
    try:
        value.encode("utf-8")  # JSON can spell half a surrogate pair, which no file or model takes
    except UnicodeEncodeError:
        raise InputError(f"{key} holds characters that are not valid Unicode") from None
    if limit is not None and len(value) > limit:
        raise InputError(f"{key} has {len(value)} characters; the limit is {limit}")
    return value


def checked_instruction(value: Any, key: str = "instruction") -> str:
    """An instruction: a string that is not blank and not endless."""
    value = checked_text(value, key)
    if not value.strip():
        raise InputError(f"{key} is empty")
    return checked_text(value, key, MAX_INSTRUCTION)


def checked_caption(value: Any, key: str) -> str | None:
    """A caption or None; an empty one is none."""
    return None if value is None else checked_text(value, key, MAX_CAPTION) or None


def checked_objects(values: Any) -> tuple[str, ...]:
    """Names of objects, a list of strings; blank ones are left out."""
    if not isinstance(values, list):
        raise InputError(f"objects must be a list of strings, got {type(values).__name__}")
    names = (checked_text(value, f"objects[{i}]").strip() for i, value in enumerate(values))
    return tuple(name for name in names if name)


class Files:
    """Finds files under a folder and nowhere else."""

    def __init__(self, root: str | os.PathLike[str]):
        self._root = os.path.realpath(root)
        self._real: dict[str, str] = {}

    def find(self, relative: str, key: str) -> Path:
        """The file's path; InputError if it is missing or outside, also through a link."""
        pure = PurePosixPath(relative)
        if not relative or "\0" in relative:
            raise InputError(f"{key} is not a path: {relative[:80]!r}")
        if pure.is_absolute() or PureWindowsPath(relative).drive or relative.startswith("\\"):
            raise InputError(f"{key} must be relative to the data set's folder: {relative[:200]!r}")
        if ".." in pure.parts or ".." in PureWindowsPath(relative).parts:
            raise InputError(f"{key} leaves the data set's folder: {relative[:200]!r}")
        try:
            path = self._resolve(pure)
            if not os.path.isfile(path):
                raise InputError(f"{key}: no such file: {relative[:200]!r}")
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{key}: cannot be read: {relative[:200]!r}") from None
        if os.path.commonpath([self._root, path]) != self._root:
            raise InputError(f"{key} leaves the data set's folder: {relative[:200]!r}")
        return Path(path)

    def _resolve(self, pure: PurePosixPath) -> str:
        """The real path; folders are resolved once, since a manifest names few of them."""
        parent = str(pure.parent)
        if parent not in self._real:
            self._real[parent] = os.path.realpath(os.path.join(self._root, parent))
        path = os.path.join(self._real[parent], pure.name)
        return os.path.realpath(path) if os.path.islink(path) else path
