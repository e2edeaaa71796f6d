"""Reads what training files teach about identity, a part of a file at a time.

In: the files of a recipe, the wanted name if there is one. Out: `IdentityRows`. Knows nothing about models.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

from sft.config.own_keys import TrainFile
from sft.core.errors import UserError
from sft.data.identity import OLD_NAMES
from sft.data.identity_rows import IdentityRows, RowFacts, SoughtNames, main_name
from sft.data.readers.row_file import RowFile
from sft.data.rows import formats

# A file's first rows, which show what name most of its rows are likely to give.
FIRST_ROWS = 1000


def facts_of_file(file: TrainFile, names: SoughtNames) -> Iterator[RowFacts]:
    """What a file's rows say, read from the file itself, as one part.

    Raises:
        UserError: the file cannot be read, or a row of it is bad.
    """
    facts = RowFacts(names)
    for _ in facts.of(formats.read_rows(RowFile(file.path, file.columns))):
        pass
    yield facts


def read_identity_rows(
    files: list[TrainFile],
    name: str | None,
    old_names: Iterable[str] = (),
    facts_of: Callable[[TrainFile, SoughtNames], Iterable[RowFacts]] = facts_of_file,
) -> IdentityRows:
    """What the rows of all files say of a name; without one, of the name that most of them give.

    `old_names` come on top of `OLD_NAMES`; `facts_of` gives the facts of a file, part by part.

    Raises:
        UserError: a file cannot be read, or a row of it is bad.
    """
    names = sought_names(files, name, old_names)
    name = name or main_name(facts for file in files for facts in facts_of(file, names))
    if name and name not in names.wanted:
        # The first rows did not show it, so that no row was searched for it yet.
        names = SoughtNames((name,), names.old)
    rows = IdentityRows(name, names.old)
    for file in files:
        for facts in facts_of(file, names):
            rows.add(file.path, facts, file.weight)
    return rows


def sought_names(files: list[TrainFile], name: str | None, old_names: Iterable[str] = ()) -> SoughtNames:
    """The wanted name, or those that the files' first rows are likely to teach, and old names beside `OLD_NAMES`."""
    wanted = [name] if name else [_likely_name(RowFile(file.path, file.columns)) for file in files]
    return SoughtNames(tuple(dict.fromkeys(filter(None, wanted))), tuple(dict.fromkeys([*OLD_NAMES, *old_names])))


def _likely_name(file: RowFile) -> str | None:
    """The main name of a file's first rows; what is wrong with the file is for whoever reads it whole to say."""
    facts = RowFacts(SoughtNames((), ()))
    rows = formats.read_rows(file, on_bad=lambda *bad_line: None)
    try:
        for _ in facts.of(itertools.islice(rows, FIRST_ROWS)):
            pass
    except UserError:
        return None
    return main_name([facts])
