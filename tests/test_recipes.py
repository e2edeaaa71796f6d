"""Every recipe in recipes/ loads; the mirror recipe says exactly what XTuner's config says; what the header of a recipe
for a model that people have says is so, on a small model of its architecture and by its published shape.
"""

import itertools
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.shapes import SHAPES
from sft.config.load import load_recipe, read_recipe
from sft.config.settings import read_settings
from sft.core.paths import REPOSITORY
from sft.data.dataset import load_dataset
from sft.data.labels import mark_supervised
from sft.models.loading import load_tokenizer
from sft.runs.run_files import read_run
from sft.training.gpu import usable_bytes
from sft.training.memory import GIB
from sft.training.plan import make_plan
from tests.support.conversations import CONVERSATIONS, SMOLLM2_TEMPLATE
from tests.support.encoding import CHATML, STOCK, samples_of, turns
from tests.support.template_judge import shared_templates

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
# Where a recipe wants a GPU, the same recipe in a precision that this machine has.
ON_CPU = ["--fp16", "false", "--bf16", "true", "--dtype", "bfloat16", "--deepspeed", ""]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path, train_file):
    recipe = load_recipe([str(path), "--train_file", str(train_file), *ON_CPU])
    assert recipe.training.output_dir == f"work_dirs/{path.stem}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_every_deepspeed_config_leaves_to_the_recipe_what_the_recipe_decides(path):
    config = json.loads(path.read_text())
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert config[key] == "auto"
    assert config["fp16"]["enabled"] == config["bf16"]["enabled"] == "auto"
    assert "optimizer" not in config
    assert "scheduler" not in config
    assert config["zero_optimization"]["stage"] == int(path.stem[4])
    assert ("offload_optimizer" in config["zero_optimization"]) == path.stem.endswith("_offload")


def test_huangdali_mirrors_xtuners_qlora_config(train_file):
    recipe = load_recipe(["recipes/huangdali.yaml", "--train_file", str(train_file), *ON_CPU])
    chosen, training, model, run = recipe.chosen, recipe.training, recipe.model, recipe.run
    assert model.model_name_or_path == "internlm/internlm2_5-7b-chat"
    assert (training.max_length, training.packing) == (2048, True)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (1, 1)
    assert (training.num_train_epochs, training.learning_rate, training.weight_decay) == (3, 2e-4, 0)
    assert (training.adam_beta1, training.adam_beta2, training.max_grad_norm) == (0.9, 0.999, 1)
    assert (training.warmup_steps, training.lr_scheduler_type) == (0.03, "cosine")
    assert training.optim.startswith("adamw_torch")
    assert (model.load_in_4bit, model.bnb_4bit_quant_type, model.use_bnb_nested_quant) == (True, "nf4", True)
    assert (model.use_peft, model.lora_r, model.lora_alpha, model.lora_dropout) == (True, 64, 16, 0.1)
    assert model.lora_target_modules == "all-linear"
    assert (training.save_steps, training.save_total_limit, training.logging_steps) == (500, 2, 10)
    assert (run.eval_prompts, run.eval_prompts_steps) == (["请介绍一下你自己", "Please introduce yourself"], 500)
    # What this machine cannot do, and the command line therefore replaced above.
    written = yaml.safe_load((REPOSITORY / "recipes/huangdali.yaml").read_text(encoding="utf-8"))
    assert (written["fp16"], written["dtype"]) == (True, "float16")
    assert (written["deepspeed"], written["train_file"]) == ("ds_configs/zero2.json", "data/huangdali.jsonl")
    assert chosen["output_dir"] == "work_dirs/huangdali"


def test_the_smaller_internlm2_has_the_same_settings_as_the_larger(train_file):
    larger, smaller = (
        load_recipe([f"recipes/{name}.yaml", "--train_file", str(train_file), *ON_CPU]).chosen
        for name in ("huangdali", "internlm2_chat_1_8b")
    )
    assert smaller["model_name_or_path"] == "internlm/internlm2-chat-1_8b"
    assert {key for key in larger if larger[key] != smaller.get(key)} == {"model_name_or_path", "output_dir"}
    assert larger.keys() == smaller.keys()


