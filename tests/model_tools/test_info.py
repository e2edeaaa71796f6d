"""Every kind of folder is told for what it is, with what is in it, and what of it is missing or cut short."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, Qwen3NextConfig
from trl import ModelConfig

from model_tools.__main__ import main
from sft.models.loading import load_model
from tests.support.malicious_pickle import Call
from tests.support.published_internlm2 import random_weights, write_folder
from tests.support.xtuner_files import mmengine, mmengine_state, write_xtuner, xtuner_config

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def info(capsys):
    """Ask about a path; returns what is said of it, facts by their label, problems under ''."""

    def run(path, code=0) -> dict:
        capsys.readouterr()
        assert main(["info", str(path)]) == code
        said = capsys.readouterr()
        if code == 2:
            return said.err
        first, *lines = said.out.splitlines()
        facts = {line[2:16].strip(): line[17:] for line in lines if line[2] != " "}
        problems = [line.strip() for line in lines if line.startswith("    ")]
        return {"kind": first.removeprefix(f"{path}: "), **facts, "": problems}

    return run


@pytest.fixture
def sharded(tiny_model, tmp_path) -> Path:
    """The tiny model in several shards."""
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "sharded", max_shard_size="150KB")
    return tmp_path / "sharded"


def size_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_model_in_shards(info, sharded, tiny_model):
    found = info(sharded)
    assert found["kind"] == "base model"
    assert found["architecture"] == ("LlamaForCausalLM, 2 layers, 64 hidden, 4 heads, 2 key heads, 400 vocabulary")
    assert found["parameters"] == f"{size_of(AutoModelForCausalLM.from_pretrained(tiny_model)):,}"
    assert (found["dtype"], found["whole"]) == ("float32", "yes")
    assert found["weights"] == f"21 tensors in {len(list(sharded.glob('*.safetensors')))} files"
    size = sum(file.stat().st_size for file in sharded.iterdir())
    assert found["on disk"] == f"{size / 1024:,.1f} KiB"


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickled"])
def test_internlm2_as_published(info, tmp_path, pickled):
    weights = {name: value.half() for name, value in random_weights(128, 4, 2).items()}
    found = info(write_folder(tmp_path / "internlm2", weights, 128, 4, 2, shards=3, pickled=pickled))
    assert found["kind"] == "base model"
    assert found["architecture"].startswith("InternLM2ForCausalLM, 2 layers, 128 hidden, 4 heads, 2 key heads")
    assert found["parameters"] == f"{sum(value.numel() for value in weights.values()):,}"
    assert (found["dtype"], found["weights"]) == ("float16", f"{len(weights)} tensors in 3 files")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"load_in_4bit": True, "use_bnb_nested_quant": True}, "4-bit nf4, nested (bitsandbytes)"),
        ({"load_in_8bit": True}, "8-bit (bitsandbytes)"),
    ],
    ids=["4 bits", "8 bits"],
)
def test_a_quantised_model_has_the_parameters_it_had_before(info, tiny_model, tmp_path, settings, said):
    model = load_model(ModelConfig(str(tiny_model), dtype="float32", bnb_4bit_quant_type="nf4", **settings))
    model.save_pretrained(tmp_path / "quantised")
    found = info(tmp_path / "quantised")
    assert (found["kind"], found["quantised"], found["whole"]) == ("quantised model", said, "yes")
    assert found["parameters"] == info(tiny_model)["parameters"]


def shard(folder: Path, number: int = 0) -> Path:
    return sorted(folder.glob("*.safetensors"))[number]


def cut_short(folder: Path) -> str:
    os.truncate(shard(folder), shard(folder).stat().st_size - 1)
    return f"{shard(folder).name}: is "


def cut_in_the_header(folder: Path) -> str:
    os.truncate(shard(folder), 100)
    return f"{shard(folder).name}: has no header that can be read"


def made_longer(folder: Path) -> str:
    with shard(folder).open("ab") as file:
        file.write(b"\0" * 8)
    return f"{shard(folder).name}: is "


def taken_away(folder: Path) -> str:
    file = shard(folder, 1)
    file.unlink()
    return f"{file.name}: is missing, and model.safetensors.index.json names it"


def without_a_tensor(folder: Path) -> str:
    tensors = load_file(shard(folder))
    name = sorted(tensors)[0]
    save_file({other: value for other, value in tensors.items() if other != name}, shard(folder))
    return f"{shard(folder).name}: lacks {name}, which model.safetensors.index.json names"


def with_another_shape(folder: Path) -> str:
    content = shard(folder).read_bytes()
    shard(folder).write_bytes(content.replace(b"[400,64]", b"[400,65]", 1).replace(b"[64,64]", b"[64,65]", 1))
    return f"{shard(folder).name}: gives "


def header_of(file: Path) -> tuple[dict, bytes]:
    """A safetensors file's header and what stands after it."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(file: Path, header: dict, rest: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def with_overlapping_tensors(folder: Path) -> str:
    """The second of two of one shape lies where the first does, and what was its place is a hole."""
    file = next(file for file in sorted(folder.glob("*.safetensors")) if len(same_shape(header_of(file)[0])) > 1)
    header, rest = header_of(file)
    first, second, *_ = same_shape(header)
    header[second]["data_offsets"] = header[first]["data_offsets"]
    write_header(file, header, rest)
    return f"{file.name}: its header does not divide the file into tensors"


