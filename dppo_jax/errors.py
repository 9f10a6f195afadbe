"""What the package raises for mistakes that the user can correct."""


class SettingsError(ValueError):
    """A wrong setting, file or array shape; the message names the value and the cure.

    The programs in `experiments/` print it in one line and end with status 2. Any other
    `ValueError` is a fault of the program and keeps its traceback.
    """
