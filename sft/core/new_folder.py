"""A folder that takes its name only when it is complete and on the disk.

Knows nothing about what the folder holds.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.core.errors import UserError
from sft.core.files import bring_to_disk


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` to write into, which then becomes `out`; a killed run leaves no `out`.

    Raises:
        UserError: there is such a folder and it holds something, it cannot be written, or the disk is full.
    """
    refuse_occupied(out)
    aside = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial."))
        yield aside
        for path in (*aside.iterdir(), aside):
            path.chmod(0o755 if path.is_dir() else 0o644)
            bring_to_disk(path)
        aside.replace(out)
        bring_to_disk(out.parent)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written: {problem.strerror or problem}: name another folder") from None
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)


def refuse_occupied(out: Path) -> None:
    """Raise UserError where `out` is a file or a folder that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already and not empty: name another folder, or remove it")
