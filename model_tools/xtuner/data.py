"""What XTuner's `train_dataloader` comes to in a recipe: batches, the order of samples, training files and packing."""

from typing import Any

from model_tools.xtuner.draft import NUMBER, SWITCH, TEXT, WHOLE, Part
from model_tools.xtuner.values import name_of, shown

# The formats of `load_dataset` that are read from files.
FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow")
COLUMNS = "columns: {question: ..., answer: ...} names other columns"
# XTuner's functions whose rows are read here as they are, and the columns these have.
READ_AS_THEY_ARE = {
    "default_map_fn": "conversation",
    "alpaca_map_fn": "instruction, input, output",
    "openai_map_fn": "messages",
    "wizardlm_map_fn": "conversations",
    "code_alpaca_map_fn": "prompt, completion",
    "stack_exchange_map_fn": "question, response",
}
# Its functions that read two columns of other names.
OTHER_COLUMNS = {
    "alpaca_zh_map_fn": "instruction_zh, input_zh, output_zh",
    "openorca_map_fn": "system_prompt, question, response",
    "colors_map_fn": "description, color",
    "law_reference_map_fn": "question, reference, answer",
    "sql_map_fn": "question, context, answer",
}
# Its functions that put a system message of their own before each row.
WITH_SYSTEM = ("medical_map_fn", "tiny_codes_map_fn", "crime_kg_assitant_map_fn", "arxiv_map_fn")
NESTED = ("ConcatDataset", "RepeatDataset", "ClassBalancedDataset")


def read_data(config: Part) -> None:
    """Set the keys on data."""
    draft, loader = config.draft, config.part("train_dataloader")
    if loader is None:
        return
    # Defaults: those of torch's DataLoader.
    loader.carry("batch_size", WHOLE, "per_device_train_batch_size", 1, at_top="batch_size")
    if batches := loader.part("batch_sampler"):
        _read_batch_sampler(batches)
    workers = loader.carry("num_workers", WHOLE, "dataloader_num_workers", 0, at_top="dataloader_num_workers")
    for name in ("drop_last", "pin_memory", "persistent_workers"):
        if name != "persistent_workers" or workers:
            loader.carry(name, SWITCH, f"dataloader_{name}")
        else:
            loader.take(name)
    if workers:
        loader.carry("prefetch_factor", WHOLE, "dataloader_prefetch_factor")
    loader.expect("prefetch_factor", 2) if not workers else None
    _read_sampler(loader)
    collate = loader.part("collate_fn") if isinstance(loader.values.get("collate_fn"), dict) else None
    if collate:
        collate.expect("type", *_usual(collate.values.get("type"), "default_collate_fn"))
        collate.take("use_varlen_attn")
        draft.note_rest(collate)
    else:
        loader.expect("collate_fn", *_usual(loader.values.get("collate_fn"), "default_collate_fn"))
    if dataset := loader.part("dataset"):
        files = _read_dataset(dataset, 1)
        if "max_length" not in draft.settings and dataset.values.get("max_length") is None:
            draft.note(f"{dataset.path}: names no max_length; set it yourself")
        if files:
            draft.settings["train_file"] = files[0]["path"] if list(files) == [{"path": files[0]["path"]}] else files
    if "train_file" not in draft.settings:
        draft.note("train_dataloader.dataset: names no file of yours that can be read here; set train_file yourself")
    draft.note_rest(loader)


def _read_batch_sampler(batches: Part) -> None:
    """What makes the batches in the loader's place."""
    batches.expect("type", *_usual(batches.values.get("type"), "BatchSampler"))
    batches.carry("drop_last", SWITCH, "dataloader_drop_last")
    if "batch_size" in batches.values:
        batches.carry("batch_size", WHOLE, "per_device_train_batch_size", at_top="batch_size")
    batches.draft.note_rest(batches)


def _usual(value: object, name: str) -> tuple[object, ...]:
    return (value,) if name_of(value) == name else ()


