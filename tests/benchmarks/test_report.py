"""Blocks of the documentation are filled from measurement files."""

import json

from benchmarks import report, timing

ABOUT = {
    "platform": "cpu",
    "device": "cpu",
    "num_devices": 1,
    "processor": "AMD EPYC",
    "cores": 2,
    "load": 0.1,
    "versions": {"jax": "0.10.2", "mujoco": "4.0.0"},
}
PAGE = """A page.

<!-- figures: pretrain -->
old figures
<!-- end -->

<!-- figures: gpu -->
<!-- end -->
The end.
"""


def keep(folder, name, rows, **about):
    content = ABOUT | {"date": "2026-01-31T12:00:00"} | about
    path = folder / timing.result_path(name, content).name
    timing.write_json(path, rows, content)
    return path


def test_a_page_says_so_where_nothing_was_measured(tmp_path):
    page = report.update(PAGE, tmp_path, tmp_path)
    assert "old figures" not in page
    assert "Nothing was measured yet." in page
    assert "No figures were measured on a GPU yet." in page
    assert page.startswith("A page.") and page.endswith("The end.\n")
    # Old contents are replaced, not extended.
    assert report.update(page, tmp_path, tmp_path) == page


def test_the_newest_file_of_that_name_is_shown(tmp_path):
    keep(tmp_path, "pretrain", [{"samples/s": 1.0}], date="2026-01-01T00")
    keep(tmp_path, "pretrain", [{"samples/s": 2345.6}], date="2026-02-01T00")
    keep(tmp_path, "pretrain-hopper", [{"samples/s": 3.0}], date="2026-03-01T00")
    page = report.update(PAGE, tmp_path, tmp_path)
    assert "| samples/s |\n| ---: |\n| 2,346 |" in page
    assert "2026-02-01" in page and "2026-01-01" not in page
    assert "AMD EPYC, 2 cores" in page and "load before it 0.1" in page


def test_a_plot_is_shown_where_there_is_one(tmp_path):
    plots = tmp_path / "results"
    plots.mkdir()
    (plots / "pretrain.png").touch()
    page = report.update(PAGE, tmp_path, plots)
    assert "![pretrain](results/pretrain.png)\n<!-- end -->" in page
    assert report.update(page, tmp_path, plots) == page


def test_a_table_leaves_out_what_is_empty_and_gives_shares_in_percent():
    rows = [
        {"part": "a", "median s": 1.5, "fastest": 1.0, "share": 0.25, "GFLOP": None},
        {"part": "b", "median s": 4.5, "fastest": 4.0, "share": None, "GFLOP": None},
    ]
    assert report.markdown_table(rows).splitlines() == [
        "| part | median s | share |",
        "| --- | ---: | ---: |",
        "| a | 1.5 | 25.0% |",
        "| b | 4.5 | - |",
    ]


def test_a_gpu_has_a_table_for_each_kind_and_names_what_failed(tmp_path):
    rows = [
        {"table": "matmul", "width": 512, "TFLOP/s": 30.0},
        {"table": "physics", "task": "hopper", "batch": 8, "steps/s": 1e6},
        {"table": "physics", "task": "avoid", "batch": 8, "error": "Full: memory"},
    ]
    gpu = dict(platform="gpu", device="NVIDIA H100")
    keep(tmp_path, "gpu", rows, **gpu)
    page = report.update(PAGE, tmp_path, tmp_path)
    assert "1 x NVIDIA H100; JAX 0.10.2" in page
    assert "`matmul`\n\n| width | TFLOP/s |\n| ---: | ---: |\n| 512 | 30 |" in page
    assert "- task avoid, batch 8: Full: memory" in page
    # A GPU's measurements do not fill the block of a processor.
    keep(tmp_path, "pretrain", [{"samples/s": 2.0}], **gpu)
    assert "Nothing was measured yet." in report.update(PAGE, tmp_path, tmp_path)


def test_the_documentation_has_a_place_for_every_table(tmp_path):
    text = report.DOCUMENT.read_text()
    names = [match["name"] for match in report._BLOCK.finditer(text)]
    assert names == [
        *("physics", "physics_arms", "denoising-hopper", "train_step-avoid_m1"),
        *("train_step-hopper", "train_step-hopper_chain", "train_step-hopper_fast"),
        *("train_step-avoid_unet", "train_step-avoid_pixels", "off_policy-hopper_sac"),
        *("checkpoints", "train_step-can_fast", "algorithms-avoid", "latency-hopper"),
        *("pretrain-hopper", "scaling-hopper", "compile_time", "gpu"),
    ]
    # `make figures` has filled every block.
    assert all(match["old"].strip() for match in report._BLOCK.finditer(text))

    page = tmp_path / "page.md"
    page.write_text(PAGE)
    report.main([str(page), "--results", str(tmp_path)])
    assert "Nothing was measured yet." in page.read_text()
    assert json.loads(keep(tmp_path, "x", []).read_text())["rows"] == []