@dataclass(frozen=True)
class Owned:
    """A recipe for a model that people have: the model's published shape, and how its template ends an answer.

    `template` is what the tests write in place of the published one, whose name in the shared file is `published`.
    """

    shape: dict
    template: str
    end: str
    published: tuple[str, str] | None = None
    names: str = ""  # whom the template's own system message names


LLAMA_TEMPLATE = (
    "{% macro turn(role, text) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + text + '<|eot_id|>' }}"
    "{% endmacro %}{{ bos_token }}{% set has_system = messages[0]['role'] == 'system' %}"
    "{{ turn('system', 'Today Date: 26 Jul 2024\n\n' + (messages[0]['content'] if has_system else '')) }}"
    "{% for message in messages[1 if has_system else 0:] %}{{ turn(message['role'], message['content']) }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
OWNED = {
    "qwen3_4b_instruct_2507": Owned(
        {
            "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        CHATML,
        "<|im_end|>",
        published=("qwen3_instruct_2507", "trl"),
    ),
    "qwen2_5_7b_instruct": Owned(
        {
            "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
        },
        SMOLLM2_TEMPLATE.replace("AI assistant named SmolLM, trained by Hugging Face", "assistant. You are Qwen."),
        "<|im_end|>",
        names="Qwen",
    ),
    "internlm3_8b_instruct": Owned(
        {
            "model_type": "internlm3", "hidden_size": 4096, "intermediate_size": 10240, "num_hidden_layers": 48,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 128512,
            "tie_word_embeddings": False,
            # As published: the code that these name is not there, and is not asked for.
            "auto_map": {
                "AutoConfig": "configuration_internlm3.InternLM3Config",
                "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM",
            },
        },
        STOCK["internlm2"],
        "<|im_end|>",
    ),
    "llama3_1_8b_instruct": Owned(
        SHAPES["Llama-3.1-8B"] | {"tie_word_embeddings": False},
        LLAMA_TEMPLATE,
        "<|eot_id|>",
        published=("llama31", "unsloth"),
    ),
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
FORMS = [
    (stem, form) for stem, owned in OWNED.items() for form in ("own", "published") if form == "own" or owned.published
]
# A command of a recipe's header, and the GiB that it says are predicted.
COMMAND = re.compile(r"^#   (?:deepspeed --quiet|python) (train_sft\.py .*?)(?: +# ([\d.]+) GiB)?$", re.MULTILINE)
KEPT = re.compile(r"kept, ([\d.]+) GiB are predicted")


def flags(**keys) -> list[str]:
    return [str(part) for key, value in keys.items() for part in (f"--{key}", value)]


def header_commands(stem: str) -> list[tuple[list[str], str]]:
    """The arguments of each command in a recipe's comments, and the GiB beside it."""
    text = (REPOSITORY / "recipes" / f"{stem}.yaml").read_text(encoding="utf-8")
    return [(shlex.split(command), size) for command, size in COMMAND.findall(text)]


def write_tokenizer(folder: Path, owned: Owned, tokenizer) -> None:
    """The tests' tokenizer with what a template needs; InternLM3's is built of a tokenizer.model, as published."""
    if owned.shape["model_type"] == "internlm3":
        write_internlm3_tokenizer(folder, owned.template)
        return
    pieces = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    pieces.add_special_tokens([*re.findall(r"<\|\w+\|>", LLAMA_TEMPLATE), "<|begin_of_text|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<|begin_of_text|>", eos_token=owned.end, pad_token="<|endoftext|>"
    )
    fast.chat_template = owned.template
    fast.save_pretrained(folder)


def write_internlm3_tokenizer(folder: Path, template: str) -> None:
    """A sentencepiece model whose reserved pieces the configuration renames, and remote code that is only named."""
    corpus = folder / "corpus.txt"
    texts = [part for conversation in CONVERSATIONS for turn in conversation for part in turn]
    corpus.write_text("\n".join([*texts, "system user assistant"]), encoding="utf-8")
    reserved = ["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"]
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=400, hard_vocab_limit=False,
        model_type="bpe", byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", user_defined_symbols=reserved, minloglevel=2,
    )  # fmt: skip
    places = map(sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).piece_to_id, reserved)
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>"} | dict(zip(places, ("<|im_start|>", "<|im_end|>"), strict=True))
    config = {
        "tokenizer_class": "InternLM3Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm3.InternLM3Tokenizer", None]},
        "added_tokens_decoder": {str(place): {"content": text, "special": True} for place, text in tokens.items()},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture
def tiny(once, tokenizer):
    """A folder with a small random model of a recipe's architecture, its template the tests' own."""

    def tiny(stem: str) -> Path:
        owned = OWNED[stem]

        def fill(folder: Path) -> None:
            write_tokenizer(folder, owned, tokenizer)
            torch.manual_seed(0)
            config = AutoConfig.for_model(**owned.shape | TINY | {"vocab_size": 500})
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)

        return once(f"tiny-{stem}", fill)

    return tiny


