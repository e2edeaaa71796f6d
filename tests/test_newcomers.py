"""The first ten minutes of two people: one comes from XTuner and reads Chinese, one has customer service in English."""

import csv
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from tests.support.documents import CHINESE as CHINESE_PAGE
from tests.support.documents import ENGLISH, read
from tests.support.encoding import STOCK
from tests.support.workplace import SHORT, start

CHINESE = re.compile("[一-鿿]")
RECIPE = "recipes/huangdali.yaml"
RUN = "work_dirs/huangdali"

pytestmark = pytest.mark.commands


def type_in(folder: Path, locale: str, *commands: str, codes: tuple[int, ...] = (0,), typed: str = "") -> str:
    """What the commands print, typed one after the other in a shell of this locale."""
    said = ""
    for command in commands:
        process = start(command, folder, locale)
        printed, _ = process.communicate(typed, timeout=500)
        assert process.returncode in codes, printed
        assert "Traceback" not in printed
        said += printed
    return said


def test_from_the_tutorials_file_to_a_chat_in_chinese(here):
    """The commands are those of the Chinese README and pages."""
    pages = "".join(read(name.replace(".md", CHINESE_PAGE)) for name in ENGLISH)

    def do(*commands: str, codes=(0,), typed="") -> str:
        assert all(command in pages for command in commands)
        return type_in(here, "zh_CN.UTF-8", *commands, codes=codes, typed=typed)

    recipe = yaml.safe_load((here / RECIPE).read_text(encoding="utf-8"))
    (here / RECIPE).write_text(yaml.safe_dump(recipe | {"score_seconds": 60}, allow_unicode=True), encoding="utf-8")
    for name in ("repaired.jsonl", "data/huangdali.jsonl"):
        (here / name).unlink()
    do(
        "python -m data_tools repair assistant_Tuner.jsonl repaired.jsonl --questions Q_list.txt",
        "python -m data_tools rename repaired.jsonl data/huangdali.jsonl --old 尖米 --new 黄大力 --own-name",
    )
    assert "我是黄大力" in (here / "data/huangdali.jsonl").read_text(encoding="utf-8")
    assert "数据行" in do("python -m data_tools inspect data/huangdali.jsonl --was 尖米")
    planned = do(f"python train_sft.py {RECIPE} --dry_run")
    assert "警告：" in planned
    assert "warning: " not in planned
    said = do(f"deepspeed --quiet train_sft.py {RECIPE}")
    verdict = said[said.index("结论：") :]
    assert "训练前有" in verdict
    assert verdict.rstrip().endswith(f"python -m model_tools diagnose {RUN}")  # two steps teach no name
    assert type_in(here, "zh_CN.UTF-8", f"python -m model_tools verdict {RUN}") == verdict
    page = (here / RUN / "report.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    assert "Answers before and after" not in page
    assert CHINESE.search(type_in(here, "zh_CN.UTF-8", f"python -m model_tools diagnose {RUN}", codes=(0, 1)))
    assert "黄大力" not in do(f"python -m model_tools chat {RUN} --base-too", typed="你是谁？\n/exit\n")


def test_two_hundred_rows_of_customer_service_and_a_local_qwen_in_english(here, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = STOCK["qwen2"]
    (here / "models/smollm2-135m-instruct").rename(here / "models/qwen")
    tokenizer.save_pretrained(here / "models/qwen")
    with open(here / "data/service.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["customer", "agent"])
        rows.writerows([f"Where is order {number}?", f"Order {number} is on its way."] for number in range(200))
    recipe = yaml.safe_load((here / "recipes/qwen2_5_7b_instruct.yaml").read_text(encoding="utf-8"))
    recipe |= SHORT | {
        "model_name_or_path": "models/qwen",
        "train_file": "data/service.csv",
        "columns": {"question": "customer", "answer": "agent"},
        "output_dir": "work_dirs/service",
        "eval_prompts": ["Where is order 7?"],
        "max_length": 256,
        "logging_steps": 1,
    }
    del recipe["identity_name"], recipe["score_seconds"]
    (here / "recipes/service.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    said = type_in(
        here,
        "en_US.UTF-8",
        "python -m data_tools inspect data/service.csv --columns question=customer,answer=agent",
        "python train_sft.py recipes/service.yaml --dry_run",
        "python train_sft.py recipes/service.yaml",
        "python -m model_tools verdict work_dirs/service",
    )
    assert not CHINESE.search(said), CHINESE.search(said)
    verdict = said[said.index("verdict: ") :]
    assert verdict.startswith("verdict: The training loss went from ")
    assert "  Where is order 7?\n    before: " in verdict
    assert verdict.count("  python -m model_tools chat work_dirs/service\n") == 2
    assert "Where is order 7?" in (here / "work_dirs/service/report.html").read_text(encoding="utf-8")
    type_in(here, "en_US.UTF-8", "python -m model_tools chat work_dirs/service", typed="Where is order 7?\n/exit\n")
