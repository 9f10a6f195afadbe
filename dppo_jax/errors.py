"""The error that the package raises for mistakes that a user can correct."""


class SettingsError(ValueError):
    """A wrong setting, file or array shape; the message names the value and the cure.

    The programs in `experiments/` print it in one line and exit with status 2. Any
    other `ValueError` is a bug of the program and is shown with its traceback.
    """
