import pytest

from patchscale.files import atomic_write, write_json


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_parents_are_made(tmp_path):
    write_json(tmp_path / "a" / "b.json", [1])
    assert (tmp_path / "a" / "b.json").read_text() == "[\n  1\n]\n"
