"""`python -m experiments` lists what there is."""

from experiments import __main__ as listing
from experiments.configs import avoid
from tests.conftest import REPOSITORY


def test_every_program_and_configuration_is_listed(capsys):
    listing.main()
    said = capsys.readouterr().out
    names = [name for name, _ in listing.programs()]
    assert names[:3] == ["demo", "collect", "pretrain"] and {
        "render",
        "help",
    }.isdisjoint(names)
    assert len(names) == len(set(names)) >= 11
    assert "finetune           Fine-tune a policy" in said
    files = {name: variants for name, _, variants in listing.configurations()}
    folder = REPOSITORY / "experiments" / "configs"
    shared = {"demonstrated", "locomotion", "locomotion_others", "manipulation"}
    shared |= {"manipulation_demonstrated", "manipulation_others", "randomized"}
    shared |= {"short_ogpo"}
    everything = {path.stem for path in folder.glob("[a-z]*.py")}
    assert set(files) == everything - shared
    assert files["avoid"] == avoid.VARIANTS
    for name in ("lift", "can", "square", "transport"):
        assert {"fast", "gaussian_transformer", "ibrl"} < set(files[name])
    for variant in ("m1_ogpo", "v0_8", "paper"):
        assert variant in said
    assert max(map(len, said.splitlines())) <= 96
    # Purposes stand in a column of their own.
    purpose = "Show how policies explore before fine-tuning"
    assert f"  studies.structured_exploration\n{'':21s}{purpose}\n" in said
    assert "README.md begins" in said


def test_an_installed_package_names_no_file_that_it_lacks(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(listing.helps, "FOLDER", tmp_path / "experiments")
    monkeypatch.setattr(listing, "programs", lambda: ())
    listing.main()
    assert "README" not in capsys.readouterr().out


def test_purposes_end_where_the_command_begins():
    text = '"""Do it: python -m experiments.it\n\nMore.\n"""'
    assert listing._purpose(text) == "Do it"
    assert listing._purpose('"""Two\nlines of it.\n\nMore.\n"""') == "Two lines of it"
