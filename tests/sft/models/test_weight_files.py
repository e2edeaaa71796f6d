"""Weights read as they lie on the disk: the same values in any format, and no half file taken for a whole one."""

import json
import math
import os

import pytest
import torch
from safetensors.torch import save_file

from sft.core.errors import UserError
from sft.models.weight_files import WeightFiles, read_headers
from tests.support.malicious_pickle import Call

WEIGHTS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(6000).to(torch.bfloat16).view(2, 3000),
    "c.count": torch.tensor(7),
    "d.empty": torch.empty(0, 4),
}


def write(folder, ending: str, shards: int):
    folder.mkdir()
    stem = "model" if ending == "safetensors" else "pytorch_model"
    names, where = sorted(WEIGHTS), {}
    for shard in range(shards):
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{shard + 1:05}-of-{shards:05}.{ending}"
        part = {name: WEIGHTS[name] for name in names[shard::shards]}
        save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
        where |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_tensors_are_read_one_by_one_as_they_were_written(tmp_path, ending, shards):
    files = WeightFiles(write(tmp_path / "model", ending, shards))
    assert files.tensors.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(files.read(name), value)
        assert files.read(name).dtype == value.dtype
        assert b"".join(files.chunks(name)) == value.flatten().view(torch.uint8).numpy().tobytes()
        assert (files.tensors[name].shape, files.tensors[name].bytes) == (tuple(value.shape), value.nbytes)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_part_of_a_tensor_is_read_from_where_it_lies(tmp_path, ending):
    files, part = WeightFiles(write(tmp_path / "model", ending, 1)), torch.empty(700, dtype=torch.bfloat16)
    files.read_ahead("b.weight")
    files.read_part("b.weight", 2900, part)
    assert torch.equal(part, WEIGHTS["b.weight"].flatten()[2900:3600])


@pytest.mark.parametrize(
    "read", [WeightFiles.read, lambda files, name: list(files.chunks(name))], ids=["read", "chunks"]
)
def test_a_file_that_is_cut_short_while_it_is_read_is_reported(tmp_path, read):
    files = WeightFiles(write(tmp_path / "model", "safetensors", 1))
    os.truncate(tmp_path / "model" / "model.safetensors", files.tensors["b.weight"].start + 100)
    with pytest.raises(
        UserError, match=r"model\.safetensors: was cut short while it was read: copy or download it again"
    ):
        read(files, "b.weight")


def test_the_fingerprint_is_of_the_weights_and_not_of_their_files(tmp_path):
    kinds = [("safetensors", 1), ("safetensors", 2), ("bin", 1), ("bin", 2)]
    folders = [write(tmp_path / f"{ending}{shards}", ending, shards) for ending, shards in kinds]
    assert len({WeightFiles(folder).fingerprint() for folder in folders}) == 1


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype"])
def test_any_other_weights_have_another_fingerprint(tmp_path, change):
    before = WeightFiles(write(tmp_path / "model", "safetensors", 1)).fingerprint()
    other = {name: value.clone() for name, value in WEIGHTS.items()}
    if change == "value":
        other["b.weight"][0, 0] += 1
    elif change == "name":
        other["z"] = other.pop("a.weight")
    elif change == "shape":
        other["a.weight"] = other["a.weight"].view(4, 3)
    else:
        other["a.weight"] = other["a.weight"].view(torch.int32)
    save_file(other, tmp_path / "model" / "model.safetensors")
    assert WeightFiles(tmp_path / "model").fingerprint() != before


def test_an_index_cannot_point_out_of_its_folder(tmp_path):
    folder = write(tmp_path / "model", "safetensors", 2)
    index = folder / "model.safetensors.index.json"
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(UserError, match="is missing"):
        WeightFiles(folder)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: os.truncate(file, file.stat().st_size - 1), "bytes long, and its header says"),
        (lambda file: os.truncate(file, 20), "has no header that can be read"),
        (lambda file: os.truncate(file, 3), "has no header that can be read"),
        (lambda file: file.write_bytes(b"\xff" * 100), "has no header that can be read"),
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "bytes long, and its header says"),
        (lambda file: save_file({"other": torch.zeros(1)}, file), "lacks a.weight"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
def test_a_shard_that_is_not_whole_is_named(tmp_path, spoil, said):
    folder = write(tmp_path / "model", "safetensors", 2)
    shard = folder / "model-00001-of-00002.safetensors"
    spoil(shard)
    with pytest.raises(UserError, match=f"{shard.name}: .*{said}"):
        WeightFiles(folder)


PLACED = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        [1, 2],
        {"a": 1},
        {"a": [1]},
        *({"a": PLACED | {"data_offsets": offsets}} for offsets in (None, [0], ["0", "4"], [0, 4.5], [0, math.nan])),
        *({"a": PLACED | {"shape": shape}} for shape in ("one", [math.nan], 1)),
        "[" * 100_000,
    ],
    ids=lambda header: str(header)[:80],
)
def test_a_header_that_describes_no_tensors_is_named(tmp_path, header):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    headers = read_headers(tmp_path)
    assert ["has no header that can be read" in problem for problem in headers.problems] == [True]
    assert not headers.tensors


def test_headers_are_read_on_after_the_first_problem(tmp_path):
    folder = write(tmp_path / "model", "safetensors", 3)
    first, second, third = sorted(folder.glob("*.safetensors"))
    first.unlink()
    os.truncate(second, 20)
    headers = read_headers(folder)
    assert [problem.split(": ")[0] for problem in headers.problems] == [str(first), str(second)]
    assert headers.files == 2
    assert {tensor.file for tensor in headers.tensors.values()} == {third}


def test_a_type_that_torch_does_not_have_is_named_and_not_read(tmp_path):
    header = json.dumps({"packed": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    headers = read_headers(tmp_path)
    assert (headers.problems, headers.tensors["packed"].dtype_name) == ([], "F4")
    with pytest.raises(UserError, match=r"model\.safetensors: holds tensors of type F4, which cannot be read here"):
        WeightFiles(tmp_path)


def test_a_pickled_shard_that_would_run_code_is_refused(tmp_path):
    torch.save({"a.weight": Call(os.mkdir, str(tmp_path / "mark"))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: asks for posix\.mkdir, which is no data"):
        WeightFiles(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_a_broken_index_is_reported(tmp_path):
    folder = write(tmp_path / "model", "safetensors", 2)
    for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UserError, match=r"index\.json: is no index of weight files"):
            WeightFiles(folder)