def same_shape(header: dict) -> list[str]:
    """Tensors of one shape, of which none is the last."""
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    return [name for name in names[:-1] if header[name]["shape"] == header[names[0]]["shape"]]


def with_a_negative_offset(folder: Path) -> str:
    header, rest = header_of(shard(folder))
    name = min((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    last = header[name]["data_offsets"][1]
    header[name] |= {"data_offsets": [-last, last], "shape": [2 * header[name]["shape"][0], *header[name]["shape"][1:]]}
    write_header(shard(folder), header, rest)
    return f"{shard(folder).name}: "


def with_a_hole(folder: Path) -> str:
    header, rest = header_of(shard(folder))
    for entry in header.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [place + 8 for place in entry["data_offsets"]]
    write_header(shard(folder), header, b"\0" * 8 + rest)
    return f"{shard(folder).name}: its header does not divide the file into tensors"


def with_a_tensor_in_two_shards(folder: Path) -> str:
    name, value = next(iter(load_file(shard(folder)).items()))
    save_file({**load_file(shard(folder, 1)), name: value}, shard(folder, 1))
    return f"{shard(folder, 1).name}: holds {name}, and so does {shard(folder).name}"


def with_an_index_of_a_tensor_more(folder: Path) -> str:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.more"] = shard(folder).name
    index.write_text(json.dumps(content))
    return f"{shard(folder).name}: lacks model.more, which model.safetensors.index.json names"


def in_one_file(folder: Path, kept) -> None:
    """The tensors that are kept, in one file without an index."""
    tensors = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    without_weights(folder)
    save_file({name: value for name, value in tensors.items() if kept(name)}, folder / "model.safetensors")


def with_one_tensor_of_21(folder: Path) -> str:
    in_one_file(folder, lambda name: name == "model.norm.weight")
    return "lacks lm_head.weight and 19 others, which its configuration asks for"


def without_a_layers_tensor(folder: Path) -> str:
    in_one_file(folder, lambda name: name != "model.layers.1.mlp.up_proj.weight")
    return "lacks model.layers.1.mlp.up_proj.weight, which its configuration asks for"


def without_its_last_layer(folder: Path) -> str:
    in_one_file(folder, lambda name: ".layers.1." not in name)
    return "lacks model.layers.1.input_layernorm.weight and 8 others, which its configuration asks for"


def without_its_norm(folder: Path) -> str:
    in_one_file(folder, lambda name: name != "model.norm.weight")
    return "lacks model.norm.weight, which its configuration asks for"


def with_another_vocabulary(folder: Path) -> str:
    in_one_file(folder, lambda name: True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    return "holds lm_head.weight and 1 other in another shape than its configuration says"


def without_its_index(folder: Path) -> str:
    (folder / "model.safetensors.index.json").write_text("{")
    return "model.safetensors.index.json: is no index of weight files"


def with_an_index_of_nothing(folder: Path) -> str:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    return "model.safetensors.index.json: holds no weights"


def with_a_tensor_of_no_type(folder: Path) -> str:
    header, rest = header_of(shard(folder))
    header[next(name for name in header if name != "__metadata__")]["dtype"] = None
    write_header(shard(folder), header, rest)
    return f"{shard(folder).name}: has no header that can be read"


def with_a_config_of_no_model(folder: Path) -> str:
    change_config(folder, num_hidden_layers="x")
    return "config.json: Transformers cannot use it"


def with_a_record_of_no_merge(folder: Path) -> str:
    (folder / "merge.json").write_text('{"adapters": [{"path": "a", "weight": "x"}]}')
    return "merge.json: does not say what was merged"


def change_config(folder: Path, **keys) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def without_weights(folder: Path) -> str:
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    return f"{folder}: holds no weights"


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        cut_in_the_header,
        made_longer,
        taken_away,
        without_a_tensor,
        with_another_shape,
        with_overlapping_tensors,
        with_a_negative_offset,
        with_a_hole,
        with_a_tensor_in_two_shards,
        with_an_index_of_a_tensor_more,
        with_one_tensor_of_21,
        without_a_layers_tensor,
        without_its_last_layer,
        without_its_norm,
        with_another_vocabulary,
        without_its_index,
        with_an_index_of_nothing,
        with_a_tensor_of_no_type,
        with_a_config_of_no_model,
        with_a_record_of_no_merge,
        without_weights,
    ],
    ids=lambda damage: damage.__name__.replace("_", " "),
)
def test_a_model_that_is_not_whole_is_told_and_what_of_it(info, sharded, damage):
    expected = damage(sharded)
    found = info(sharded, code=1)
    assert found["whole"] == "NO"
    assert any(problem.startswith(expected) for problem in found[""]), found[""]


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2),
        MixtralConfig(**SMALL, num_local_experts=2),
        Qwen3NextConfig(**SMALL, num_experts=2, moe_intermediate_size=16, shared_expert_intermediate_size=16),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_whose_layers_are_not_all_alike_is_whole(info, tmp_path, config):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = info(tmp_path)
    assert (found["whole"], found[""]) == ("yes", [])


