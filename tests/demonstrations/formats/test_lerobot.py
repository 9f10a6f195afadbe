"""Reading of LeRobot's Parquet files."""

import json
import sys

import numpy as np
import pytest

from dppo_jax import expansion
from dppo_jax.demonstrations import load_lerobot
from dppo_jax.demonstrations.formats import lerobot
from dppo_jax.errors import SettingsError
from tests.demonstrations.raw import ACTIONS, RAW, REWARDS, STATE, assert_same

arrow = pytest.importorskip("pyarrow", reason="needs dppo_jax[lerobot]")
parquet = pytest.importorskip("pyarrow.parquet")

COLUMNS = {
    "observation.state": STATE.tolist(),
    "action": ACTIONS.tolist(),
    "episode_index": [0, 0, 0, 1, 1],
    "frame_index": [0, 1, 2, 0, 1],
    "next.reward": REWARDS.tolist(),
    "next.done": [False, False, True, False, False],
}
FIRST, SECOND = "data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet"


def write(folder, files=((FIRST, slice(0, 4)), (SECOND, slice(4, 5))), **changes):
    """Write two files; the second episode is split between them."""
    columns = {k: v for k, v in (COLUMNS | changes).items() if v is not None}
    for name, rows in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        part = {k: v[rows] for k, v in columns.items()}
        for key, column in part.items():
            # As LeRobot does it: vectors are lists of a fixed size.
            sizes = {len(row) if isinstance(row, list) else None for row in column}
            if len(sizes) == 1 and None not in sizes:
                fixed = arrow.list_(arrow.float32(), sizes.pop())
                part[key] = arrow.array(column, fixed)
        parquet.write_table(arrow.table(part), folder / name)
    features = {name: {"dtype": "float32"} for name in columns}
    features["observation.images.top"] = {"dtype": "video"}
    write_info(folder, features=features, splits={"train": "0:1", "odd": "all"})
    return folder


def write_info(folder, **info):
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"codebase_version": "v3.0", **info})
    (folder / "meta" / "info.json").write_text(text)


def test_episodes_go_on_across_files(tmp_path):
    assert_same(load_lerobot(write(tmp_path)), RAW)


def test_one_file_per_episode_is_read_as_well(tmp_path):
    """The layout of version 2; file 10 comes after file 9, whatever the padding."""
    files = [
        ("data/chunk-000/episode_9.parquet", slice(0, 3)),
        ("data/chunk-000/episode_10.parquet", slice(3, 5)),
    ]
    assert_same(load_lerobot(write(tmp_path, files)), RAW)


def test_lists_of_any_type_and_plain_numbers_become_tables(tmp_path):
    changes = {"action": ACTIONS[:, 0].tolist(), "next.reward": None, "next.done": None}
    folder = write(tmp_path, [])
    columns = {k: v for k, v in (COLUMNS | changes).items() if v is not None}
    (tmp_path / FIRST).parent.mkdir(parents=True)
    parquet.write_table(arrow.table(columns), tmp_path / FIRST)
    assert_same(load_lerobot(folder), RAW._replace(rewards=None, terminals=None))


