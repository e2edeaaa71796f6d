"""Say what a path is: model, adapter, merged model, checkpoint or run, what is in it, and whether it is whole.

In: a path. Out: a few lines; the exit code is 1 where something is missing or cut short. Reads headers, no weights, so
that it takes no longer for a large model.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from model_tools.chatting.model_folder import ADAPTER_FILE, CONFIG_FILE, MERGE_RECORD, read_json
from sft.core.errors import UserError
from sft.core.text import counted
from sft.models.lora_scale import scale_line
from sft.runs.run_files import RECIPE, is_run_directory

LOADS = "safetensors and PyTorch"

DATA_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".gz", ".zst")
DOWNLOAD = "copy or download it again"
SIZES = ((30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "bytes"))


@dataclass
class Found:
    """What a path is, labelled facts about it, and what of it is missing or cut short, a sentence each."""

    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of a model, adapter, checkpoint or run, or XTuner's iter_N.pth")


def run(arguments: argparse.Namespace) -> int:
    path = arguments.path
    found = recognise(path)
    found.facts["on disk"] = _size(_bytes_on_disk(path))
    found.facts["whole"] = "NO" if found.problems else "yes"
    print(f"{path}: {found.kind}")
    for label, value in found.facts.items():
        print(f"  {label:<14} {_printable(value)}")
    for problem in found.problems:
        print(f"    {_printable(problem)}")
    return 1 if found.problems else 0


def recognise(path: Path) -> Found:
    """What a path is.

    Raises:
        UserError: it is nothing known here.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder: check the path")
    if path.is_file():
        return _file(path)
    if is_run_directory(path):
        return _run_directory(path)
    if (path / ADAPTER_FILE).is_file():
        return _adapter(path)
    if (path / CONFIG_FILE).is_file():
        return _model(path)
    return _zero(path)


def _file(path: Path) -> Found:
    from model_tools.checkpoints import restricted_pickle
    from model_tools.checkpoints.inventory import Inventory, of_tensors

    if path.name.endswith(DATA_ENDINGS):
        raise UserError(f"{path}: looks like data and no model: python -m data_tools inspect {path}")
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: is one file of a model or adapter: give its folder, {path.parent}")
    content = restricted_pickle.load_data(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path}: is none of XTuner's checkpoints: it holds no state_dict")
    found = Found("XTuner checkpoint, a file")
    found.facts |= _xtuner(content, path) | _trained(Inventory(of_tensors(state)))
    return found


def _zero(path: Path) -> Found:
    """A folder of DeepSpeed's, perhaps written by XTuner."""
    from model_tools.checkpoints.inventory import Inventory, of_tensors
    from model_tools.checkpoints.zero_checkpoint import ZeroCheckpoint

    try:
        zero = ZeroCheckpoint.find(path)
    except UserError as problem:
        return Found("DeepSpeed checkpoint", problems=[str(problem)])
    if zero is None:
        raise UserError(f"{path}: holds no model, adapter, checkpoint or run that is known here: check the path")
    is_xtuner = isinstance(zero.state.get("meta"), dict)
    found = Found("XTuner checkpoint, a DeepSpeed folder" if is_xtuner else "DeepSpeed checkpoint")
    found.facts |= _xtuner(zero.state, path) if is_xtuner else {}
    found.facts |= _trained(Inventory(of_tensors(zero.trained)))
    _add_training_state(found, path)
    return found


def _run_directory(path: Path) -> Found:
    """A run directory: what it ended with, or else its newest checkpoint."""
    import yaml

    try:
        recipe = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
        base = str(recipe["model_name_or_path"])
    except (yaml.YAMLError, KeyError, TypeError, OSError) as problem:
        raise UserError(f"{path / RECIPE}: cannot be read ({' '.join(str(problem).split())[:100]})") from None
    numbers = [found.name.removeprefix("checkpoint-") for found in path.glob("checkpoint-*")]
    steps = sorted(int(number) for number in numbers if number.isdecimal())
    parts = [path / f"checkpoint-{step}" for step in steps]
    has_final = any((path / "final" / name).is_file() for name in (ADAPTER_FILE, CONFIG_FILE))
    parts += [path / "final"] if has_final else []
    found = Found("run directory", {"base": base})
    found.facts["checkpoints"] = ", ".join(map(str, steps)) or "none"
    found.facts["final"] = "none: the run goes on, or did not end"
    for part in parts:
        try:
            inner = recognise(part)
        except UserError as problem:
            inner = Found("damaged", problems=[str(problem)])
        found.problems += [f"{part.name}: {problem}" for problem in inner.problems]
        if part.name == "final":
            found.facts["final"] = inner.kind
        if part == parts[-1]:
            found.facts |= {label: value for label, value in inner.facts.items() if label not in found.facts}
    return found


def _adapter(path: Path) -> Found:
    from model_tools.checkpoints import inventory
    from model_tools.checkpoints.trained_adapter import WEIGHTS, read_config
    from sft.models import fingerprint

    found, config = Found("adapter"), read_config(path)
    held = inventory.take_inventory(path, WEIGHTS)
    known = fingerprint.read_fingerprint(path)
    found.facts["base"] = f"{config.get('base_model_name_or_path')}{f', weights {known[:12]}' if known else ''}"
    found.facts |= _lora(config, str(config.get("peft_type"))) | _trained(held)
    found.problems += held.problems
    for name in held.tensors:
        other = name.replace(".lora_A.", ".lora_B.")
        if other not in held.tensors:
            found.problems.append(f"{name} is there without its lora_B: write the adapter again")
    _add_training_state(found, path)
    return found


