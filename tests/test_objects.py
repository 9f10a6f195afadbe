"""Loading objects by name, and the messages for names that fail."""

import os
import sys

import pytest

from dppo_jax.objects import call, is_reference, load_object, takes


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file into an empty current directory, each time with a new time."""
    monkeypatch.chdir(tmp_path)
    times = iter(range(1, 100))

    def write(name, source):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        os.utime(path, (now := next(times), now))
        return path

    return write


@pytest.mark.parametrize(
    "name, expected",
    [
        ("my_module:make", True),
        ("package.module:make", True),
        ("file.py:make", True),
        ("../my-tasks v2/file.py:make", True),
        ("C:/tasks/file.py:make", True),
        ("avoid", False),
        ("file.py", False),
        ("my_module:", False),
        (":make", False),
        ("gymnasium:Hopper-v5", False),
        ("gymnasium:module:Env-v0", False),
        ("my-module:make", False),
        (None, False),
    ],
)
def test_the_form_of_a_reference(name, expected):
    assert is_reference(name) is expected
    if not expected:
        with pytest.raises(ValueError, match="names no object; write 'module:object'"):
            load_object(name)


def test_a_module_is_imported():
    assert load_object("dppo_jax.objects:load_object") is load_object


def test_a_file_is_found_from_the_current_directory_and_absolutely(write):
    path = write("tasks/reach.py", "def make():\n    return 7\n")
    relative = load_object("tasks/reach.py:make")
    assert relative() == 7
    assert load_object("./tasks/../tasks/reach.py:make") is relative
    assert load_object(f"{path}:make") is relative


def test_a_file_is_executed_again_only_after_it_changed(write):
    write("count.py", "ran = []\nvalue = 1\n")
    first = load_object("count.py:ran")
    assert load_object("count.py:ran") is first
    write("count.py", "ran = []\nvalue = 2\n")  # as long as before
    assert load_object("count.py:ran") is not first
    assert load_object("count.py:value") == 2


def test_a_file_hides_no_module_and_two_files_do_not_hide_each_other(write):
    import json

    write("json.py", "dumps = 'mine'\n")
    write("other/json.py", "dumps = 'another'\n")
    names = ("json.py:dumps", "other/json.py:dumps", "json.py:dumps")
    found = [load_object(name) for name in names]
    assert found == ["mine", "another", "mine"]
    assert sys.modules["json"] is json and load_object("json:dumps") is json.dumps


def test_data_classes_of_a_file_find_their_module(write):
    source = "from __future__ import annotations\nimport dataclasses, typing\n"
    source += (
        "@dataclasses.dataclass\nclass Size:\n    length: typing.ClassVar[int] = 3"
    )
    write("size.py", source)
    size = load_object("size.py:Size")
    assert sys.modules[size.__module__].Size is size


@pytest.mark.parametrize(
    "name, message",
    [
        ("absent.py:make", r"no file absent.py, looked for at .*absent.py; a relative"),
        ("absent:make", "no module 'absent'; put its folder on PYTHONPATH.*absent.py:"),
        ("json.absent:make", "no module 'json.absent'; "),
        ("some.py:mkae", "some.py has no 'mkae', but make"),
        ("some.py:absent", "some.py has no 'absent', but make, other"),
        ("json:dumsp", "json has no 'dumsp', but dump, dumps"),
        ("empty.py:make", "empty.py has no 'make', nor any other function"),
        ("divides.py:make", r"divides.py fails when .*ZeroDivisionError: .*Correct it"),
        ("leaves.py:make", r"leaves.py fails when it is imported: SystemExit: 3"),
        ("broken.py:make", r"broken.py fails when it is imported: SyntaxError"),
        ("misses.py:make", r"misses.py fails .*No module named 'absent'.*PYTHONPATH"),
        ("misses_too:make", r"misses_too fails .*No module named 'absent'"),
    ],
)
def test_a_name_that_cannot_be_loaded_says_why(write, monkeypatch, name, message):
    path = write(
        "some.py", "import os\ndef make(): ...\ndef other(): ...\n_hidden = 1\n"
    )
    write("empty.py", "import os\n")
    write("divides.py", "1 / 0\n")
    write("leaves.py", "raise SystemExit(3)\n")
    write("broken.py", "def make(:\n")
    write("misses.py", "import absent\n")
    write("misses_too.py", "import absent\n")
    monkeypatch.syspath_prepend(path.parent)
    before = set(sys.modules)
    for _ in range(2):  # A module that failed must fail again.
        with pytest.raises(ValueError, match=message) as raised:
            load_object(name, hint="It could be a colour.")
        found = "fails" in message
        assert str(raised.value).endswith(" It could be a colour.") is not found
    left = {n for n in set(sys.modules) - before if n.startswith("_dppo_jax_file_")}
    assert len(left) == (name.startswith(("some", "empty")))


def test_a_failed_reload_keeps_the_loaded_module(write):
    write("task.py", "class Task:\n    pass\n")
    task = load_object("task.py:Task")
    write("task.py", "1 / 0\n")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        load_object("task.py:Task")
    assert sys.modules[task.__module__].Task is task


def test_functions_get_only_the_arguments_they_take():
    def function(*, size, engine="none", **rest):
        return size, engine, rest

    offered = dict(engine="mjx", colour="red")
    assert call("f", function, options=dict(size=1), offered=offered) == (1, "mjx", {})
    options = dict(size=1, engine="own", other=2)
    result = call("f", function, options=options, offered=offered)
    assert result == (1, "own", {"other": 2})
    assert takes(function, "engine") and not takes(function, "rest")
    assert not takes(3, "engine")


@pytest.mark.parametrize(
    "function, options, message",
    [
        (lambda *, size: size, {}, r"f\(\*, size\) cannot .*missing.*'size'"),
        (lambda: 1, dict(sise=2), r"f\(\) cannot .*arguments \(sise\).*unexpected"),
        (3, {}, "f is a int, not a function"),
    ],
)
def test_arguments_that_do_not_fit_are_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        call("f", function, options=options)


def test_an_error_inside_a_function_passes_unchanged():
    def function():
        raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        call("f", function)
