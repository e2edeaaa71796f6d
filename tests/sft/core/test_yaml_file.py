"""YAML that people write: its value, its lines, and what is refused with its line."""

import pytest

from sft.core.errors import UserError
from sft.core.yaml_file import read_yaml


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a YAML file."""

    def read(content: bytes):
        path = tmp_path / "file.yaml"
        path.write_bytes(content)
        return read_yaml(path)

    return read


def test_the_nodes_know_their_lines_and_the_value_is_plain_data(read):
    root, value = read("# first\nlora_r: 8\nname: 黄大力\n".encode())
    assert value == {"lora_r": 8, "name": "黄大力"}
    assert [key.start_mark.line + 1 for key, _ in root.value] == [2, 3]


def test_a_byte_order_mark_is_skipped_and_an_empty_file_has_no_value(read):
    assert read(b"\xef\xbb\xbfa: 1\n")[1] == {"a": 1}
    assert read(b"# nothing\n") == (None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", "file.yaml:3: not YAML: "),
        (b"a: &many [1, 1]\nb: *many\n", "file.yaml:2: not YAML: aliases (*name) are not taken: write it out"),
        (b"a: " + b"[" * 100_000, "file.yaml: not YAML: nested too deeply"),
        (b"a: !!python/object/apply:os.getcwd []\n", "file.yaml:1: not YAML: "),
        ("name: 黄大力\n".encode("gbk"), "file.yaml: cannot be read: not UTF-8"),
    ],
    ids=["unclosed list", "alias", "depth", "code", "gbk"],
)
def test_what_cannot_be_read_is_refused_with_its_line(read, content, message):
    with pytest.raises(UserError) as refusal:
        read(content)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
