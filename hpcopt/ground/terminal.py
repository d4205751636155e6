"""The doors to a terminal: nothing passes that it would take for a command, and no job ends for want of one.

Paths, keys and values of a config, what Slurm answers, lines of a log and attributes of files come from
outside; what is written here may have them in it as they are.
"""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import suppress
from functools import cache
from typing import IO, Any, cast

from hpcopt.errors import UserError

KEPT, LONGEST, MOST = 500, 4000, 40
"""of a message: letters of a word, letters in a line, lines"""


def printable(text: object, keep: str = "") -> str:
    r"""Text from outside as a terminal may have it: all but letters, signs and blanks becomes visible.

    Args:
        text: whatever it is.
        keep: what may pass all the same: "\n", say; nothing for what is to be one line.

    >>> printable("runs/\x1b[2Jmine\n")
    'runs/\\x1b[2Jmine\\n'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def brief(text: object) -> str:
    """A message of a size that can be read, whatever is quoted in it."""
    shown = re.sub(rf"(\S{{{KEPT}}})\S{{{KEPT},}}", r"\1…", str(text))
    lines = [
        line if len(line) <= LONGEST else f"{line[:LONGEST]}…" for line in shown.split("\n", MOST)[:MOST]
    ]
    more = str(text).count("\n") + 1 - len(lines)
    return "\n".join(lines + [f"… and {more} more lines"] * (more > 0))


def tell(text: object) -> None:
    """Lines to stderr at once; where that is closed, missing or full they are lost, and that is all."""
    with suppress(OSError, ValueError):
        _write(sys.stderr, f"{text}\n")


def say(text: object, end: str = "\n") -> None:
    """The result of a command to stdout, at once; where there is none it is lost.

    Raises:
        UserError: it cannot be written.
        BrokenPipeError: who was to read it has gone.
    """
    try:
        _write(sys.stdout, f"{text}{end}")
    except ValueError:
        return  # it was closed
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"stdout: cannot be written ({error.strerror})") from None


def raw(text: str) -> None:
    """Lines to stderr in one write, so that those of several ranks do not mix; asks nothing of Python."""
    with suppress(OSError):
        os.write(descriptor(), printable(text, "\n\t").encode(errors="backslashreplace"))


def descriptor() -> int:
    """Of stderr; of nothing where that is closed or missing: its number may be another file's then."""
    with suppress(AttributeError, ValueError, OSError):
        number = sys.__stderr__.fileno()  # type: ignore[union-attr]
        os.fstat(number)
        return number
    return _nothing()


def is_terminal(stream: Any) -> bool:
    """Whether a stream, if it is one at all, is a terminal."""
    with suppress(AttributeError, ValueError, OSError):
        return bool(stream.isatty())
    return False


def forgiving(stream: IO[str] | None) -> IO[str]:
    """stderr or stdout, for who writes to them without a thought of what may become of them."""
    return cast(IO[str], _Forgiving(stream))


class _Forgiving(io.TextIOBase):
    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """See `io.IOBase`."""
        return is_terminal(self._stream)

    def write(self, text: str, /) -> int:
        """See `io.TextIOBase`; the escape sequences of a bar of one's own may pass."""
        with suppress(OSError, ValueError):
            _write(self._stream, text, "\x1b\r\n\t")
        return len(text)


def open_standard_streams() -> None:
    """Opens what of stdin, stdout and stderr this process was started without.

    Otherwise the next file that is opened would get the number, and what a library has to say. To be called
    first of all.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def drop_unwritten() -> None:
    """Forgets what stdout and stderr did not take: a process that ends would try again, and fail for that."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(_nothing(), stream.fileno())


def _write(stream: Any, text: str, keep: str = "\n\t") -> None:
    if stream is None:  # the process was started without it
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(printable(text, keep).encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


@cache
def _nothing() -> int:
    return os.open(os.devnull, os.O_WRONLY)
