"""Writes the model card: what an adapter is, what it was made from, and what it answers.

In: a recipe and, at the end, the dataset card and the answers. Out: a README.md beside the weights.
"""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from sft.config.recipe import Recipe
from sft.data.dataset import DatasetCard
from sft.evaluation.chat_eval import Answer


def write(recipe: Recipe, folder: str | Path, dataset: DatasetCard | None = None, answers: list[Answer] = ()) -> None:
    """Write `README.md` into `folder`."""
    base = recipe.model.model_name_or_path
    card_data = ModelCardData(
        library_name="peft" if recipe.model.use_peft else "transformers",
        base_model=None if Path(base).exists() else base,
        pipeline_tag="text-generation",
        tags=["trl", "sft", *(["lora"] if recipe.model.use_peft else [])],
    )
    sections = [f"# {recipe.name}", f"Fine-tuned from `{base}` with `train_sft.py` and this recipe:"]
    sections.append("```yaml\n" + recipe.chosen_yaml().strip() + "\n```")
    if dataset:
        sections.append("## Data\n\n```\n" + "\n".join(dataset.lines()) + "\n```")
    if answers:
        rows = "".join(f"| {_cell(answer.prompt)} | {_cell(answer.answer)} |\n" for answer in answers)
        sections.append(f"## Answers after step {answers[0].step}\n\n| prompt | answer |\n| --- | --- |\n{rows}")
    content = f"---\n{card_data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    ModelCard(content).save(Path(folder) / "README.md")


def _cell(text: str) -> str:
    """Text that stays in its table cell and is shown as text, whatever the model said."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(character, entity)
    return " ".join(text.split())
