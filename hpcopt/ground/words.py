"""Words that messages have in common."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 100


def suggestion(word: str, allowed: Iterable[str], quote: str = "'") -> str:
    """ "; did you mean …?" where one of the allowed words is close; else nothing.

    Args:
        word: what the user wrote.
        allowed: what may be written.
        quote: around the word that is suggested: values of a config have '"'.
    """
    if len(word) > LONGEST:  # nobody has mistyped that, and it would take long
        return ""
    close = get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {quote}{close[0]}{quote}?" if close else ""


def counted(number: int, word: str) -> str:
    """A number of things: "1 rank", "2 ranks"; of a word whose plural ends with s."""
    return f"{number} {word}{'s' * (number != 1)}"


def there_are(number: int, word: str) -> str:
    """The same as a sentence: "there is 1 rank"."""
    return f"there {'is' if number == 1 else 'are'} {counted(number, word)}"