def test_many_small_groups_of_rows_are_no_expansion(tmp_path, monkeypatch):
    """As a recorder makes them that writes every episode by itself."""
    monkeypatch.setattr(expansion, "ALWAYS", 2**20)
    rows = 20_000
    columns = {k: rows // 5 * v for k, v in COLUMNS.items() if "next" not in k}
    columns |= {"episode_index": [0] * rows, "frame_index": list(range(rows))}
    folder = write(tmp_path, [])
    (tmp_path / FIRST).parent.mkdir(parents=True)
    table = arrow.table(columns)
    parquet.write_table(table, tmp_path / FIRST, row_group_size=100)
    assert load_lerobot(folder).episode_lengths.tolist() == [rows]


def test_a_footer_with_fewer_columns_than_the_schema_is_refused(tmp_path, monkeypatch):
    """How far the missing ones expand would be unknown."""
    read = lerobot.read_footer
    fewer = lambda path: [group[:-1] for group in read(path)]  # noqa: E731
    monkeypatch.setattr(lerobot, "read_footer", fewer)
    with pytest.raises(SettingsError, match="its footer is damaged"):
        load_lerobot(write(tmp_path))


def test_the_first_episodes_or_those_of_a_split(tmp_path):
    folder = write(tmp_path)
    assert load_lerobot(folder, 1).episode_lengths.tolist() == [3]
    assert load_lerobot(folder, filter_key="train").episode_lengths.tolist() == [3]
    with pytest.raises(ValueError, match="no split 'test'; it has train, odd"):
        load_lerobot(folder, filter_key="test")
    with pytest.raises(ValueError, match="split odd is 'all'; it must be begin:end"):
        load_lerobot(folder, filter_key="odd")


def test_files_after_the_last_wanted_episode_are_not_opened(tmp_path):
    files = [(FIRST, slice(0, 3)), ("data/chunk-000/file-001.parquet", slice(3, 5))]
    folder = write(tmp_path, files)
    third = folder / "data" / "chunk-001" / "file-000.parquet"
    third.parent.mkdir()
    third.write_bytes(b"PAR1 but no more")
    assert load_lerobot(folder, 1).episode_lengths.tolist() == [3]
    with pytest.raises(
        ValueError, match="chunk-001/file-000.parquet is not a readable"
    ):
        load_lerobot(folder)


def test_a_time_limit_is_not_a_termination(tmp_path):
    cut = {"next.truncated": [False, False, True, False, False]}
    assert not load_lerobot(write(tmp_path, **cut)).terminals.any()


def test_columns_make_the_state_in_the_order_given(tmp_path):
    keys = ("next.reward", "observation.state")
    state = load_lerobot(write(tmp_path), obs_keys=keys).observations["state"]
    np.testing.assert_array_equal(state, np.column_stack([REWARDS, STATE]))
    with pytest.raises(ValueError, match="images.top is of the kind video"):
        load_lerobot(tmp_path, obs_keys=("observation.images.top",))
    with pytest.raises(ValueError, match="no column 'goal'; it has observation.state,"):
        load_lerobot(tmp_path, obs_keys=("goal",))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"action": None}, "no column 'action'"),
        (
            {"episode_index": [0, 1, 0, 1, 1], "frame_index": [0, 0, 0, 0, 1]},
            "not contiguous; sort",
        ),
        ({"action": [[1.0], [1.0, 2.0], [3.0], [1.0], [2.0]]}, "of different sizes"),
        ({"action": [[1.0], None, [3.0], [1.0], [2.0]]}, "missing or of different"),
        ({"action": ["a"] * 5}, "action has type string; it must hold numbers"),
        (
            {"observation.state": [[1.0, np.nan]] + STATE[1:].tolist()},
            r"state has NaN .* 1 of 5 rows, first \[0\]",
        ),
    ],
)
def test_damage_is_named_in_one_line_with_the_folder(tmp_path, change, message):
    folder = write(tmp_path, **change)
    with pytest.raises(ValueError, match=message) as error:
        load_lerobot(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="info.json cannot be read"):
        load_lerobot(tmp_path)
    write_info(tmp_path)
    with pytest.raises(ValueError, match="info.json lacks features"):
        load_lerobot(tmp_path)
    write(tmp_path, [])
    with pytest.raises(ValueError, match="holds no data/chunk"):
        load_lerobot(tmp_path)
    with pytest.raises(ValueError, match="holds no episodes"):
        load_lerobot(write(tmp_path, [(FIRST, slice(0, 0))]))


def test_a_missing_package_is_named_with_the_cure(tmp_path, monkeypatch):
    folder = write(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pyarrow, .*'dppo_jax\[lerobot\]'"):
        load_lerobot(folder)


@pytest.mark.parametrize(
    "files, changes, message",
    [
        (
            [(FIRST, slice(0, 5))],
            {"frame_index": [2, 1, 0, 0, 1]},
            "file-000.parquet, row 0: frame_index of episode 0 is 2, but must be 0",
        ),
        (
            [(FIRST, slice(0, 3)), (SECOND, slice(3, 5))],
            {"frame_index": [0, 1, 2, 0, 2]},
            "file-001.parquet, row 1: frame_index of episode 1 is 2, but must be 1",
        ),
        (
            # Two files that both number their episode 0.
            [(FIRST, slice(0, 3)), (SECOND, slice(3, 5))],
            {"episode_index": [0] * 5},
            "file-001.parquet, row 0: frame_index of episode 0 is 0, but must be 3",
        ),
    ],
)
def test_frames_out_of_order_are_refused_by_file_and_row(
    tmp_path, files, changes, message
):
    with pytest.raises(ValueError, match=message):
        load_lerobot(write(tmp_path, files, **changes))


def test_data_without_frame_numbers_are_in_the_order_of_their_rows(tmp_path):
    assert_same(load_lerobot(write(tmp_path, frame_index=None)), RAW)
