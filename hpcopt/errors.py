"""The errors that end a job on purpose; each carries its exit code (see the README, «Exit codes»)."""


class HpcoptError(Exception):
    """Base of all errors that hpcopt raises on purpose."""

    exit_code = 1


class UserError(HpcoptError):
    """The user's input is wrong: one message that names the file, the key, the value and what is allowed."""

    exit_code = 2


class NothingToResume(HpcoptError):
    """The directory holds no run that could be resumed."""

    exit_code = 3


class NotFinite(HpcoptError):
    """The training loss is no longer a finite number; the metrics so far are kept."""

    exit_code = 4


class Interrupted(HpcoptError):
    """A signal asked the job to stop; a checkpoint was written, and running again goes on from it."""

    exit_code = 75


class Failed(HpcoptError):
    """One run of several failed in a way that is not the end of the others: the user's code raised something.

    Attributes:
        traceback: of that, as text.
    """

    traceback = ""