def _model(path: Path) -> Found:
    from model_tools.checkpoints import inventory
    from sft.models.weight_files import WEIGHTS

    config = read_json(path / CONFIG_FILE, DOWNLOAD)
    quantised = config.get("quantization_config")
    found = Found("base model" if not quantised else "quantised model")
    if (path / MERGE_RECORD).is_file():
        found.kind = "merged model"
        found.facts |= _made_from(read_json(path / MERGE_RECORD, DOWNLOAD))
    held = inventory.take_inventory(path, WEIGHTS)
    found.facts["architecture"] = _architecture(config)
    bits = _bits(quantised) if quantised else None
    found.facts["parameters"] = f"{held.parameters(bits):,}"
    found.facts["dtype"] = held.dtypes()
    if quantised:
        found.facts["quantised"] = _quantisation(quantised)
    found.facts["weights"] = f"{counted(len(held.tensors), 'tensor')} in {counted(held.files, 'file')}"
    found.problems += held.problems
    _add_training_state(found, path)
    return found


def _add_training_state(found: Found, path: Path) -> None:
    """Add what the Trainer and DeepSpeed left in a checkpoint to go on from, if it is one."""
    from model_tools.checkpoints.zero_checkpoint import ZeroCheckpoint

    if (path / "trainer_state.json").is_file():
        state = read_json(path / "trainer_state.json", DOWNLOAD)
        found.kind = f"checkpoint of a run: {found.kind} and training state"
        found.facts["step"] = f"{state.get('global_step')} of {state.get('max_steps')}"
    try:
        if zero := ZeroCheckpoint.find(path):
            found.facts["DeepSpeed"] = zero.description
            found.problems += zero.problems()
    except UserError as problem:
        found.problems.append(str(problem))


def _trained(held) -> dict[str, str]:
    """Facts about the tensors of an adapter, or of what a checkpoint calls trained."""
    from model_tools.checkpoints.adapter_tensors import ranks

    modules = ranks(held.tensors)
    names = sorted({module.rpartition(".")[2] for module in modules})
    facts = {"modules": f"{len(modules)}: {' '.join(names)}"} if modules else {}
    return facts | {"parameters": f"{held.parameters():,} in {len(held.tensors)} tensors", "dtype": held.dtypes()}


def _lora(config: dict, kind: str) -> dict[str, str]:
    """Rank, alpha and the scale that an adapter's output is multiplied with."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not rank or not isinstance(alpha, (int, float)):
        return {"kind": kind}
    others = "; other ranks in some modules" if config.get("rank_pattern") else ""
    dora = ", DoRA" if config.get("use_dora") else ""
    return {"LoRA": f"{scale_line(alpha, rank, is_rslora=bool(config.get('use_rslora')))}{dora}{others}"}


def _xtuner(content: dict, path: Path) -> dict[str, str]:
    """What an XTuner checkpoint says of its run."""
    from model_tools.checkpoints import xtuner_checkpoint

    facts, meta = {}, content.get("meta") if isinstance(content.get("meta"), dict) else {}
    settings = xtuner_checkpoint.settings_within(content, path)
    if settings:
        facts["base"] = str(settings.base)
        facts |= _lora(settings.lora, "LoRA, alpha not told" if settings.lora else "no LoRA")
    steps = [f"{name} {meta[name]:,}" for name in ("iter", "epoch") if isinstance(meta.get(name), int)]
    return facts | ({"trained for": ", ".join(steps)} if steps else {})


def _made_from(record: dict) -> dict[str, str]:
    adapters = [f"{made['path']} (weight {made['weight']:g})" for made in record.get("adapters", ())]
    return {"base": str(record.get("base")), "adapters": ", ".join(adapters)}


def _architecture(config: dict) -> str:
    names = {
        "num_hidden_layers": "layers",
        "hidden_size": "hidden",
        "num_attention_heads": "heads",
        "num_key_value_heads": "key heads",
        "vocab_size": "vocabulary",
    }
    sizes = [f"{config[key]:,} {name}" for key, name in names.items() if isinstance(config.get(key), int)]
    kinds = config.get("architectures") or [config.get("model_type", "unknown")]
    return ", ".join([*map(str, kinds), *sizes])


def _bits(quantised: dict) -> int | None:
    if quantised.get("load_in_4bit"):
        return 4
    return 8 if quantised.get("load_in_8bit") else quantised.get("bits")


def _quantisation(quantised: dict) -> str:
    bits, method = _bits(quantised), quantised.get("quant_method", "unknown method")
    kind = f" {quantised.get('bnb_4bit_quant_type')}" if quantised.get("load_in_4bit") else ""
    nested = ", nested" if quantised.get("bnb_4bit_use_double_quant") else ""
    return f"{f'{bits}-bit' if bits else 'yes'}{kind}{nested} ({method})"


def _bytes_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _printable(text: str) -> str:
    """The text, which somebody else's files may have given, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _size(size: int) -> str:
    power, unit = next((power, unit) for power, unit in SIZES if size >> power or not power)
    return f"{size / 2**power:,.{1 if power else 0}f} {unit}"
