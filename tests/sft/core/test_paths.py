"""A recipe's files are found from the working directory, or else in the repository."""

from sft.core.paths import REPOSITORY, resolve_paths


def test_the_working_directory_comes_before_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = {"deepspeed": "ds_configs/zero2.json", "learning_rate": "ds_configs"}
    resolve_paths(chosen)
    assert chosen == {"deepspeed": str(REPOSITORY / "ds_configs/zero2.json"), "learning_rate": "ds_configs"}

    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs/zero2.json").write_text("{}")
    chosen = {"deepspeed": "ds_configs/zero2.json"}
    resolve_paths(chosen)
    assert chosen == {"deepspeed": "ds_configs/zero2.json"}


def test_each_of_several_files_is_looked_for_and_what_is_nowhere_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = {"train_file": [{"path": "README.md", "weight": 0.5}, {"path": "none.jsonl"}, "no mapping"]}
    resolve_paths(chosen)
    found = {"path": str(REPOSITORY / "README.md"), "weight": 0.5}
    assert chosen == {"train_file": [found, {"path": "none.jsonl"}, "no mapping"]}


def test_a_deepspeed_configuration_written_in_the_recipe_is_no_path():
    for inline in ('{"zero_optimization": {"stage": 2}}' + " " * 5000, {"zero_optimization": {"stage": 2}}, ""):
        chosen = {"deepspeed": inline}
        resolve_paths(chosen)
        assert chosen == {"deepspeed": inline}
