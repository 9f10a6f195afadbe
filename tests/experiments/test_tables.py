"""Tables in Markdown and as comma-separated values."""

import pytest

from experiments import tables


def test_a_table_has_a_rule_below_its_header():
    text = tables.markdown(["a", "b c"], [["1", "x y"], ["2", ""]])
    assert text == "| a | b c |\n|---|---|\n| 1 | x y |\n| 2 |  |"


def test_a_row_without_all_cells_is_a_mistake():
    with pytest.raises(ValueError, match="needs its cells"):
        tables.markdown(["a", "b"], [["1"]])


def test_floats_have_six_digits_and_texts_with_commas_are_quoted():
    text = tables.comma_separated(["a", "b", "c"], [[1 / 3, 2, "x,y"]])
    assert text == 'a,b,c\n0.333333,2,"x,y"\n'


def test_intervals_follow_their_value():
    assert tables.with_interval(0.5, (0.25, 2 / 3)) == "0.5 [0.25, 0.6667]"
    assert tables.with_interval(0.5, None) == "0.5"


def test_large_numbers_are_written_in_full():
    assert tables.with_interval(12345.6, (-10000.0, 2e4)) == "12346 [-10000, 20000]"
    assert tables.number(1234.5, 3) == "1234" and tables.number(123.45, 3) == "123"
