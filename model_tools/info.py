"""Say what a path is: model, adapter, merged model, checkpoint or run, what is in it, and whether it is whole.

In: a path. Out: a few lines; the exit code is 1 where something is missing or cut short. Reads headers, no weights, so
that it takes no longer for a large model; torch is imported for pickled files alone.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from model_tools.checkpoints.completeness import lacking_in_adapter, lacking_in_model
from model_tools.checkpoints.model_folder import (
    ADAPTER_FILE,
    AGAIN,
    CONFIG_FILE,
    MERGE_RECORD,
    read_adapter_config,
    read_json,
)
from sft.core.errors import UserError
from sft.core.text import counted, one_line_message
from sft.runs.run_files import RECIPE, is_run_directory

if TYPE_CHECKING:
    from sft.models.weight_files import StoredTensor

MOST = 1e9  # of a rank or alpha: what is more, or NaN, is damaged
DATA_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".gz", ".zst")
SIZES = ((30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "bytes"))
# Numbers that a quantised weight is multiplied with or looked up in; the packed weight itself is counted.
PARTS_OF_QUANTISED = (
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format", ".qzeros", ".scales",
    ".g_idx", ".weight_scale", ".weight_scale_inv", ".input_scale",
)  # fmt: skip
PACKED_4_BIT = ".quant_state.bitsandbytes__"


@dataclass
class PathSummary:
    """What a path is, labelled facts about it, and what of it is missing or cut short, a sentence each."""

    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("path", type=Path, help="folder of a model, adapter, checkpoint or run, or XTuner's iter_N.pth")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns 1 where something is missing or cut short, else 0."""
    path = arguments.path
    summary = recognise(path)
    summary.facts["on disk"] = _size(_bytes_on_disk(path))
    summary.facts["whole"] = "NO" if summary.problems else "yes"
    print(f"{path}: {summary.kind}")
    for label, value in summary.facts.items():
        print(f"  {label:<14} {_printable(value)}")
    for problem in summary.problems:
        print(f"    {_printable(problem)}")
    return 1 if summary.problems else 0


def recognise(path: Path) -> PathSummary:
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