@pytest.fixture
def template_file(tmp_path):
    """A file with the template of a recipe's model: the tests' own, or the published one where that is here."""

    def template_file(stem: str, form: str) -> Path:
        owned, path = OWNED[stem], tmp_path / "template.jinja"
        path.write_text(owned.template if form == "own" else published_template(owned), encoding="utf-8")
        return path

    return template_file


def published_template(owned: Owned) -> str:
    if not (entries := shared_templates()):
        pytest.skip("the published templates are not here")
    return next(entry["template"] for entry in entries if (entry["family"], entry["source"]) == owned.published)


@pytest.mark.parametrize("stem", OWNED)
def test_the_header_of_an_owned_recipe_names_its_own_commands_and_card(stem):
    commands = [arguments for arguments, _ in header_commands(stem)]
    recipe = f"recipes/{stem}.yaml"
    assert commands[0] == ["train_sft.py", recipe]
    assert commands[1][:-1] == ["train_sft.py", recipe, "--dry_run", "--card"]
    assert all(command[:2] == commands[0] for command in commands)
    text = (REPOSITORY / recipe).read_text(encoding="utf-8")
    assert f"one {commands[1][-1]} GB card" in text
    assert f"一块 {commands[1][-1]} GB 的卡" in text
    written = yaml.safe_load(text)
    model = written["model_name_or_path"].partition("/")[2]
    assert text.lower().startswith(f"# {model.lower()} ")
    # What results are compared by is as in huangdali.yaml.
    larger = yaml.safe_load((REPOSITORY / "recipes/huangdali.yaml").read_text(encoding="utf-8"))
    alike = ["train_file", "max_length", "identity_name", *(key for key in larger if key.startswith("lora_"))]
    assert {key: written[key] for key in alike} == {key: larger[key] for key in alike}
    assert "trust_remote_code" not in written


@pytest.mark.parametrize("stem", OWNED)
def test_an_owned_recipe_says_what_memory_is_predicted_of_the_published_shape(stem, tokenizer, train_file, tmp_path):
    """Of every command in its header, whose card that memory fits, and of what activations would take."""
    (tmp_path / "config.json").write_text(json.dumps(OWNED[stem].shape | {"dtype": "bfloat16"}), encoding="utf-8")
    tokenizer.save_pretrained(tmp_path)
    files = flags(model_name_or_path=tmp_path, train_file=train_file, output_dir=tmp_path / "run")
    said = [command for command in header_commands(stem) if command[1]]
    assert said
    text = (REPOSITORY / f"recipes/{stem}.yaml").read_text(encoding="utf-8")
    kept = [*said[0][0], "--activation_checkpointing", "false"]
    card = None
    for (_, *arguments), size in [*said, (kept, KEPT.search(text)[1])]:
        recipe = read_recipe(read_settings([*arguments, *files]))
        card = card or load_dataset(recipe, load_tokenizer(str(tmp_path)))[1]
        plan = make_plan(recipe, card)
        assert f"{plan.memory.peak / GIB:.1f}" == size
        assert (plan.memory.peak <= usable_bytes(plan.card)) == (arguments != kept[1:])


