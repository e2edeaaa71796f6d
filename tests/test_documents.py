"""What a person reads: both languages say the same, links lead somewhere, and commands are ones that are taken."""

import argparse
import dataclasses
import re
import shlex
import shutil
import subprocess

import pytest

from sft.config.own_keys import OwnKeys
from sft.config.settings_parser import SettingsParser
from sft.core.paths import REPOSITORY
from tests.support import own_keys_table
from tests.support.documents import (
    CHINESE,
    ENGLISH,
    PAGES,
    VERBS,
    anchors,
    code,
    commands,
    figures,
    headings,
    links,
    read,
    without_code,
)

COMMANDS = sorted({command for name in ENGLISH for command in commands(read(name))})
OURS = [command for command in COMMANDS if re.search("python -m (data|model)_tools ", command)]
RUNS = [command for command in COMMANDS if "train_sft.py" in command and "learning_rat " not in command]
# Words that say something else than is meant, or another word for what has one (docs/architecture.md, Words).
ENGLISH_SLIPS = r"\btold\b|lost in silence|\bgoes on\b|\bwent on\b|is no number|for want of|\ban? account of"
CHINESE_SLIPS = r"动词|流式|打分|散布|(?<![没所])有监督|接着训练|运行目录|system 消息|底座(?!模型)|软件栈|控制符"


def chinese(english: str) -> str:
    return english.replace(".md", CHINESE)


@pytest.mark.parametrize("english", ENGLISH)
def test_both_languages_have_the_same_headings(english):
    levels = [[level for level, _ in headings(read(name))] for name in (english, chinese(english))]
    assert levels[0] == levels[1]
    assert levels[0][0] == 1


@pytest.mark.parametrize("english", ENGLISH)
def test_both_languages_have_the_same_commands_and_files(english):
    assert code(read(english)) == code(read(chinese(english)))


@pytest.mark.parametrize("english", ENGLISH)
def test_both_languages_have_the_same_figures(english):
    there, here = figures(read(english)), figures(read(chinese(english)))
    assert (there - here, here - there) == ({}, {})


@pytest.mark.parametrize("english", ENGLISH)
def test_each_language_links_to_the_other_at_the_top_and_keeps_to_itself_below(english):
    for name, other in ((english, chinese(english)), (chinese(english), english)):
        first, *rest = links(read(name))
        assert (REPOSITORY / name).parent / first == REPOSITORY / other
        inside = {(REPOSITORY / name).parent / link.partition("#")[0] for link in rest}
        assert not inside & {REPOSITORY / page for page in PAGES if (CHINESE in page) != (CHINESE in name)}


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_anchors_resolve(name):
    for link in links(read(name)):
        path, _, anchor = link.partition("#")
        if re.match("[a-z]+:", path):
            continue
        target = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_is_about_a_page_and_leads_to_every_other(readme):
    page = read(readme)
    assert len(page.splitlines()) < 150
    others = {name for name in PAGES if (CHINESE in name) == (CHINESE in readme)} - {readme}
    assert others - set(links(page)) == set()


@pytest.mark.parametrize("name", PAGES)
def test_words_are_those_of_the_field(name):
    slips = CHINESE_SLIPS if CHINESE in name else ENGLISH_SLIPS
    assert re.findall(slips, without_code(read(name))) == []


@pytest.mark.parametrize("page", [own_keys_table.ENGLISH, own_keys_table.CHINESE])
def test_the_page_on_training_has_every_key_of_our_own_as_the_code_has_it(page):
    assert own_keys_table.MEANINGS.keys() == {key.name for key in dataclasses.fields(OwnKeys)}
    assert own_keys_table.table(page) in read(f"docs/{page}")


@pytest.mark.parametrize("command", OURS)
def test_a_verb_takes_the_arguments_that_the_documents_give_it(command):
    package, verb, *arguments = shlex.split(command.partition("python -m ")[2])
    parser = argparse.ArgumentParser()
    VERBS[package][verb].add_arguments(parser)
    parser.parse_args(arguments)


@pytest.mark.parametrize("command", RUNS)
def test_a_run_takes_the_keys_that_the_documents_give_it(command):
    recipe, *overrides = shlex.split(command.partition("train_sft.py ")[2])
    assert recipe == "recipes/mine.yaml" or (REPOSITORY / recipe).is_file()
    _, unknown = SettingsParser().parse_known_args([recipe, *overrides])
    assert unknown == []


def test_the_program_that_asks_a_server_is_python():
    lines = code(read("docs/serving.md"))
    program = lines[lines.index("from openai import OpenAI") :]
    compile("\n".join(program[: program.index("print(answer.choices[0].message.content)") + 1]), "serving.md", "exec")


def test_make_alone_lists_every_target_and_changes_nothing(tmp_path):
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    listed = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    [targets] = re.findall(r"(?m)^\.PHONY: (.+)$", read("Makefile"))
    assert re.findall(r"(?m)^make ([a-z-]+) +\S", listed) == targets.split()
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]
