"""Fine-tune a chat model as one recipe says.

    deepspeed --quiet train_sft.py recipes/demo.yaml
    deepspeed --quiet --num_accelerators 2 train_sft.py recipes/demo.yaml --lora_r 32      # any key of the recipe

`python`, `torchrun`, `accelerate launch` and Slurm's `srun` start it just as well. Exit codes: 0 done; 2 a mistake in
the recipe, the data or the machine; 3 the run failed; 75 stopped by a signal and saved: the same command resumes it.
Each is explained in one line.
"""

import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from sft.core.clock import clock
from sft.core.console import is_main_process, quiet_the_stack, say, waiting
from sft.core.exit_codes import exit_code, exit_now
from sft.core.imports import importing
from sft.core.language import choose_language, lines_shown
from sft.core.slurm import take_place
from sft.core.streams import guard

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sft.config.recipe import Recipe
    from sft.data.dataset_card import DatasetCard
    from sft.runs.run_directory import StartPoint
    from sft.training.progress import ResultRecorder


def main(arguments: list[str]) -> None:
    """Read the recipe and the command line, and train by them; a mistake is reported before the stack is imported."""
    from sft.config.settings import read_settings

    take_place()
    settings = read_settings(arguments)
    choose_language(settings.chosen.get("language"))
    if settings.dry_run and not is_main_process():
        return  # one process plans for all, without a group

    from sft.models.model_folder import check_model_folder, require_model

    # Seconds of imports, for which a mistake in the recipe or a model that is not there need not wait.
    with_weights = not settings.chosen.get("card")
    check_model_folder(settings.model, with_weights=with_weights)
    require_model(settings.model, settings.model_revision, with_weights=with_weights)
    say("loading PyTorch, Transformers and TRL")
    with importing():
        from sft.config.load import read_recipe
        from sft.training import launch, stack_errors

    recipe = read_recipe(settings) if settings.dry_run else launch.start(settings)
    with stack_errors.explain(recipe):
        train(recipe)


def train(recipe: "Recipe") -> None:
    """Plan the run of a recipe and, unless that is all it asks for, carry it out."""
    from sft.data.counts import largest_token
    from sft.data.dataset import load_dataset, load_held_out
    from sft.evaluation.diagnosis import warnings_before_training
    from sft.models.loading import load_tokenizer
    from sft.models.model_folder import check_tokens
    from sft.runs import run_directory
    from sft.runs.inputs import DATE
    from sft.training import stack_errors
    from sft.training.cpu import check_speed
    from sft.training.launch import broadcast_from_main
    from sft.training.plan import check_memory, check_output, make_plan
    from sft.training.progress import ResultRecorder

    training = recipe.training
    if not recipe.run.dry_run:
        broadcast_from_main(lambda: run_directory.lock(training.output_dir))
    with waiting(f"looking in {training.output_dir} for a checkpoint to resume from"):
        start = broadcast_from_main(lambda: run_directory.find_start(recipe))
    for line in start.notes:
        say(line)

    model = recipe.model
    tokenizer = load_tokenizer(
        model.model_name_or_path,
        revision=model.model_revision,
        trust_remote_code=training.trust_remote_code,
        chat_template_path=training.chat_template_path,
        chat_template_kwargs=recipe.run.chat_template_kwargs,
        chat_template_date=date.fromisoformat(start.inputs[DATE]),
        pad_token=training.pad_token,
    )
    reading = waiting(f"reading {', '.join(file.path for file in recipe.train_files)}")
    with clock.spent_on("data"), reading, training.distributed_state.local_main_process_first():
        packs, card = load_dataset(recipe, tokenizer)
        held_out = load_held_out(recipe, tokenizer)
    say("\n".join(card.lines()))

    plan = broadcast_from_main(lambda: make_plan(recipe, card))
    check_tokens(largest_token(packs), plan.vocabulary, model.model_name_or_path)
    say("\n".join(plan.lines()))
    warnings = broadcast_from_main(
        lambda: [
            *warnings_before_training(recipe, tokenizer, card),
            *check_output(recipe, plan),
            *check_memory(recipe, card, plan),
            *check_speed(recipe),
        ]
    )
    for line in lines_shown(line for warning in warnings for line in warning.warning()):
        say(line, style="yellow")
    if recipe.run.dry_run:
        say("dry run: nothing was loaded or written")
        return

    planned = plan.to_dict() | {"warnings": [warning.to_dict() for warning in warnings]}
    broadcast_from_main(lambda: run_directory.open_run(recipe, card, start, planned))
    folder, first_step = Path(training.output_dir), start.checkpoint.step if start.checkpoint else 0
    with ResultRecorder(folder, plan, first_step) as result, stack_errors.explain(recipe, folder):
        carry_out(recipe, start, tokenizer, packs, held_out, card, result)


def carry_out(
    recipe: "Recipe",
    start: "StartPoint",
    tokenizer: "PreTrainedTokenizerBase",
    packs: "Dataset",
    held_out: "Dataset | None",
    card: "DatasetCard",
    result: "ResultRecorder",
) -> None:
    """Train by a recipe, from where it starts, in a run directory that is open."""
    from sft.evaluation.chat_eval import ChatEval
    from sft.evaluation.score_eval import ScoreEval
    from sft.models.loading import describe_parameters, load_model
    from sft.reports.report_writer import ReportWriter, write_report
    from sft.runs.run_files import read_run
    from sft.runs.verdict import verdict_on
    from sft.training import final_model
    from sft.training.interrupts import StopAndSave, Watchdog
    from sft.training.progress import ProgressLog
    from sft.training.trainer import RecipeTrainer

    training = recipe.training
    with waiting(f"loading {recipe.model.model_name_or_path}"):
        model = load_model(
            recipe.model, trust_remote_code=training.trust_remote_code, **(training.model_init_kwargs or {})
        )
        trainer = RecipeTrainer(recipe, model, tokenizer, packs, held_out, start.inputs, card)
    chat = ChatEval(trainer)
    trainer.add_callback(result)
    trainer.add_callback(ProgressLog(trainer))
    trainer.add_callback(chat)
    if recipe.run.identity_name:
        trainer.add_callback(ScoreEval(trainer))
    trainer.add_callback(ReportWriter(trainer))
    trainer.add_callback(Watchdog(training.ddp_timeout, result))
    trainer.add_callback(StopAndSave(trainer))
    say(describe_parameters(trainer.model, recipe.model))

    trainer.train(resume_from_checkpoint=start.checkpoint and str(start.checkpoint.folder))
    final = final_model.save_final(trainer, card, chat.latest)
    say(f"done: {final} holds the {'adapter' if recipe.model.use_peft else 'model'}, its tokenizer and a model card")
    write_report(trainer)
    trainer.end()
    if is_main_process():
        say("\n".join(verdict_on(read_run(final.parent)).lines()))


if __name__ == "__main__":
    guard()
    quiet_the_stack()
    try:
        main(sys.argv[1:])
    except BaseException as end:
        exit_now(exit_code(end))
    exit_now(0)
