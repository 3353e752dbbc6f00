"""The two ways a command can end badly, apart from a bug."""


class UserError(ValueError):
    """A mistake that the user can mend; the command prints it as one line and exits with 2.

    The message says what was given, what is allowed, and what to do.
    """


class RunFailed(RuntimeError):
    """A run that started properly and could not finish; the command exits with 1.

    `kind` is one of `patchscale.runs.record.FAILURE_KINDS` and is stored with the run.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["RunFailed"], tuple[str, str]]:
        """Both arguments, so that it can be sent between processes."""
        return RunFailed, (self.kind, str(self))