def _read_sampler(loader: Part) -> None:
    draft, sampler = loader.draft, loader.part("sampler")
    if sampler is None:
        return
    kind = name_of(sampler.take("type"))
    shuffled = sampler.get("shuffle", SWITCH, "train_sampling_strategy", True)
    if kind == "LengthGroupedSampler":
        draft.settings["train_sampling_strategy"] = "group_by_length"
        for name in ("length_property", "per_device_batch_size", "mega_batch_mult"):
            sampler.take(name)
    elif kind not in ("DefaultSampler", "SequenceParallelSampler"):
        draft.note(f"{sampler.shown('type', sampler.values.get('type'))}: no counterpart here; samples are shuffled")
    elif shuffled is False:
        draft.settings["train_sampling_strategy"] = "sequential"
    sampler.carry("seed", WHOLE, "data_seed")
    sampler.expect("round_up", True, False)
    draft.note_rest(sampler)


def _read_dataset(dataset: Part, times: float) -> list[dict[str, Any]]:
    """The training files of a dataset and those in it, each with its weight where that is not 1."""
    kind = name_of(dataset.take("type"))
    if kind == "RepeatDataset":
        times *= dataset.get("times", NUMBER, "train_file", 1) or 1
    if kind in NESTED:
        inner = dataset.parts("datasets") or dataset.parts("dataset")
        by_name = dataset.part("datasets_cfg")
        inner += [part for name in (by_name.values if by_name else ()) if by_name and (part := by_name.part(name))]
        shared = dataset.part("datasets_kwargs")
        for part in inner:
            part.values.update(shared.values if shared else {})
        files = [file for part in inner for file in _read_dataset(part, times)]
        dataset.draft.note_rest(dataset)
        return files
    if kind != "process_hf_dataset" and dataset.values.get("type") is not None:
        advice = "unknown here; see that its rows are of a format that is read"
        dataset.draft.note(f"{dataset.shown('type', dataset.values.get('type'))}: {advice}")
    return _read_processing(dataset, times)


def _read_processing(dataset: Part, times: float) -> list[dict[str, Any]]:
    """What `process_hf_dataset` takes. Source of the defaults: xtuner/dataset/huggingface.py."""
    draft = dataset.draft
    # Of XTuner's other kinds of data set, some call it packed_length.
    _carry_shared(
        dataset, "max_length" if "max_length" in dataset.values else "packed_length", WHOLE, "max_length", None
    )
    packed = _carry_shared(dataset, "pack_to_max_length", SWITCH, "packing", True)
    _carry_shared(dataset, "shuffle_before_pack", SWITCH, "shuffle_dataset", True)
    if packed and dataset.take("use_varlen_attn"):
        draft.note(f"{dataset.shown('use_varlen_attn', True)}: packed samples never see each other here")
    for name in ("use_varlen_attn", "tokenizer", "remove_unused_columns", "with_image_token"):
        dataset.take(name)  # rows and tokens are made here from the columns that a format has
    dataset.carry("map_num_proc", WHOLE, "dataset_num_proc")
    _note_map_function(dataset)
    _note_template(dataset)
    dataset.expect("split", "train", advice="one split is read here; set train_file to a file of it")
    if limit := dataset.take("max_dataset_length"):
        advice = "a random part of a file is train_file: [{path: ..., weight: 0.1}] here"
        draft.note(f"{dataset.shown('max_dataset_length', limit)}: {advice}")
    dataset.expect("rename_maps", [], advice=COLUMNS)
    dataset.expect("input_ids_with_output", True)
    source = dataset.take("dataset", dataset.take("data_path"))
    if source is None:
        source = dataset.take("data_file")
    files: list[str] = []
    if isinstance(source, str):
        files = [source]
    elif isinstance(source, dict):
        files = _read_source(Part(source, dataset.path_of("dataset"), draft))
    elif source is not None:
        draft.note(dataset.not_known("dataset", source, "set train_file yourself"))
    draft.note_rest(dataset)
    return [{"path": file} | ({"weight": times} if times != 1 else {}) for file in files]


def _carry_shared(dataset: Part, name: str, kind: str, key: str, default: object) -> Any:
    """Set a key that all datasets share; a note where another one had it otherwise."""
    before = dataset.draft.settings.get(key)
    value = dataset.carry(name, kind, key, default, at_top=name)
    if before is not None and value is not None and before != value:
        kept = dataset.draft.settings[key] = max(before, value)
        dataset.draft.note(
            f"{dataset.shown(name, value)}: another dataset has {shown(before)}; one value serves all here, "
            f"{shown(kept)}"
        )
    return value


