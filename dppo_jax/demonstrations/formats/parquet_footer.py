"""What the footer of a Parquet file states about the columns, read without pyarrow.

The functions by which pyarrow shows the metadata of columns declare no C++ exceptions,
so a damaged entry in them ends the process (version 26). Reading the columns themselves
checks the same entries and raises an error.

The footer is a Thrift structure in the compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

from pathlib import Path
from typing import Any, NamedTuple

_MAGIC = b"PAR1"
# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _INTS, _DOUBLE = 1, 2, 3, (4, 5, 6), 7
_BINARY, _LIST, _SET, _MAP, _STRUCT = 8, 9, 10, 11, 12
# Bytes of the others; a truth takes one only in a list.
_WIDTHS = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
# Fields of Parquet's structures (parquet.thrift), by their numbers.
_ROW_GROUPS, _COLUMNS, _ROWS, _ABOUT, _VALUES, _COMPRESSED = 4, 1, 3, 3, 5, 7


class ColumnChunk(NamedTuple):
    """A column in one group of rows.

    num_values: numbers in it, as the footer states them.
    num_rows: rows of the group.
    stored: bytes in the file.
    """

    num_values: int
    num_rows: int
    stored: int


def read_footer(path: Path) -> list[list[ColumnChunk]]:
    """The columns of every group of rows, in the order of the schema.

    Raises:
        ValueError: there is no footer, or it is damaged.
    """
    content = _footer(path)
    try:
        groups = [
            [
                ColumnChunk(
                    num_values=int(column[_ABOUT][_VALUES]),
                    num_rows=int(group[_ROWS]),
                    stored=int(column[_ABOUT][_COMPRESSED]),
                )
                for column in group[_COLUMNS]
            ]
            for group in _Compact(content).struct()[_ROW_GROUPS]
        ]
    except (KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError("its footer is damaged") from error
    # A negative number would hide in a sum how far other groups expand.
    if any(number < 0 for group in groups for column in group for number in column):
        raise ValueError("its footer is damaged")
    return groups


def _footer(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        ending = file.read(8)
        length = int.from_bytes(ending[:4], "little")
        if ending[4:] != _MAGIC or length > size - 8:
            raise ValueError("its footer is damaged")
        file.seek(size - 8 - length)
        return file.read(length)


class _Compact:
    """Reads values of the compact protocol from bytes, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def struct(self) -> dict[int, Any]:
        """Fields by number; those that nobody needs have no value."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            # A number that is far from the last one follows on its own.
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            # That of a truth is in its type.
            fields[number] = kind if kind in (_TRUE, _FALSE) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in _INTS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct()
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._natural()
            return [self._value(head & 15) for _ in range(count)]
        if kind == _MAP:
            count = self._natural()
            kinds = self._byte() if count else 0
            return [self._value(x) for _ in range(count) for x in divmod(kinds, 16)]
        length = self._natural() if kind == _BINARY else _WIDTHS[kind]
        # Checked here, because a list may state more of these than memory can hold.
        if length > len(self._content) - self._place:
            raise IndexError(length)
        self._place += length
        return None

    def _integer(self) -> int:
        number = self._natural()
        return -(number >> 1) - 1 if number & 1 else number >> 1

    def _natural(self) -> int:
        """A number of at most ten bytes, seven bits of each, the last bits first."""
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise IndexError(number)

    def _byte(self) -> int:
        self._place += 1
        return self._content[self._place - 1]
