"""Says what to do about a row whose keys are not known: which columns to name, or how to write the rows.

In: a parsed row. Out: `BadRow`. Knows nothing about files.
"""

from collections.abc import Mapping

from sft.data.rows.json_line import BadRow, named

# What cannot stand in a key that is named on a command line and in a recipe.
_SEPARATORS = set(",= {}:")


class UnknownFormat(BadRow):
    """A row that holds no conversation under a known key; `columns` is an example of how to name its keys.

    `found` are the keys that were understood, by what they hold.
    """

    def __init__(self, row: Mapping, found: Mapping[str, str | None]):
        super().__init__(row, found)
        self.columns = _guessed_columns(row, found)
        self._message = _message(row, found, self.columns)

    def __str__(self) -> str:
        return self._message


def refuse_wrapped(row: Mapping, found: Mapping[str, str | None]) -> None:
    """Refuse an object that all the rows of a file stand in, as servers and pandas write them.

    Raises:
        BadRow: it is such an object.
    """
    held = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(row) == len(held) == 1 and not any(found.values()):
        listed = named(held)
        raise BadRow(f"the rows stand in a list under {listed}: write each on a line, such as with jq -c '.{listed}[]'")
    is_columns = row and all(isinstance(value, dict) and "0" in value for value in row.values())
    is_index = "0" in row and all(isinstance(value, dict) for value in row.values())
    if is_columns or is_index or row.keys() == {"columns", "index", "data"}:
        raise BadRow("pandas wrote columns or an index here, not rows: write to_json(orient='records', lines=True)")


def _message(row: Mapping, found: Mapping[str, str | None], columns: dict[str, str]) -> str:
    lacking = "no known format"
    if found["question"] is not None:
        lacking = f'the row has "{found["question"]}" and no answer to it'
    elif found["answer"] is not None:
        lacking = f'the row has "{found["answer"]}" and no question'
    command = ",".join(f"{meaning}={key}" for meaning, key in columns.items())
    in_recipe = ", ".join(f"{meaning}: {key}" for meaning, key in columns.items())
    return (
        f"{lacking}; it has the keys {named(row) or 'none'} (of a table, the names in its first line): say which is "
        f"which, such as --columns {command}, in a recipe columns: {{{in_recipe}}}; or write messages, conversation, "
        "conversations, instruction/output, query/response, prompt/completion or question/answer"
    )


def _guessed_columns(row: Mapping, found: Mapping[str, str | None]) -> dict[str, str]:
    taken = [key for key in found.values() if key is not None]
    others = [key for key in row if key not in taken and key and key.isprintable() and not set(key) & _SEPARATORS]
    others = [key for key in others if not key.startswith("rejected")]
    if turns := next((key for key in others if _is_turns(row[key])), None):
        return {"messages": turns}
    # Of a preference pair, the one is the answer.
    others = [key for key in others if key == "chosen"] or others
    question = found["question"] or (others.pop(0) if others else "KEY")
    return {"question": question, "answer": found["answer"] or (others.pop(0) if others else "KEY")}


def _is_turns(value: object) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and ("role" in first or "from" in first)
