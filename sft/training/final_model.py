"""What a run leaves behind: `final/` with the adapter in PEFT's format (or the model), its tokenizer and a model card.

In: a trainer that is done, the dataset card and the last answers. Out: a folder that is whole or not there.
"""

import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig
from transformers.trainer import TRAINER_STATE_NAME

from sft.config.recipe import Recipe
from sft.core.clock import clock
from sft.core.console import say
from sft.core.files import bring_to_disk
from sft.core.text import shell_word
from sft.data.dataset_card import DatasetCard
from sft.models.written_folder import (
    adapter_commands,
    chat_section,
    code,
    fence,
    hub_id,
    name_tokenizer_for_all,
    plain,
    serving_commands,
    write_end_tokens,
)
from sft.runs import checkpoints
from sft.runs.run_files import FINAL, Answer, read_answers
from sft.training.trainer import RecipeTrainer

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@clock.spent_on("saving")
def save_final(trainer: RecipeTrainer, card: DatasetCard, answers: list[Answer]) -> Path:
    """Write `final/`: the adapter in PEFT's format (or the model), the tokenizer and a model card.

    With `keep_best` it holds the best checkpoint's, which need not be the last one's.
    """
    run = Path(trainer.args.output_dir)
    final, staged = run / FINAL, checkpoints.staging_dir(run) / FINAL
    best = trainer.best_checkpoint if trainer.recipe.run.keep_best else None
    if best and trainer.state.best_global_step != trainer.state.global_step:
        if trainer.is_world_process_zero():
            _copy_model(best, staged)
            answers = read_answers(run, trainer.state.best_global_step)
            say(f"best checkpoint: step {trainer.state.best_global_step:,} of {trainer.state.global_step:,}")
    else:
        trainer.save_model(str(staged))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        if not trainer.recipe.model.use_peft:
            name_tokenizer_for_all(staged)
            write_end_tokens(staged)
        write_model_card(trainer.recipe, staged, card, answers)
        for path in staged.iterdir():
            bring_to_disk(path)
        if final.exists():
            checkpoints.remove(final)
        staged.replace(final)
        bring_to_disk(run)
        staged.parent.rmdir()
    return final


def write_model_card(recipe: Recipe, folder: Path, dataset: DatasetCard, answers: list[Answer]) -> None:
    """Write `README.md` into `folder`."""
    base = recipe.model.model_name_or_path
    card_data = ModelCardData(
        library_name="peft" if recipe.model.use_peft else "transformers",
        base_model=hub_id(base),
        pipeline_tag="text-generation",
        tags=["trl", "sft", *(["lora"] if recipe.model.use_peft else [])],
    )
    sections = [
        f"# {plain(recipe.name)}",
        f"Fine-tuned from {code(base)} with `train_sft.py` and this recipe:",
        fence(recipe.chosen_yaml(), "yaml"),
        chat_section(folder, _commands(recipe, folder)),
    ]
    if dataset:
        sections.append("## Data\n\n" + fence("\n".join(dataset.lines())))
    if answers:
        rows = "".join(f"| {plain(answer.prompt)} | {plain(answer.answer)} |\n" for answer in answers)
        sections.append(f"## Answers after step {answers[0].step}\n\n| prompt | answer |\n| --- | --- |\n{rows}")
    content = f"---\n{card_data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    ModelCard(content).save(folder / "README.md")


def _commands(recipe: Recipe, folder: Path) -> list[str]:
    """What a person types to chat with the model, and to serve it; `folder` is where it is for now."""
    run = str(recipe.training.output_dir)
    if recipe.model.use_peft:
        return adapter_commands(recipe.model.model_name_or_path, run)
    chat, model = f"python -m model_tools chat {shell_word(run)}", shell_word(str(Path(run) / FINAL))
    if AutoConfig.from_pretrained(folder).model_type != "internlm2":
        return [chat, *serving_commands(model)]
    llama = shell_word(f"models/{recipe.name}")
    return [chat, f"python -m model_tools export-llama {shell_word(run)} {llama}", *serving_commands(llama)]


def _copy_model(checkpoint: Path, final: Path) -> None:
    """Copy what `save_model` wrote into a checkpoint, and not what only resuming needs."""
    final.mkdir(parents=True, exist_ok=True)
    for pattern in MODEL_FILES:
        for file in checkpoint.glob(pattern):
            if file.name != TRAINER_STATE_NAME:
                shutil.copyfile(file, final / file.name)
