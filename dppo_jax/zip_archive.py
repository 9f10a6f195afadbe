"""Reads entries of ZIP archives, in which `.npz` and `.pt` files keep their arrays."""

import lzma
import struct
import zipfile
import zlib
from typing import IO

# What `zipfile` raises of damaged archives; the last two are of kinds of compression or
# encryption that it does not know, and of names that are no text.
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(NotImplementedError, UnicodeDecodeError),
)


def open_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open an entry; raises one of `UNREADABLE` if that is not possible.

    For encrypted entries `zipfile` raises a RuntimeError, which is also what a bug
    raises, so they are looked for here.
    """
    if info.flag_bits & 1:
        raise zipfile.BadZipFile(f"{info.filename} is encrypted")
    return archive.open(info)
