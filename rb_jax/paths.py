"""Paths of parameters, "mmdit/img_in/kernel", and patterns over them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable


def join(path: Iterable[object]) -> str:
    return "/".join(map(str, path))


def split(path: str) -> tuple[str | int, ...]:
    """The keys of a path; what looks like a number is one."""
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))


def matches(pattern: str, path: str) -> bool:
    """Whether a glob over "/"-joined names matches the whole path."""
    return _compiled(pattern).fullmatch(path) is not None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    tokens = {"**/": "(?:[^/]+/)*", "/**": "(?:/[^/]+)*", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|/\*\*$|\*\*|\*)", pattern)
    return re.compile("".join(tokens.get(p, re.escape(p)) for p in parts))
