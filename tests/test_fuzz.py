"""What `make fuzz` gives a reader; the fuzzing itself needs atheris."""

import pytest

from tests import damage, fuzz, readers


@pytest.mark.parametrize("reader", fuzz.GUIDES)
def test_seeds_stand_for_sound_files(reader, tmp_path, monkeypatch):
    """The file itself, and each of its members."""
    monkeypatch.chdir(tmp_path)
    sound, seeds = readers.READERS[reader].sound(), fuzz.seeds_of(reader)
    (file,) = [name for name in ("a.pt", "train.npz") if name in sound]
    assert len(seeds) == 1 + len(damage.unzipped(sound[file]))
    for seed in seeds:
        case = fuzz.case_of(reader, seed)
        assert case.keys() == sound.keys()
        assert damage.unzipped(case[file]) == damage.unzipped(sound[file])
    fuzz.make_target(reader)(seeds[-1])


@pytest.mark.parametrize("reader", fuzz.GUIDES)
def test_an_error_that_a_reader_must_not_raise_ends_the_fuzzing(reader, monkeypatch):
    target = fuzz.make_target(reader)
    target(b"")
    target(bytes([fuzz.WHOLE]) + damage.PICKLE)

    def fail(folder):
        raise KeyError("unexpected")

    broken = readers.READERS[reader]._replace(read=fail)
    monkeypatch.setitem(readers.READERS, reader, broken)
    with pytest.raises(KeyError, match="unexpected"):
        fuzz.make_target(reader)(b"")
