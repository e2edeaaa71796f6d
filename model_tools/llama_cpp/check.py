"""Compares what llama.cpp makes of a GGUF file with what the model is: its prompts, its tokens, its ends, its answers.

In: the file and the model's folder. Out: what was found, as lines, and whether something is wrong.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from model_tools.checkpoints.asked import ANSWER_TOKENS, Asked
from model_tools.llama_cpp import engine
from model_tools.llama_cpp.ollama_template import conversation
from model_tools.merging import verify
from sft.core.console import waiting
from sft.core.errors import UserError
from sft.core.text import counted, one_line
from sft.models.chat_template import ChatTemplate, common_start
from sft.models.generate import end_tokens, read_settings, reply_to_all, room_for
from sft.models.loading import load_model
from sft.models.weight_files import WeightFiles

UNQUANTISED = ("f32", "f16", "bf16")  # types in which a model's answers are expected to stay what they are
# What is written in all ways that tokenizers differ over.
WORDS = (
    "你是助手：\n  一、二。", " 你好，\n\n世界？", "Two  spaces,\tand  more.\n", "I've 12345 words, é 龘 🙂👍🏽",
    "**好**，\n```py\nx = 1\n```", "再见！",
)  # fmt: skip
SHOWN = 60


@dataclass
class Findings:
    """Lines for a person, and whether one of them says that the file is not what the model is."""

    lines: list[str] = field(default_factory=list)
    is_wrong: bool = False

    def add(self, what: str, text: str, *, is_wrong: bool = False) -> None:
        """Add a line about one thing that was compared."""
        self.lines.append(f"{what:<14} {'WRONG: ' if is_wrong else ''}{text}")
        self.is_wrong |= is_wrong


def compare(gguf: Path, model: Path, tokenizer: PreTrainedTokenizerBase, kind: str, asked: Asked) -> Findings:
    """Let llama.cpp open the file, and compare."""
    findings = Findings()
    most = room_for(ANSWER_TOKENS, tokenizer)
    with waiting("asking llama.cpp"), engine.opened(gguf) as opened:
        _compare_prompts(opened, tokenizer, asked, findings)
        _compare_ends(opened, model, tokenizer, findings)
        said = [opened.answer(messages, most) for messages in asked.conversations]
    expected = _answers(model, tokenizer, asked, most)
    if expected is None:
        findings.add("answers", "not compared: the memory does not hold the model in Transformers beside the rest")
    else:
        closing = ChatTemplate(tokenizer).closing_words
        _compare_answers(expected, [text.strip().removesuffix(closing) for text in said], kind, asked, findings)
    return findings


def _conversations(template: ChatTemplate, asked: Asked) -> list[list[dict[str, str]]]:
    """Those asked and some of several turns, with a system message and without, as far as the template takes them."""
    found = list(asked.conversations)
    for has_system in (False, True):
        for turns in (1, 3, 5):
            messages = conversation(WORDS, turns, has_system=has_system)
            if _takes(template, messages):
                found.append(messages)
    return found


def _takes(template: ChatTemplate, messages: list[dict[str, str]]) -> bool:
    """Whether all messages are in the prompt: a system message that a template drops, llama.cpp puts elsewhere."""
    try:
        return None not in template.locate([messages], generation_prompt=True)[0].words
    except UserError:
        return False


def _compare_prompts(
    opened: engine.Engine, tokenizer: PreTrainedTokenizerBase, asked: Asked, findings: Findings
) -> None:
    template = ChatTemplate(tokenizer)
    conversations = _conversations(template, asked)
    bos = str(tokenizer.bos_token or "")
    other_text, other_ids = [], []
    for messages in conversations:
        expected, actual = template.prompt(messages), opened.prompt(messages)
        if actual not in (expected, expected.removeprefix(bos)):
            other_text.append((expected, actual))
        ids = tokenizer(expected, add_special_tokens=False)["input_ids"]
        read = opened.tokens(actual, is_prompt=True)
        if read != ids:
            other_ids.append((list(map(str, ids)), list(map(str, read))))
    prompts = f"{len(conversations) - len(other_text)} of {counted(len(conversations), 'prompt')} as the chat template"
    findings.add("template", prompts + _first_difference(other_text, ""), is_wrong=bool(other_text))
    tokens = f"{len(conversations) - len(other_ids)} of {counted(len(conversations), 'prompt')} as the tokenizer"
    findings.add("tokens", tokens + _first_difference(other_ids, " "), is_wrong=bool(other_ids))


def _first_difference(pairs: list, space: str) -> str:
    """Of the first pair, from where the one differs from the other."""
    if not pairs:
        return ""
    one, other = pairs[0]
    start = len(common_start(one, other))
    ours, theirs = (space.join(text[start : start + SHOWN]) for text in (one, other))
    return f"; after {start} alike the model has {ours!r} and llama.cpp {theirs!r}"


def _compare_ends(opened: engine.Engine, model: Path, tokenizer: PreTrainedTokenizerBase, findings: Findings) -> None:
    ends = end_tokens(read_settings(model), tokenizer)
    missed = [end for end in ends if not opened.stops_at(end)]
    names = ", ".join(str(tokenizer.convert_ids_to_tokens(end)) for end in missed or ends)
    findings.add("stops", f"not at {names}" if missed else f"at {names}", is_wrong=bool(missed))


def _answers(model: Path, tokenizer: PreTrainedTokenizerBase, asked: Asked, most: int) -> list[str] | None:
    """What the model says in Transformers, in float32 or in the precision of its files; None where it does not fit."""
    stored = sum(tensor.bytes for tensor in WeightFiles(model).tensors.values())
    needed = {"float32": verify.bytes_needed(model), "auto": int(stored * verify.SPARE_SHARE)}
    free = verify.bytes_free()
    dtype = next((name for name, size in needed.items() if size < free), None)
    if dtype is None:
        return None
    generation = {"max_new_tokens": most, "do_sample": False, "repetition_penalty": 1.0}
    with waiting("asking the model in Transformers"):
        loaded = load_model(ModelConfig(model_name_or_path=str(model), dtype=dtype)).eval()
        return [reply.text for reply in reply_to_all(loaded, tokenizer, asked.conversations, generation)]


def _compare_answers(expected: list[str], said: list[str], kind: str, asked: Asked, findings: Findings) -> None:
    same = sum(one == other for one, other in zip(expected, said, strict=True))
    note = "" if same == len(said) or kind in UNQUANTISED else f"; {kind} rounds, so that words may differ"
    findings.add(
        "answers",
        f"{same} of {len(said)} the same in Transformers and llama.cpp{note}",
        is_wrong=not same and kind in UNQUANTISED,
    )
    for question, one, other in zip(asked.questions, expected, said, strict=True):
        if one != other:
            findings.lines += [
                f"  {question}",
                f"    Transformers {one_line(one)}",
                f"    llama.cpp    {one_line(other)}",
            ]
    if asked.name:
        by_model, by_file = (sum(asked.name in text for text in texts) for texts in (expected, said))
        text = f"{asked.name} in {by_model} of {len(said)} answers in Transformers, in {by_file} in llama.cpp"
        findings.add("name", text, is_wrong=by_file < by_model and (kind in UNQUANTISED or not by_file))
