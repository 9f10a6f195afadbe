"""`runs/latest` leads to the run that was started last."""

from experiments import latest
from experiments.directories import read_groups


def test_the_link_leads_to_the_last_run_and_moves_with_the_folder(tmp_path):
    runs = tmp_path / "runs"
    for name in ("a/pretrain", "a/finetune"):
        (runs / name).mkdir(parents=True)
        latest.point_to(runs / name)
    assert (runs / "latest").resolve() == runs / "a" / "finetune"
    assert latest.followed(f"{runs}/latest") == f"{runs}/a/finetune"
    assert latest.followed(f"{runs}/a/latest") == f"{runs}/a/latest"  # no link
    assert read_groups([f"a={runs}/latest"]) == {"a": [f"{runs}/a/finetune"]}
    # A run that is resumed by the name of the link.
    latest.point_to(runs / "latest")
    assert (runs / "latest").resolve() == runs / "a" / "finetune"
    moved = runs.rename(tmp_path / "moved")
    assert (moved / "latest").resolve() == moved / "a" / "finetune"


def test_nothing_else_is_touched(tmp_path):
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    latest.point_to(tmp_path / "elsewhere" / "run")
    assert [x.name for x in tmp_path.rglob("latest")] == []
    own = tmp_path / "runs" / "latest"
    own.parent.mkdir()
    own.write_text("a note")
    latest.point_to(own.parent / "run")
    assert own.read_text() == "a note" and not own.is_symlink()


def test_a_file_system_without_links_fails_no_run(tmp_path, monkeypatch):
    def refuse(*args, **settings):
        raise OSError("no links here")

    monkeypatch.setattr(latest.Path, "symlink_to", refuse)
    latest.point_to(tmp_path / "runs" / "a")
