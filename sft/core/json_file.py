"""Reads and writes a file of one JSON object, as the configs of models, tokenizers and adapters are.

In: a path. Out: the object, or one `UserError`. Knows nothing about what stands in it.
"""

import json
from pathlib import Path

from sft.core.errors import UserError


def read_json(path: Path, advice: str = "copy or write it again") -> dict:
    """The object in a JSON file; `advice` says what to do where there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise UserError(f"{path}: cannot be read ({problem}): {advice}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no object of JSON: {advice}")
    return content


def write_json(path: Path, content: dict) -> None:
    """Write an object for people to read too: indented, and with letters as they are."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
