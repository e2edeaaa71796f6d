"""Prints the keys of our own with their defaults, as the tables of docs/training.md and docs/training.zh-CN.md.

    python -m tests.support.own_keys_table              # --write puts them into the pages

Key, default and English come from `sft/config/own_keys.py`; the Chinese stands here, since `--help` is English.
"""

import dataclasses
import json
import sys
from typing import Any

from sft.config.own_keys import OwnKeys
from sft.core.paths import REPOSITORY

ENGLISH, CHINESE = "training.md", "training.zh-CN.md"
HEADS = {ENGLISH: ("key", "default", "what it does"), CHINESE: ("键", "默认", "作用")}
MEANINGS = {
    "train_file": "训练文件：JSON Lines 或 JSON 数组、CSV、Parquet、数据集文件夹或 hub id；"
    "内容是对话，或一问一答。也可以是多个，每个写作 {path, weight, columns}："
    "权重 1 每行取一次，0.3 随机取十分之三，2 每行取两次。",
    "eval_file": "不参与训练的数据文件，用来算留出集损失 eval_loss。",
    "columns": "别的列名各装着什么，对所有没有另行说明的数据文件有效，"
    "例如 {question: 用户, answer: 客服}；还有 context、system、history、messages、"
    "tools。",
    "chat_template_kwargs": "除消息外传给对话模板的参数，训练和每次提问都用，例如 {enable_thinking: false}。",
    "loss_on": "损失落在哪里：每个回答、每行最后一个回答，或每个 token。",
    "split_turns": "若对话模板在后面还有对话时把回答写成另一个样子（例如去掉思考），"
    "就让每个回答各成一个样本，与提问时一致。",
    "truncation": "样本超过 max_length 时：停下（error）、丢弃（drop）或截尾（keep_start）。"
    "丢弃和截断的样本与 token 都会计数并显示。",
    "control_tokens": "数据文字里含有模型的控制 token（如 <|im_end|>，会变成真的控制 token）时："
    "报出数目和第一处（warn），或停下（refuse）。",
    "eval_prompts": "训练前、中、后要问的问题。",
    "eval_prompts_steps": "每隔多少步问一遍评测问题；0 表示只在训练前后问。",
    "eval_prompts_system": "评测问题和评分问题之前的系统消息，'' 表示不用；默认用每行训练数据开头都有的那一条。",
    "eval_prompts_generation": "生成回答所用的 Transformers GenerationConfig 字段，例如 {max_new_tokens: 100}。",
    "identity_name": "要模型学会的名字；写了它，每次评测都会评分。",
    "identity_old_names": "模型可能仍会自称的名字，在常见模型的名字之外再加。",
    "score_file": "身份问题、普通问题和文段的 YAML 文件；默认用仓库自带的。",
    "score_seconds": "一次评分可用的秒数；到时没有问完，每个比例都会注明。",
    "stop_when_identity": "有这个比例的身份问题答出了名字，就结束训练。",
    "stop_patience": "stop_when_identity 要连续多少次评测达到才算数。",
    "early_stopping_patience": "留出集损失连续多少次评测没有改善就结束训练；"
    "再加 load_best_model_at_end: true 则以最好的权重结束。",
    "keep_best": "留住最好的检查点并以它结束：按身份（identity），或按身份与保留的平衡（balance）。",
    "resume": "训练目录里有未完成的训练时：从最新的完整检查点续训（auto），"
    "挪到一旁重新开始（never），或从给出路径的检查点续训。",
    "resume_anyway": "设置或数据变了也照样从检查点续训。",
    "dry_run": "检查一切，打印训练计划后结束；不加载权重。",
    "card": "与 dry_run 同用：为一块不在这台机器上、有这么多 GB 的 GPU 做计划，例如 24。",
    "save_every_minutes": "超过多少分钟没有检查点也存一个；0 表示不这样存。",
    "on_bad_step": "某一步表明训练已坏（如损失为 NaN）时：停下（stop），或只警告（warn）。",
    "language": "警告、结论和报告所用的语言：zh 或 en；默认由 locale 决定，locale 两者都没指明时两种都显示。",
}


def main() -> None:
    """Print both tables, the English one first, or write each at the end of its page."""
    for page in (ENGLISH, CHINESE):
        if sys.argv[1:] == ["--write"]:
            path = REPOSITORY / "docs" / page
            before, _, _ = path.read_text(encoding="utf-8").partition(_line(HEADS[page]))
            path.write_text(f"{before}{table(page)}\n", encoding="utf-8")
        else:
            print(table(page), end="\n\n")


def table(page: str) -> str:
    """The table of one page in Markdown, a line for each key in the order of the code."""
    lines = [_line(HEADS[page]), _line(("---",) * len(HEADS[page]))]
    for key in dataclasses.fields(OwnKeys):
        lines.append(_line((_code(key.name), _code(_default(key)), _as_text(_meaning(key, page)))))
    return "\n".join(lines)


def _meaning(key: dataclasses.Field, page: str) -> str:
    choices = [_code(choice) for choice in key.metadata.get("choices", ())]
    if page == CHINESE:
        return MEANINGS[key.name] + (f"可取 {'、'.join(choices)}。" if choices else "")
    return key.metadata["help"] + (f" One of {', '.join(choices)}." if choices else "")


def _default(key: dataclasses.Field) -> str:
    value: Any = getattr(OwnKeys(), key.name)
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return f"`{text}`"


def _as_text(text: str) -> str:
    """Markdown that shows `text` as it is: neither HTML nor the end of a cell."""
    return text.replace("<", "&lt;").replace("|", "\\|")


if __name__ == "__main__":
    main()