def _file(path: Path) -> PathSummary:
    from sft.models import restricted_pickle
    from sft.models.weight_files import describe_tensors

    if path.name.endswith(DATA_ENDINGS):
        raise UserError(f"{path}: looks like data and no model: python -m data_tools inspect {path}")
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: is one file of a model or adapter: give its folder, {path.parent}")
    if path.suffix == ".gguf":
        raise UserError(f"{path}: is llama.cpp's: give the folder that it was made of")
    content = restricted_pickle.load_data(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(state, dict):
        raise UserError(f"{path}: is none of XTuner's checkpoints: it holds no state_dict")
    facts = _xtuner(content, path) | _trained(describe_tensors(path, state))
    return PathSummary("XTuner checkpoint, a file", facts)


def _zero(path: Path) -> PathSummary:
    """A folder of DeepSpeed's, perhaps written by XTuner."""
    from model_tools.checkpoints.zero_checkpoint import ZeroCheckpoint
    from sft.models.weight_files import describe_tensors

    try:
        zero = ZeroCheckpoint.find(path)
    except UserError as problem:
        return PathSummary("DeepSpeed checkpoint", problems=[str(problem)])
    if zero is None:
        raise UserError(f"{path}: holds no model, adapter, checkpoint or run that is known here: check the path")
    is_xtuner = isinstance(zero.state.get("meta"), dict)
    summary = PathSummary("XTuner checkpoint, a DeepSpeed folder" if is_xtuner else "DeepSpeed checkpoint")
    summary.facts |= _xtuner(zero.state, path) if is_xtuner else {}
    summary.facts |= _trained(describe_tensors(zero.folder, zero.trained))
    _add_training_state(summary, path)
    return summary


def _run_directory(path: Path) -> PathSummary:
    """A run directory: what it ended with, or else its newest checkpoint."""
    import yaml

    try:
        recipe = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
        base = str(recipe["model_name_or_path"])
    except (yaml.YAMLError, KeyError, TypeError, OSError) as problem:
        raise UserError(f"{path / RECIPE}: cannot be read ({one_line_message(problem, 100)})") from None
    numbers = [folder.name.removeprefix("checkpoint-") for folder in path.glob("checkpoint-*")]
    steps = sorted(int(number) for number in numbers if number.isdecimal())
    parts = [path / f"checkpoint-{step}" for step in steps]
    has_final = any((path / "final" / name).is_file() for name in (ADAPTER_FILE, CONFIG_FILE))
    parts += [path / "final"] if has_final else []
    summary = PathSummary("run directory", {"base": base})
    summary.facts["checkpoints"] = ", ".join(map(str, steps)) or "none"
    summary.facts["final"] = "none: the run is still going, or did not finish"
    for part in parts:
        try:
            inner = recognise(part)
        except UserError as problem:
            inner = PathSummary("damaged", problems=[str(problem)])
        summary.problems += [f"{part.name}: {problem}" for problem in inner.problems]
        if part.name == "final":
            summary.facts["final"] = inner.kind
        if part == parts[-1]:
            summary.facts |= {label: value for label, value in inner.facts.items() if label not in summary.facts}
    return summary


def _adapter(path: Path) -> PathSummary:
    from model_tools.checkpoints.trained_adapter import WEIGHTS
    from sft.models.adapter import read_fingerprint

    summary, config = PathSummary("adapter"), read_adapter_config(path)
    tensors, _ = _read_headers(summary, path, WEIGHTS)
    fingerprint = read_fingerprint(path)
    weights = f", weights {fingerprint[:12]}" if fingerprint else ""
    summary.facts["base"] = f"{config.get('base_model_name_or_path')}{weights}"
    summary.facts |= _lora(config, str(config.get("peft_type"))) | _trained(tensors)
    if not summary.problems:
        summary.problems += lacking_in_adapter(config, tensors)
    _add_training_state(summary, path)
    return summary


def _model(path: Path) -> PathSummary:
    from sft.models.weight_files import WEIGHTS

    config = read_json(path / CONFIG_FILE, AGAIN)
    quantised = config.get("quantization_config")
    if quantised and not isinstance(quantised, dict):
        raise UserError(f"{path / CONFIG_FILE}: quantization_config: {quantised!r} is no object: {AGAIN}")
    summary = PathSummary("base model" if not quantised else "quantised model")
    if (path / MERGE_RECORD).is_file():
        summary.kind = "merged model"
        record = read_json(path / MERGE_RECORD, AGAIN)
        try:
            summary.facts |= _made_from(record)
        except (TypeError, KeyError, ValueError):
            summary.problems.append(f"{MERGE_RECORD}: does not say what was merged: remove it, or merge again")
    tensors, files = _read_headers(summary, path, WEIGHTS)
    if not summary.problems and not quantised:
        summary.problems += lacking_in_model(path, config, tensors)
    summary.facts["architecture"] = _architecture(config)
    summary.facts["parameters"] = f"{_parameters(tensors, _bits(quantised) if quantised else None):,}"
    summary.facts["dtype"] = _dtypes(tensors)
    if quantised:
        summary.facts["quantised"] = _quantisation(quantised)
    summary.facts["weights"] = f"{counted(len(tensors), 'tensor')} in {counted(files, 'file')}"
    _add_training_state(summary, path)
    return summary


def _read_headers(summary: PathSummary, folder: Path, names: tuple[str, ...]) -> tuple[dict[str, StoredTensor], int]:
    """The tensors of a folder and how many files hold them; what is wrong with them is added to the problems."""
    from sft.models.weight_files import read_headers

    headers = read_headers(folder, names)
    summary.problems += [problem.removeprefix(f"{folder}/") for problem in headers.problems]
    return headers.tensors, headers.files


def _add_training_state(summary: PathSummary, path: Path) -> None:
    """Add what the Trainer and DeepSpeed left in a checkpoint to resume from, if it is one."""
    from model_tools.checkpoints.zero_checkpoint import ZeroCheckpoint

    if (path / "trainer_state.json").is_file():
        state = read_json(path / "trainer_state.json", AGAIN)
        summary.kind = f"checkpoint of a run: {summary.kind} and training state"
        summary.facts["step"] = f"{state.get('global_step')} of {state.get('max_steps')}"
    try:
        if zero := ZeroCheckpoint.find(path):
            summary.facts["DeepSpeed"] = zero.description
            summary.problems += zero.problems()
    except UserError as problem:
        summary.problems.append(str(problem))


def _trained(tensors: dict[str, StoredTensor]) -> dict[str, str]:
    """Facts about the tensors of an adapter, or of what a checkpoint calls trained."""
    from model_tools.checkpoints.adapter_tensors import module_ranks

    modules = module_ranks(tensors)
    names = sorted({module.rpartition(".")[2] for module in modules})
    facts = {"modules": f"{len(modules)}: {' '.join(names)}"} if modules else {}
    parameters = f"{_parameters(tensors):,} in {len(tensors)} tensors"
    return facts | {"parameters": parameters, "dtype": _dtypes(tensors)}


def _parameters(tensors: dict[str, StoredTensor], bits: int | None = None) -> int:
    """How many weights there are; `bits` is how many each takes, where several are packed into an integer."""

    def packed(name: str) -> int:
        if any(name + PACKED_4_BIT + kind in tensors for kind in ("nf4", "fp4")):
            return 2
        return 32 // bits if bits and name.endswith(".qweight") and tensors[name].dtype_name == "int32" else 1

    return sum(
        tensor.elements * packed(name)
        for name, tensor in tensors.items()
        if not name.endswith(PARTS_OF_QUANTISED) and PACKED_4_BIT not in name
    )


def _dtypes(tensors: dict[str, StoredTensor]) -> str:
    """The types of the tensors, the one that most of the numbers are of first."""
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[tensor.dtype_name] += tensor.elements
    return ", ".join(name for name, _ in elements.most_common()) or "unknown"


def _lora(config: dict, kind: str) -> dict[str, str]:
    """Rank, alpha and the scale that an adapter's output is multiplied with."""
    from sft.models.adapter import scale_line

    rank, alpha = config.get("r"), config.get("lora_alpha")
    if (
        not isinstance(rank, int)
        or not isinstance(alpha, int | float)
        or not (1 <= rank <= MOST and abs(alpha) <= MOST)
    ):
        return {"kind": kind}
    others = "; other ranks in some modules" if config.get("rank_pattern") else ""
    dora = ", DoRA" if config.get("use_dora") else ""
    return {"LoRA": f"{scale_line(alpha, rank, is_rslora=bool(config.get('use_rslora')))}{dora}{others}"}


def _xtuner(content: dict, path: Path) -> dict[str, str]:
    """What an XTuner checkpoint says of its run."""
    from model_tools.checkpoints import xtuner_checkpoint

    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    facts: dict[str, str] = {}
    settings = xtuner_checkpoint.settings_within(content, path)
    if settings:
        facts["base"] = str(settings.base)
        facts |= _lora(settings.lora, "LoRA, alpha unknown" if settings.lora else "no LoRA")
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
    kinds = config.get("architectures") or config.get("model_type", "unknown")
    return ", ".join([*map(str, kinds if isinstance(kinds, list) else [kinds]), *sizes])


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
