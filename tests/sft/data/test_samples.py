"""Samples of a file: the same whatever the number of processes, and whatever was there from a run before."""

import gzip
import json
import multiprocessing
import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import datasets
import psutil
import pytest

from sft.config.own_keys import TrainFile
from sft.core.errors import UserError
from sft.data import samples
from sft.data.identity import OLD_NAMES
from sft.data.identity_files import read_identity_rows
from sft.data.identity_rows import SoughtNames
from sft.data.readers.row_file import RowFile
from sft.data.samples import row_facts, tokenise
from tests.support.encoding import ANSWERS_ALONE, MARKED, VARIED, encode_one_by_one, turns, with_template


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path):
    """Shards of a few rows, kept in a folder of the test's own."""
    monkeypatch.setattr(samples, "SHARD_BYTES", 4000)
    monkeypatch.setattr(samples, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, conversations: list[list[dict]]) -> Path:
    lines = [json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n" for messages in conversations]
    path.write_bytes(b"".join(lines))
    return path


def shards(folder: Path) -> dict[str, float]:
    """Name and time of writing of every shard in a cache."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_samples_and_shards_are_the_same_whatever_the_number_of_processes(tokenizer, tmp_path, monkeypatch, name):
    conversations, path = VARIED * 12, write(tmp_path / "rows.jsonl", VARIED * 12)
    raw = b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\n\n", 3)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    expected = encode_one_by_one(tokenizer, MARKED["smollm2"], conversations)
    fingerprints, found = set(), []
    for processes in (1, 2, 3):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / str(processes))
        rows = tokenise(RowFile(tmp_path / name), tokenizer, processes)
        assert list(zip(rows["input_ids"], rows["labels"], strict=True)) == expected
        assert rows["line"][:] == [1, 3, 5, *range(7, len(conversations) + 4)]
        fingerprints.add(rows._fingerprint)
        found.append({file.name: file.read_bytes() for file in (tmp_path / str(processes)).rglob("*.arrow")})
    assert len(fingerprints) == 1
    assert len(found[0]) > 5
    assert found[0] == found[1] == found[2]


def test_a_small_file_starts_no_process(tokenizer, tmp_path):
    before = os.times()
    assert len(tokenise(RowFile(write(tmp_path / "rows.jsonl", VARIED[:3])), tokenizer, 4)) == 3
    assert os.times().children_user == before.children_user
    assert len(shards(tmp_path / "cache")) == 1


@pytest.mark.parametrize(("processes", "place"), [(1, 92), (1, 94), (3, 92), (3, 94)])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b'{"messages": 5}\n', '"messages" is a number: it must be a list of turns'),
        (b'{"messages": [{"role": "user", "content": "refuse"}, {"role": "assistant", "content": "a"}]}\n',
         "its chat template refuses this conversation: no such words"),
        (b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]}\n',
         "the answer is empty, which would teach the model to say nothing"),
    ],
)  # fmt: skip
def test_the_first_bad_line_of_the_file_is_named(tokenizer, tmp_path, processes, place, bad, said):
    path = write(tmp_path / "rows.jsonl", [turns(f"{number} " + "q" * 100, "a") for number in range(200)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[place] = bad
    # Others after it: in the same batch, from one place or the other, and shards away.
    lines[place + 1], lines[place + 2], lines[150] = b"{\n", b'{"messages": []}\n', b"\xff\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError) as error:
        tokenise(RowFile(path), with_template(tokenizer, ANSWERS_ALONE), processes)
    assert str(error.value).startswith(f"{path}:{place + 1}: ")
    assert said in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_bad_line_is_told_before_the_place_where_the_file_cannot_be_read_on(tokenizer, tmp_path):
    lines = [json.dumps({"messages": turns(os.urandom(200).hex(), "a")}).encode() + b"\n" for _ in range(300)]
    cut = tmp_path / "rows.jsonl.gz"
    cut.write_bytes(gzip.compress(b"".join(lines))[:-20_000])
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz: cut short"):
        tokenise(RowFile(cut), tokenizer, 2)
    readable = zlib.decompressobj(wbits=31).decompress(cut.read_bytes()).count(b"\n")
    lines[readable - 15] = b"{\n"
    cut.write_bytes(gzip.compress(b"".join(lines))[:-20_000])
    for processes in (1, 2):
        with pytest.raises(UserError, match=rf"rows\.jsonl\.gz:{readable - 14}: not JSON"):
            tokenise(RowFile(cut), tokenizer, processes)


def test_a_file_without_a_row_is_refused(tokenizer, tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    with pytest.raises(UserError, match=r"empty\.jsonl: holds no row"):
        tokenise(RowFile(tmp_path / "empty.jsonl"), tokenizer)


def test_a_killed_run_goes_on_from_its_last_shard_and_leaves_no_process(tokenizer, tmp_path):
    path = write(tmp_path / "rows.jsonl", VARIED * 300)
    whole = encode_one_by_one(tokenizer, MARKED["smollm2"], VARIED) * 300
    run = multiprocessing.get_context("fork").Process(target=tokenise, args=(RowFile(path), tokenizer, 2))
    run.start()
    while len(shards(tmp_path / "cache")) < 10:
        assert run.is_alive(), "the run ended before it could be killed"
        time.sleep(0.01)
    workers = psutil.Process(run.pid).children()
    run.kill()
    run.join()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert not list((tmp_path / "cache").rglob("*.json")), "a part was taken for the whole"
    kept = shards(tmp_path / "cache")
    rows = tokenise(RowFile(path), tokenizer, 2)
    now = shards(tmp_path / "cache")
    assert kept == {name: now[name] for name in kept}
    assert len(now) > len(kept)
    assert list(zip(rows["input_ids"], rows["labels"], strict=True)) == whole


def test_a_file_that_grew_pays_for_its_new_rows_and_one_that_moved_for_none(tokenizer, tmp_path):
    path = write(tmp_path / "rows.jsonl", VARIED * 20)
    tokenise(RowFile(path), tokenizer, 1)
    before = shards(tmp_path / "cache")
    fingerprint = tokenise(RowFile(path.rename(tmp_path / "moved.jsonl")), tokenizer, 1)._fingerprint
    assert shards(tmp_path / "cache") == before
    rows = tokenise(RowFile(write(path, VARIED * 21)), tokenizer, 1)
    added = shards(tmp_path / "cache").keys() - before.keys()
    assert 1 <= len(added) <= 3
    assert len(rows) == len(VARIED) * 21
    assert rows._fingerprint != fingerprint


@pytest.mark.parametrize("processes", [1, 2])
def test_what_rows_say_of_a_name_is_gathered_on_the_way_and_kept_with_the_tokens(tokenizer, tmp_path, processes):
    path = str(write(tmp_path / "rows.jsonl", [*VARIED, turns("你是谁？", "我是黄大力。")] * 20))
    names = SoughtNames(("黄大力",), OLD_NAMES)
    assert len(tokenise(RowFile(path), tokenizer, processes, names)) == 20 * (len(VARIED) + 1)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.arrow*")}
    rows = read_identity_rows([TrainFile(path)], "黄大力", (), partial(facts_of, tokenizer))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.arrow*")} == kept
    assert rows.to_json() == read_identity_rows([TrainFile(path)], "黄大力").to_json()
    assert rows.rows_named >= 20
    lost = next(file for file in kept if file.suffix == ".json")
    lost.unlink()
    again = read_identity_rows([TrainFile(path)], "黄大力", (), partial(facts_of, tokenizer))
    assert again.to_json() == rows.to_json()
    assert {file for file in kept if file.stat().st_mtime_ns != kept[file]} == {lost}


def facts_of(tokenizer, file: TrainFile, names: SoughtNames):
    return row_facts(RowFile(file.path), tokenizer, 1, names)


def test_a_shard_that_was_deleted_is_written_again(tokenizer, tmp_path):
    path = write(tmp_path / "rows.jsonl", VARIED * 20)
    before = tokenise(RowFile(path), tokenizer, 1)["input_ids"][:]
    next((tmp_path / "cache").rglob("*.arrow")).unlink()
    assert tokenise(RowFile(path), tokenizer, 1)["input_ids"][:] == before


def test_a_file_that_changes_while_it_is_read_is_refused(tokenizer, tmp_path):
    path = write(tmp_path / "rows.jsonl", VARIED * 300)
    with ThreadPoolExecutor() as threads:
        run = threads.submit(tokenise, RowFile(path), tokenizer, 1)
        while not (run.done() or shards(tmp_path / "cache")):
            time.sleep(0.001)
        with open(path, "ab") as file:
            file.write(path.read_bytes().splitlines(keepends=True)[0])
        with pytest.raises(UserError, match=r"rows\.jsonl: changed while it was read"):
            run.result()


def test_a_process_that_is_killed_ends_the_run_with_what_to_do(tokenizer, tmp_path):
    path = write(tmp_path / "rows.jsonl", VARIED * 300)
    with ThreadPoolExecutor() as threads:
        before = set(psutil.Process().children())
        run = threads.submit(tokenise, RowFile(path), tokenizer, 2)
        while not (run.done() or shards(tmp_path / "cache")):
            time.sleep(0.001)
        (set(psutil.Process().children()) - before).pop().kill()
        with pytest.raises(UserError, match="set dataset_num_proc lower and start again"):
            run.result()


def test_a_file_of_many_shards_has_larger_ones_and_the_same_samples(tokenizer, tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", VARIED * 40)
    small = tokenise(RowFile(path), tokenizer, 1)
    monkeypatch.setattr(samples, "MANY_SHARDS", 4)
    monkeypatch.setattr(samples, "MOST_BYTES_OF_A_SHARD", 16_000)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "other")
    large = tokenise(RowFile(path), tokenizer, 1)
    assert large[:] == small[:]
    assert 2 < len(shards(tmp_path / "other")) < len(shards(tmp_path / "cache")) / 2
