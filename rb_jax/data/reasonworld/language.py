"""Hypothetical sentences: an opener asks, a clause supposes.

Every clause is a past subjunctive ("the rope were cut"), so any opener takes any clause. Held-out
openers and clauses occur in `test_unseen` only, always together.
"""

from collections.abc import Sequence

OPENERS = (
    "What would happen if {}?",
    "What if {}?",
    "Suppose {}.",
    "Imagine that {}.",
    "How would the picture look if {}?",
    "Suppose {}; what would we see?",
)
HELD_OPENERS = (
    "Pretend that {}.",
    "Show the picture as though {}.",
    "What would we see if {}?",
    "Assume {}.",
)


def sentences(openers: Sequence[str], clauses: Sequence[str]) -> tuple[str, ...]:
    """Every opener with every clause; the clauses' own slots stay open."""
    return tuple(opener.format(clause) for opener in openers for clause in clauses)


def article(noun: str) -> str:
    """The noun phrase with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def number(n: int) -> str:
    """0..10 in words."""
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    return words[n]


def plural(n: int, noun: str) -> str:
    """'one hour', 'two hours'."""
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"
