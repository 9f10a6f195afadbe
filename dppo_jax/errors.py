"""The error that the package raises for mistakes that a user can correct."""


class SettingsError(ValueError):
    """A wrong setting, file or array shape; the message names the value and the cure.

    The programs in `experiments/` print it in one line and exit with status 2. Any
    other `ValueError` is a bug of the program and is shown with its traceback.
    """

    def __init__(self, message: str) -> None:
        # Names in a file may hold line ends, which would tear the message apart.
        super().__init__("\\n".join(message.splitlines()))