@pytest.mark.parametrize("architectures", [3, "x", None, ["x"]], ids=str)
def test_architectures_of_another_type_are_shown_as_they_are(info, sharded, architectures):
    change_config(sharded, architectures=architectures)
    assert info(sharded)["architecture"].startswith(str(architectures).strip("[']") if architectures else "llama")


def test_a_quantisation_that_is_none_is_one_line(sharded, capsys):
    change_config(sharded, quantization_config=["x"])
    assert main(["info", str(sharded)]) == 2
    assert f"{sharded}/config.json: quantization_config: ['x'] is no object" in capsys.readouterr().err


def test_everything_that_is_wrong_is_told_at_once(info, sharded):
    shard(sharded, 1).unlink()
    os.truncate(shard(sharded), 100)
    assert len(info(sharded, code=1)[""]) == 2


def test_only_headers_are_read_of_a_large_model(info, tmp_path):
    """A file of 16 GiB, nearly all of it a hole: of what this process reads, only the header is of its size."""
    tensors = {f"model.layers.{number}.weight": (number << 30, number + 1 << 30) for number in range(16)}
    header = json.dumps(
        {name: {"dtype": "BF16", "shape": [1 << 14, 1 << 15], "data_offsets": place} for name, place in tensors.items()}
    ).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + (16 << 30))
    (tmp_path / "config.json").write_text("{}")
    before = bytes_read()
    found = info(tmp_path)
    assert bytes_read() - before < 100 << 20
    assert (found["parameters"], found["whole"]) == (f"{8 << 30:,}", "yes")


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_an_adapter_and_the_base_it_belongs_to(info, tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_rslora=True)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    found = info(tmp_path / "adapter")
    assert (found["kind"], found["base"]) == ("adapter", str(tiny_model))
    assert found["LoRA"] == "r 4, alpha 6: scale alpha/√r = 3"
    assert found["modules"] == "4: q_proj v_proj"
    assert found["parameters"] == f"{4 * 4 * 64 + 2 * 4 * (64 + 32):,} in 8 tensors"
    assert (found["dtype"], found["whole"]) == ("float32", "yes")


