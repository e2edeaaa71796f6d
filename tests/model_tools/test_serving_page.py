"""The page on serving: both languages give the same commands, and those of this repository are ones it takes."""

import argparse
import re
import shlex

import pytest

from model_tools.__main__ import VERBS
from sft.core.paths import REPOSITORY
from sft.core.verbs import verbs_of

PAGES = [(REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("serving.md", "serving.zh-CN.md")]


def blocks(page: str) -> list[str]:
    return re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", page)


COMMANDS = [line.split() for line in "".join(blocks(PAGES[0])).splitlines() if "model_tools" in line]


def test_both_languages_have_the_same_commands_and_sections():
    english, chinese = PAGES
    assert len(blocks(english)) == 6
    assert blocks(english) == blocks(chinese)
    assert re.findall("(?m)^#+ ", english) == re.findall("(?m)^#+ ", chinese)
    assert "\n## GGUF: llama.cpp, Ollama, LM Studio\n" in english
    assert "\n## GGUF：llama.cpp、Ollama、LM Studio\n" in chinese


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_this_repository_is_one_it_takes(command):
    python, dash, package, verb, *arguments = shlex.split(" ".join(command))
    assert (python, dash, package) == ("python", "-m", "model_tools")
    parser = argparse.ArgumentParser(exit_on_error=True)
    verbs_of(VERBS)[verb].add_arguments(parser)
    parser.parse_args(arguments)


def test_the_client_s_program_is_python():
    (program,) = [block for block in blocks(PAGES[0]) if "import OpenAI" in block]
    compile("\n".join(line[4:] for line in program.splitlines()), "serving.md", "exec")
