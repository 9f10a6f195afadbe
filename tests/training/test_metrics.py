import math
import resource

import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from dppo_jax.training.metrics import (
    MetricsWriter,
    has_reached,
    read_metrics,
    recent_mean,
    write_pictures,
)


def write(run_dir, rows, **settings):
    run_dir.mkdir(exist_ok=True)
    with MetricsWriter(run_dir, **settings) as writer:
        for iteration, row in rows:
            writer.write(iteration, row)


def test_rows_read_back_as_they_were_written(tmp_path):
    write(tmp_path, [(1, {"loss": 0.5}), (2, {"loss": -1e-7})])
    assert read_metrics(tmp_path) == [
        {"iteration": 1, "loss": 0.5},
        {"iteration": 2, "loss": -1e-7},
    ]


def test_a_row_is_on_disk_before_the_next_is_written(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for iteration in (1, 2, 3):
            writer.write(iteration, {"loss": 1.0})
            assert len(read_metrics(tmp_path)) == iteration


def test_a_new_name_adds_a_column_and_keeps_the_rows(tmp_path):
    write(tmp_path, [(1, {"a": 1.0}), (2, {"b": 2.0}), (3, {"a": 3.0, "b": 4.0})])
    assert read_metrics(tmp_path) == [
        {"iteration": 1, "a": 1.0},
        {"iteration": 2, "b": 2.0},
        {"iteration": 3, "a": 3.0, "b": 4.0},
    ]
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header == "iteration,a,b"


def test_a_nan_leaves_a_gap_and_an_infinite_number_is_kept(tmp_path):
    write(tmp_path, [(1, {"success": math.nan, "ratio": math.inf, "x": 0.0})])
    assert read_metrics(tmp_path) == [{"iteration": 1, "ratio": math.inf, "x": 0.0}]


def test_a_metric_of_a_task_does_not_replace_the_iteration(tmp_path):
    write(tmp_path, [(1, {"iteration": 1e6, "loss": 0.5}), (2, {"iteration": 0.0})])
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "tail", ["3,ab", "3,1.0,2.0", "\0\0", "1", "1,0.5", "3,0.5", "3,", "3,0.5\n4,0."]
)
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, capsys, tail):
    """Even if what is left of it is a row, because its last number may be cut."""
    write(tmp_path, [(i, {"loss": float(i)}) for i in (1, 2)])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(tail)
    complete = [1, 2, 3] if "\n" in tail else [1, 2]
    assert [row["iteration"] for row in read_metrics(tmp_path)] == complete
    assert capsys.readouterr().out == ""
    write(tmp_path, [(5, {"loss": 5.0})], resume_at=5)
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [*complete, 5]
    line = len(complete) + 2
    note = f"note: line {line} of {tmp_path}/metrics.csv was cut off and is left out"
    assert capsys.readouterr().out.strip() == note


def test_a_file_that_ends_with_its_last_line_has_nothing_to_note(tmp_path, capsys):
    write(tmp_path, [(1, {"loss": 1.0})])
    write(tmp_path, [(2, {"loss": 2.0})], resume_at=2)
    assert capsys.readouterr().out == ""


def test_an_unreadable_line_before_others_is_named(tmp_path):
    write(tmp_path, [(1, {"loss": 1.0})])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("what,ever\n3,1.0\n")
    with pytest.raises(ValueError, match="metrics.csv, line 3, is no row of numbers"):
        read_metrics(tmp_path)


def test_resuming_drops_the_rows_that_will_come_again(tmp_path):
    write(tmp_path, [(i, {"loss": float(i)}) for i in range(6)])
    write(tmp_path, [(i, {"loss": 10.0 * i}) for i in (4, 5)], resume_at=4)
    rows = read_metrics(tmp_path)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows] == [0, 1, 2, 3, 40, 50]


def test_a_run_that_starts_anew_starts_a_new_file(tmp_path):
    write(tmp_path, [(1, {"old": 1.0})])
    write(tmp_path, [(1, {"new": 2.0})])
    assert read_metrics(tmp_path) == [{"iteration": 1, "new": 2.0}]


def test_a_folder_without_numbers_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []
    assert read_metrics(tmp_path / "nowhere") == []


def test_large_iterations_stay_whole(tmp_path):
    write(tmp_path, [(12_345_678, {"loss": 1.0})])
    assert read_metrics(tmp_path)[0]["iteration"] == 12_345_678


def scalars(run_dir):
    """(step, name, value) of all events."""
    (path,) = run_dir.glob("events.out.tfevents.*")
    values = [(event.step, v) for event in events(path) for v in event.summary.value]
    return [(step, v.tag, v.simple_value) for step, v in values]