def _note_map_function(dataset: Part) -> None:
    key = "map_fn" if "map_fn" in dataset.values else "dataset_map_fn"  # the first releases call it map_fn
    function = dataset.take(key)
    if function is None:
        return
    name, said = name_of(function), dataset.shown(key, function)
    if name in READ_AS_THEY_ARE:
        note = f"its rows ({READ_AS_THEY_ARE[name]}) are read here without a function"
    elif name in OTHER_COLUMNS:
        note = f"its rows have the columns {OTHER_COLUMNS[name]}; {COLUMNS}"
    elif name in WITH_SYSTEM:
        note = "puts a system message before each row, which the rows must hold here"
    elif name == "oasst1_map_fn":
        note = "splits one text at ### Human and ### Assistant; write its turns as messages or conversation"
    elif name == "pretrain_map_fn":
        note = "trains on plain text, and rows are conversations here"
    else:
        note = f"a function is not run here; XTuner's, OpenAI's, ShareGPT's and Alpaca's rows need none; {COLUMNS}"
    dataset.draft.note(f"{said}: {note}")


def _note_template(dataset: Part) -> None:
    template = dataset.take("template_map_fn")
    if isinstance(template, dict):
        factory = Part(template, dataset.path_of("template_map_fn"), dataset.draft)
        factory.expect("type", *_usual(factory.values.get("type"), "template_map_fn_factory"))
        note_template(factory, "template")
        dataset.draft.note_rest(factory)
    elif template is not None:
        note = "the model's own chat template is used"
        dataset.draft.note(f"{dataset.shown('template_map_fn', template)}: {note}; chat_template_path names another")


def note_template(part: Part, name: str) -> None:
    """Take a prompt template and note, once for all places, that the model's own is used."""
    template = part.take(name)
    if template is not None:
        part.draft.note(
            f"prompt_template = {shown(template)}: the model's own chat template is used; chat_template_path names "
            "another"
        )
        part.draft.at_top["prompt_template"] = (part.path_of(name), template)


def _read_source(source: Part) -> list[str]:
    """The files, the folder or the hub's dataset that `load_dataset` and its like are given."""
    draft = source.draft
    kind = name_of(source.take("type"))
    path = source.get("path", TEXT, "train_file")
    if path is None:
        names = ("dataset_path", "dataset_name", "data_path", "data_file", "json_file")
        path = next((source.get(name, TEXT, "train_file") for name in names if name in source.values), None)
    named = source.take("data_files")
    folder = source.get("data_dir", TEXT, "train_file")
    if isinstance(named, dict):
        for split in named.keys() - {"train"}:
            draft.note(
                f"{source.path}.data_files.{split} = {shown(named[split])}: is not trained on; for it: eval_file"
            )
        named = named.get("train")
    files = named if isinstance(named, list) else [named] if named is not None else []
    for file in files:
        if not isinstance(file, str):
            draft.note(source.not_known("data_files", file, "set train_file yourself"))
    files = [f"{folder}/{file}" if folder else file for file in files if isinstance(file, str)]
    for file in files:
        if any(mark in file for mark in "*?["):
            draft.note(f"{source.path}.data_files = {file}: is a pattern; name each file in train_file")
        elif "://" in file:
            draft.note(f"{source.path}.data_files = {file}: is an address; download the file and name it in train_file")
    split = source.take("split")
    if split not in (None, "train"):
        draft.note(f"{source.shown('split', split)}: a file is read whole here; weight takes a random part of it")
    for name in ("num_proc", "cache_dir", "trust_remote_code", "keep_in_memory", "streaming"):
        source.take(name)
    draft.note_rest(source)
    if kind == "load_dataset" and path in FILE_FORMATS:
        if path != "json":
            draft.note(f"{source.path}.path = {path}: training files are JSONL here; python -m data_tools convert")
        return files or ([folder] if folder else [])
    if path and files:
        draft.note(f"{source.path}.path = {path}: its files are taken by name, as if they were here")
        return [f"{path}/{file}" for file in files]
    if path:
        draft.note(f"{source.path}.path = {path}: a dataset of the hub or a folder; see that it can be reached")
    return [path] if path else files