@pytest.mark.parametrize("rank", [0, -4, "8", [8], 10**400], ids=lambda rank: str(rank)[:9])
def test_a_rank_that_is_none_has_no_scale(info, tmp_path, rank):
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    found = info(tmp_path, code=1)
    assert found["kind"] == "LORA"
    assert "LoRA" not in found


def test_what_a_terminal_would_obey_is_not_shown(info, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "\x1b[2Jbase\nmore"}))
    assert info(tmp_path, code=1)["base"] == "\N{REPLACEMENT CHARACTER}[2Jbase\N{REPLACEMENT CHARACTER}more"


def test_an_adapter_with_half_a_pair_or_without_weights_is_not_whole(info, tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    half = {name: value for name, value in tensors.items() if "layers.1.self_attn.q_proj.lora_B" not in name}
    save_file(half, file)
    (problem,) = info(tmp_path, code=1)[""]
    assert "layers.1.self_attn.q_proj.lora_A.weight is there without its lora_B" in problem
    half = {name: value for name, value in tensors.items() if "layers.0.self_attn.q_proj.lora_A" not in name}
    save_file(half, file)
    (problem,) = info(tmp_path, code=1)[""]
    assert "layers.0.self_attn.q_proj.lora_B.weight is there without its lora_A" in problem
    save_file({name: value for name, value in tensors.items() if "layers.1." not in name}, file)
    (problem,) = info(tmp_path, code=1)[""]
    assert problem.startswith("lacks model.layers.1.self_attn.q_proj, of which other layers have theirs: write")
    file.unlink()
    assert "holds no weights" in info(tmp_path, code=1)[""][0]


def test_an_adapter_on_some_layers_by_its_own_settings_is_whole(info, tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1])).save_pretrained(tmp_path)
    assert info(tmp_path)["whole"] == "yes"


def test_a_merged_model_and_what_it_was_made_from(info, tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    paths = [str(path) for path in (tiny_model, tmp_path / "adapter", tmp_path / "merged")]
    assert main(["merge", *paths, "--no-verify"]) == 0
    found = info(tmp_path / "merged")
    assert (found["kind"], found["base"], found["whole"]) == ("merged model", str(tiny_model), "yes")
    assert found["adapters"] == f"{tmp_path / 'adapter'} (weight 1)"


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_checkpoint_of_ours_and_its_zero_folder(info, zero_run, stage, tmp_path, tiny_model):
    checkpoint = zero_run(stage) / "checkpoint-2"
    found = info(checkpoint)
    assert found["kind"] == "checkpoint of a run: adapter and training state"
    assert (found["step"], found["DeepSpeed"]) == ("2 of 2", f"ZeRO-{stage[-1]}, 2 processes")
    assert found["base"].startswith(f"{tiny_model}, weights ")
    alone = info(checkpoint / "global_step2")
    assert alone["kind"] == "DeepSpeed checkpoint"
    for label in ("DeepSpeed", "modules", "parameters", "dtype"):
        assert alone[label] == found[label]
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    second = next(cut.glob("global_step2/*rank_1*optim*"))
    os.truncate(second, 3000)
    for path in (cut, cut / "global_step2"):
        assert info(path, code=1)[""][0].startswith(f"{second}: is damaged")
    second.unlink()
    for path in (cut, cut / "global_step2"):
        assert "holds 1 of 2 optimizer files" in info(path, code=1)[""][0]
    weights = min(cut.glob("global_step2/*_model_states.pt"))
    os.truncate(weights, 3000)
    for path in (cut, cut / "global_step2"):
        assert info(path, code=1)[""][0].startswith(f"{weights}: is damaged")


def test_a_run_directory_its_checkpoints_and_its_end(info, zero_run, tmp_path, tiny_model):
    run = shutil.copytree(zero_run("zero2"), tmp_path / "run")
    found = info(run)
    assert (found["kind"], found["base"], found["checkpoints"]) == ("run directory", str(tiny_model), "2")
    assert (found["final"], found["LoRA"], found["dtype"]) == (
        "adapter",
        "r 8, alpha 32: scale alpha/r = 4",
        "bfloat16",
    )
    os.truncate(run / "checkpoint-2" / "adapter_model.safetensors", 2000)
    assert info(run, code=1)[""][0].startswith("checkpoint-2: adapter_model.safetensors: ")
    (run / "checkpoint-2" / "adapter_config.json").write_text("{")
    assert info(run, code=1)[""][0].startswith(f"checkpoint-2: {run}/checkpoint-2/adapter_config.json: cannot be read")
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "final")
    found = info(run)
    assert (found["checkpoints"], found["final"]) == ("none", "none: the run is still going, or did not finish")