def events(path):
    """A record holds a length, its checksum, an event and its checksum."""
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[size + 16 :]
    return found


def test_tensorboard_sees_every_finite_number_at_its_iteration(tmp_path):
    write(tmp_path, [(1, {"loss": 0.5, "success": math.nan}), (7, {"loss": -2.0})])
    assert scalars(tmp_path) == [(1, "train/loss", 0.5), (7, "train/loss", -2.0)]


def test_tensorboard_shows_settings_and_pictures(tmp_path):
    tmp_path.joinpath("config.json").write_text('{\n"seed": 3\n}')
    Image.new("RGB", (5, 4)).save(tmp_path / "curve.png")
    write(tmp_path, [])
    write_pictures(tmp_path, 9, [tmp_path / "curve.png"])
    first, second = sorted(tmp_path.glob("events.out.tfevents.*"))
    (settings,) = [v for event in events(first) for v in event.summary.value]
    assert settings.tensor.string_val[0].decode() == '    {\n    "seed": 3\n    }'
    (picture,) = [(e.step, v) for e in events(second) for v in e.summary.value]
    assert picture[0] == 9 and picture[1].tag == "pictures/curve"
    assert (picture[1].image.width, picture[1].image.height) == (5, 4)


def test_a_resumed_run_tells_tensorboard_where_it_goes_on(tmp_path):
    write(tmp_path, [(i, {"loss": float(i)}) for i in (1, 2, 3)])
    write(tmp_path, [(3, {"loss": 30.0})], resume_at=3)
    older, newer = sorted(tmp_path.glob("events.out.tfevents.*.[13]"))
    assert older.name.endswith(".1") and newer.name.endswith(".3")
    size = int.from_bytes(newer.read_bytes()[:8], "little")
    rest = newer.read_bytes()[size + 16 :]
    event = event_pb2.Event.FromString(rest[12 : 12 + rest[0]])
    assert event.step == 3 and event.session_log.status == event.session_log.START


def test_a_full_disk_is_an_error_at_once(tmp_path):
    """The limit of a file's size stands for it; both are errors of `write`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(OSError):
                for iteration in range(2, 1000):
                    writer.write(iteration, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert iteration < 400
    assert len(read_metrics(tmp_path)) >= iteration - 1


def recent(rows, num_rows=9):
    return recent_mean(rows, "score", weight="count", num_rows=num_rows)


def test_a_recent_mean_weights_the_last_rows():
    rows = [{"score": s, "count": c} for s, c in [(99.0, 9.0), (1.0, 1.0), (4.0, 2.0)]]
    assert recent(rows, num_rows=2) == pytest.approx((1 + 2 * 4) / 3)
    assert recent(rows, num_rows=1) == 4.0


def test_rows_without_a_score_do_not_count():
    nothing = [{}, {"count": 5.0}, {"score": math.nan, "count": 0.0}, {"score": 7.0}]
    assert recent([*nothing, {"score": 3.0, "count": 2.0}]) == 3.0
    assert math.isnan(recent(nothing)) and math.isnan(recent([]))


def test_a_recent_mean_is_the_same_after_reading_back(tmp_path):
    """Digits that the file does not keep must not affect it."""
    rows = [
        {"iteration": i, "score": 1500.0 - 1e-4 * i, "count": 3.0} for i in range(1, 4)
    ]
    with MetricsWriter(tmp_path) as writer:
        for row in rows:
            writer.write(row["iteration"], row)
        assert recent(writer.rows) == recent(rows)
    assert recent(read_metrics(tmp_path)) == recent(rows) == 1500.0


def test_a_target_is_compared_with_the_last_value_as_written():
    """1.9999999 is written as 2, so a resumed run would see the target reached."""
    rows = [{"x": 5.0}, {"y": 0.0}, {"x": 1.9999999}, {"y": 9.0}]
    assert has_reached(rows, "x", 2.0)
    assert not has_reached(rows, "x", 2.1)
    assert not has_reached([{"y": 1.0}], "x", 0.0)


def test_a_writer_that_does_not_write_has_the_rows_too(tmp_path):
    """Only one of several processes writes; the others must stop at the same row."""
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
    before = sorted(tmp_path.iterdir())
    with MetricsWriter(tmp_path, resume_at=2, writes=False) as reader:
        reader.write(2, {"loss": 0.25})
    assert [row["loss"] for row in reader.rows] == [0.5, 0.25]
    assert sorted(tmp_path.iterdir()) == before
    assert len(read_metrics(tmp_path)) == 1