@pytest.mark.parametrize(("stem", "form"), FORMS)
def test_an_owned_recipe_plans_on_its_architecture(runs, tiny, template_file, train_file, tmp_path, stem, form):
    owned, folder = OWNED[stem], tiny(stem)
    _, *arguments = header_commands(stem)[1][0]
    template = template_file(stem, form)
    files = flags(model_name_or_path=folder, train_file=train_file, output_dir=tmp_path / "run")
    ended = runs.run([*arguments, *files, *flags(chat_template_path=template)], tmp_path / "run")
    assert ended.codes == [0], ended.err
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    loaded = load_tokenizer(str(folder), chat_template_path=str(template))
    lengths = [len(loaded.apply_chat_template(messages)["input_ids"]) for messages in conversations()]
    packs = -(-sum(lengths) * 8 // 2048)  # the file has each conversation eight times
    assert re.match(r"rows +40 -> 40 samples \(0 over max_length 2048, 0 dropped\)", lines["rows"])
    assert re.search(rf"^tokens +{8 * sum(lengths):,}, of them supervised", ended.out, re.MULTILINE)
    assert re.match(rf"steps +{3 * packs} in all, {packs} an epoch", lines["steps"])
    assert lines["precision"].endswith(" bfloat16")
    assert re.search(rf"card +{arguments[-1]} GB: [\d.]+ GiB to spare", lines["card"])
    first = re.findall(r"⟦(.*?)⟧", ended.out.partition("only:")[2])
    assert first
    assert all(answer.endswith(owned.end) for answer in first)
    assert (f"which names {owned.names}" in ended.out) == bool(owned.names)
    assert ended.out.endswith("dry run: nothing was loaded or written\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("stem", "form"), FORMS)
def test_loss_falls_on_the_answers_and_their_end_alone(tiny, template_file, stem, form):
    owned, folder = OWNED[stem], tiny(stem)
    loaded = load_tokenizer(str(folder), chat_template_path=str(template_file(stem, form)))
    for messages, (ids, labels) in zip(conversations(), samples_of(loaded, conversations()), strict=True):
        answers = [message["content"] + owned.end for message in messages if message["role"] == "assistant"]
        assert re.findall(r"⟦(.*?)⟧", mark_supervised(loaded, ids, labels)) == answers
        assert ids == loaded.apply_chat_template(messages)["input_ids"]
        assert labels.count(loaded.convert_tokens_to_ids(owned.end)) == len(answers)


@pytest.mark.long
@pytest.mark.parametrize("stem", OWNED)
def test_an_owned_recipe_trains_its_architecture(runs, tiny, train_file, tmp_path, stem):
    """Two steps, in the recipe's own bits, without the cost of scores."""
    files = flags(model_name_or_path=tiny(stem), train_file=train_file, output_dir=tmp_path / "run")
    quick = flags(max_steps=2, max_length=256, logging_steps=1, identity_name="", eval_prompts="")
    ended = runs.run([f"recipes/{stem}.yaml", *files, *quick, *ON_CPU], tmp_path / "run")
    assert ended.codes == [0], ended.err
    assert all(0 < record["loss"] < 20 for record in read_run(tmp_path / "run").log)
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").exists()


def conversations() -> list[list[dict]]:
    """What the training file has, as messages."""
    return [turns(*itertools.chain(*conversation)) for conversation in CONVERSATIONS]