def test_an_xtuner_file_and_a_folder_of_deepspeed(info, zero_run, tmp_path):
    state = {
        f"llm.base_model.model.model.layers.0.attention.wqkv.lora_{kind}.default.weight": torch.zeros(shape).half()
        for kind, shape in (("A", (8, 64)), ("B", (128, 8)))
    }
    config = xtuner_config(Path("internlm/internlm2_5-7b-chat"), 8)
    found = info(write_xtuner(tmp_path / "iter_500.pth", state, config))
    assert (found["kind"], found["base"]) == ("XTuner checkpoint, a file", "internlm/internlm2_5-7b-chat")
    assert (found["LoRA"], found["modules"]) == ("r 8, alpha 16: scale alpha/r = 2", "1: wqkv")
    assert (found["parameters"], found["dtype"]) == ("1,536 in 2 tensors", "float16")
    assert found["trained for"] == "iter 500, epoch 1"

    folder = shutil.copytree(zero_run("zero2") / "checkpoint-2" / "global_step2", tmp_path / "folder.pth")
    (file,) = folder.glob("*model_states.pt")
    with mmengine():
        torch.save(torch.load(file, weights_only=False) | mmengine_state(config), file)
    found = info(folder)
    assert found["kind"] == "XTuner checkpoint, a DeepSpeed folder"
    assert (found["LoRA"], found["DeepSpeed"]) == ("r 8, alpha 16: scale alpha/r = 2", "ZeRO-2, 2 processes")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", "holds no model, adapter, checkpoint or run"),
        ("rows.jsonl", "python -m data_tools inspect"),
        ("text.pth", "is damaged, or no file of weights"),
        ("other.pth", "is none of XTuner's checkpoints"),
        ("model.safetensors", "give its folder"),
        ("model.gguf", "is llama.cpp's: give the folder"),
        ("broken", "config.json: cannot be read"),
        ("run", "recipe.yaml: cannot be read"),
    ],
)
def test_what_is_nothing_known_is_one_line_and_exit_code_2(info, tmp_path, name, said):
    for folder in ("empty", "broken", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "run" / "recipe.yaml").write_text("lora_r: 8")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    heard = info(tmp_path / name, code=2)
    assert said in heard
    assert heard.count("\n") == 1


def test_a_planted_command_is_named_and_not_run(info, tmp_path, tiny_model):
    mark = tmp_path / "was_run"
    touch = Call(os.system, f"touch {mark}")
    torch.save({"state_dict": {}, "planted": touch}, tmp_path / "iter_1.pth")
    assert "asks for posix.system, which is no data" in info(tmp_path / "iter_1.pth", code=2)
    folder = shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"planted": touch}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin: asks for posix.system" in info(folder, code=1)[""][0]
    assert not mark.exists()
