"""The report of one run: RUN/report.html."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dppo_jax.training.config_file import write_atomically
from dppo_jax.training.metrics import write_pictures
from experiments.reports import html, panels, run, sections
from experiments.reports.times import times

FILE = "report.html"


def write(run_dir: str | Path) -> Path:
    """Write the report of a run; returns its path.

    Raises:
        SettingsError: the directory holds no run.
        OSError: the file cannot be written.
    """
    path = Path(run_dir) / FILE
    write_atomically(path, make(run_dir))
    return path


def finish(run_dir: str | Path) -> None:
    """Write the report at the end of a run, and show its pictures in TensorBoard.

    The run itself is complete, so whatever goes wrong is only a warning.
    """
    with _warning(run_dir):
        print(f"wrote {write(run_dir)}", flush=True)
    with _warning(run_dir):
        pictures = sorted(Path(run_dir, "plots").glob("*.png"))
        if pictures:
            write_pictures(run_dir, run.read(run_dir).iteration, pictures)


def refresh(run_dir: str | Path) -> None:
    """Write the report again if there is one, after something was added to a run."""
    if Path(run_dir, FILE).is_file():
        with _warning(run_dir):
            write(run_dir)


@contextlib.contextmanager
def _warning(run_dir: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"warning: no complete report of {run_dir}: {reason:.300}", flush=True)


def make(run_dir: str | Path) -> str:
    """The page of a run.

    Raises:
        SettingsError: the directory holds no run.
    """
    facts = run.read(run_dir)
    status, spent = run.status(facts), times(facts)
    charts = html.charts(panels.main_figures(facts))
    others = html.charts(panels.other_figures(facts))
    return html.page(
        sections.title(facts),
        (
            f"<h1>{html.escape(sections.title(facts))}</h1>",
            html.paragraph(sections.what(facts)),
            f'<p><span class="status {status.kind}">{html.escape(status.text)}</span>'
            f' <span class="soft">· {html.escape(sections.when(facts))}</span></p>',
            html.notes(facts.problems),
            html.cards(sections.headline(facts, spent)),
            html.section("Warnings", html.notes(run.warnings(facts))),
            html.section(
                "Curves",
                html.with_axes(
                    panels.axes(facts),
                    charts,
                    html.details("All other metrics", others),
                ),
                html.paragraph(sections.legend(facts), "soft") if charts else "",
            ),
            html.section("Episodes", sections.media_section(facts.run_dir)),
            html.section("Where the time went", sections.times_section(spent)),
            html.section(
                "Settings that differ from the defaults",
                sections.settings_section(facts),
            ),
            html.section("Provenance", sections.provenance_section(facts)),
        ),
    )
