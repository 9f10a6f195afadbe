"""The footer of Parquet files, as it is and damaged."""

import tracemalloc

import numpy as np
import pytest

from dppo_jax.demonstrations.formats.parquet_footer import read_footer

arrow = pytest.importorskip("pyarrow", reason="needs dppo_jax[lerobot]")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file of 20 columns and three groups of rows, with metadata of all kinds."""
    path = tmp_path_factory.mktemp("parquet") / "file.parquet"
    columns = {f"column {i}": np.arange(25) % (i + 1) for i in range(16)}
    columns |= {"list": [[0.5, i] for i in range(25)], "flag": [True, False, None] * 8}
    columns["flag"].append(True)
    columns |= {"text": ["x" * 200] * 25, "real": np.linspace(-1, 1, 25)}
    table = arrow.table(columns).replace_schema_metadata({"key": "word" * 100})
    parquet.write_table(table, path, row_group_size=10, write_page_index=True)
    return path


def test_it_states_what_the_package_says(path):
    metadata = parquet.ParquetFile(path).metadata
    found = read_footer(path)
    assert (len(found), len(found[0])) == (3, 20)
    for i, group in enumerate(found):
        expected = metadata.row_group(i)
        for j, column in enumerate(group):
            other = expected.column(j)
            assert column.num_rows == expected.num_rows
            assert column.num_values == other.num_values
            assert column.stored == other.total_compressed_size


def test_a_list_has_more_values_than_rows(path):
    columns = parquet.ParquetFile(path).schema
    index = [columns.column(i).path for i in range(20)].index("list.list.element")
    assert read_footer(path)[0][index][:2] == (20, 10)


def test_damage_is_refused_or_harmless(path, tmp_path):
    """Bytes of the footer are changed, and the file is cut there."""
    content = path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    damaged = tmp_path / "damaged.parquet"
    refused = 0
    for place in range(begin, len(content), 101):
        for number in (0, 255, content[place] ^ 1):
            changed = content[:place] + bytes([number]) + content[place + 1 :]
            damaged.write_bytes(changed)
            try:
                read_footer(damaged)
            except ValueError as error:
                assert "its footer is damaged" in str(error)
                refused += 1
        damaged.write_bytes(content[: place + 1])
        with pytest.raises(ValueError, match="its footer is damaged"):
            read_footer(damaged)
    assert refused > 30


def write(path, footer):
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize(
    "footer",
    [
        b"\x49\xfc\xff\xff\xff\xff\x0f",  # A list of four billion structures.
        b"\x19" + 3000 * b"\x1c",  # Structures in structures.
        b"\x16" + 100 * b"\xff",  # A number of 700 bits.
        b"\x18\xff\xff\xff\xff\x0f",  # A text of four gigabytes.
        b"\x1b\xff\xff\xff\xff\x0f\x88",  # A table of four billion texts.
        b"\x19\xf1\x80\x89\x7a",  # A list of two million truths.
        b"\x19\xf7\x80\x89\x7a",  # The same of real numbers.
        b"\x1b\x80\x89\x7a\x33",  # A table of two million bytes.
        b"\x1e",  # A type that does not exist.
        b"\x00",  # No fields.
        b"",
    ],
)
def test_a_footer_that_states_too_much_is_refused(footer, tmp_path):
    path = tmp_path / "file.parquet"
    write(path, footer)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="its footer is damaged"):
            read_footer(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("number", [5, -5])
def test_negative_numbers_are_refused(place, number, tmp_path):
    """A footer with one column of one group, whose numbers are 5 but for one."""
    numbers = [5, 5, 5]
    numbers[place] = number
    values, rows, stored = (bytes([2 * x if x >= 0 else -2 * x - 1]) for x in numbers)
    # Field 4: a list of one group, with field 1: a list of one column, with field 3.
    column = b"\x3c" + b"\x56" + values + b"\x26" + stored + b"\x00" + b"\x00"
    group = b"\x19\x1c" + column + b"\x26" + rows + b"\x00"
    path = tmp_path / "file.parquet"
    write(path, b"\x49\x1c" + group + b"\x00")
    if number > 0:
        assert read_footer(path) == [[(5, 5, 5)]]
        return
    with pytest.raises(ValueError, match="its footer is damaged"):
        read_footer(path)
