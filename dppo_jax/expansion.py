"""Keeps a small file from filling the memory: how far its content may expand.

Compressed archives, tables of one repeated value and declared shapes can all stand for
far more bytes than a file has. Readers ask here before they allocate.
"""

from dppo_jax.errors import SettingsError

# Bytes that any file may expand to, and by which factor larger ones may. Of the data
# of a task no file comes close: images of few colours compress to a hundredth.
ALWAYS = 2**30
FACTOR = 300


def check_expansion(size: int, stored: int, what: str) -> None:
    """Refuse content that would take far more memory than its file has bytes.

    Args:
        size: bytes in memory.
        stored: bytes in the file.
        what: names the content in the message.

    Raises:
        SettingsError: `size` is above both `ALWAYS` and `FACTOR` times `stored`.
    """
    if size > ALWAYS and size > FACTOR * stored:
        raise SettingsError(
            f"{what} would take {size / 1e9:.4g} GB of memory, but the file stores "
            f"{stored} bytes for it; it is damaged, or made to fill the memory. Write "
            "the data again."
        )
