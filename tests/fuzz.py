"""Coverage-guided fuzzing of a reader: python -m tests.fuzz torch --minutes 5

libFuzzer, by way of `atheris` (`dppo_jax[fuzz]`), changes sound files and keeps what
reaches new lines of the reader. An input that ends in another error than a
SettingsError, in a hang, or in gigabytes of memory ends the program and is kept in
`fuzz/`; `python -m tests.fuzz torch --repeat fuzz/crash-...` reads it again.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# The packages whose lines guide the changes; atheris takes them whole.
GUIDES = {
    "torch": ("dppo_jax", "pickletools", "zipfile"),
    "dppo_npz": ("dppo_jax", "numpy", "zipfile"),
}
FOUND = Path("fuzz")
# First bytes below it stand for a whole file, others for its members in turns.
WHOLE = 64
# Limits of one input.
SECONDS, MEGABYTES = 20, 3000


def case_of(reader: str, data: bytes) -> dict[str, bytes]:
    """The files that an input stands for.

    Its first byte says of what the rest are the bytes: of the file, or of one member of
    a sound archive, as the checksum of an archive would refuse most changes.
    """
    from tests import damage, readers

    kind, data = (data[0], data[1:]) if data else (0, b"")
    sound = readers.READERS[reader].sound()
    file = "a.pt" if reader == "torch" else "train.npz"
    if kind < WHOLE:
        return sound | {file: data}
    members = damage.unzipped(sound[file])
    members[kind % len(members)][1] = data
    return sound | {file: damage.zipped(members)}


def seeds_of(reader: str) -> list[bytes]:
    """Inputs that stand for sound files."""
    from tests import damage, readers

    sound = readers.READERS[reader].sound()[
        "a.pt" if reader == "torch" else "train.npz"
    ]
    members = damage.unzipped(sound)
    first = WHOLE + -WHOLE % len(members)
    inside = [bytes([first + i]) + content for i, (_, content) in enumerate(members)]
    return [b"\x00" + sound, *inside]


def make_target(reader: str) -> Callable[[bytes], None]:
    """input -> None; raises what the reader must not raise."""
    from dppo_jax.errors import SettingsError
    from tests import damage, readers

    folder = Path(tempfile.mkdtemp()) / "case"
    read: Any = readers.READERS[reader].read

    def run(data: bytes) -> None:
        damage.write(folder, case_of(reader, data))
        try:
            with damage.Watch(seconds=0) as watch:  # libFuzzer has the alarm.
                read(folder)
        except SettingsError:
            pass
        finally:
            damage.remove(folder)
        assert not watch.seen, watch.seen

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser("tests.fuzz")
    parser.add_argument("reader", choices=GUIDES)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--repeat", type=Path, help="read one input again")
    options = parser.parse_args(arguments)
    if options.repeat:
        make_target(options.reader)(options.repeat.read_bytes())
        print("read, or refused by a SettingsError")
        return
    try:
        import atheris
    except ImportError:
        sys.exit("error: atheris is not installed; run: pip install -e '.[fuzz]'")
    with atheris.instrument_imports(include=list(GUIDES[options.reader])):
        target = make_target(options.reader)
    corpus = Path(tempfile.mkdtemp())
    for i, seed in enumerate(seeds_of(options.reader)):
        (corpus / str(i)).write_bytes(seed)
    FOUND.mkdir(exist_ok=True)
    seconds = max(round(60 * options.minutes), 1)
    print(f"fuzzing {options.reader} for {seconds} s", flush=True)
    flags = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", "-max_len=8192"]
    flags += [f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={FOUND}{os.sep}"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
