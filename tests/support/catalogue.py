"""Collects what a person reads in two languages into the catalogue, and compiles it; prints what lacks its Chinese.

    python -m tests.support.catalogue

Write the Chinese into sft/core/locale/zh/LC_MESSAGES/messages.po and run it again.
"""

import io
import sys
from datetime import UTC, datetime
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

REPOSITORY = Path(__file__).parents[2]
PO = REPOSITORY / "sft/core/locale/zh/LC_MESSAGES/messages.po"
MO = PO.with_suffix(".mo")
SOURCES = ("sft", "data_tools", "model_tools")
METHODS = [("**.py", "python"), ("**.html", "jinja2")]
OPTIONS = {"**.html": {"trimmed": "true"}}
HEADER = """msgid ""
msgstr ""
"Content-Type: text/plain; charset=utf-8\\n"
"Language: zh\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"

"""
KEYWORDS = {"_": None, "ngettext": (1, 2)}


def extracted() -> Catalog:
    """A catalogue of every sentence in the code and the pages, without any Chinese."""
    catalog = Catalog(fuzzy=False)
    for folder in (*SOURCES, "."):
        found = extract_from_dir(
            str(REPOSITORY / folder),
            METHODS,
            OPTIONS,
            KEYWORDS,
            directory_filter=None if folder != "." else lambda path: Path(path) == REPOSITORY,
        )
        for name, _, message, _, _ in found:
            catalog.add(message, locations=[(str(Path(folder) / name), 0)])
    return catalog


def written() -> Catalog:
    """The catalogue as it stands in the repository."""
    with open(PO, "rb") as file:
        return read_po(file, locale="zh")


def compiled(catalog: Catalog) -> bytes:
    """What gettext reads; the same catalogue always gives the same bytes."""
    catalog.creation_date = datetime(2026, 1, 1, tzinfo=UTC)
    file = io.BytesIO()
    write_mo(file, catalog)
    return file.getvalue()


def main() -> int:
    """Bring messages.po and messages.mo up to date; returns 1 where a sentence lacks its Chinese."""
    catalog = written()
    catalog.update(extracted(), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    with open(PO, "wb") as file:
        file.write(HEADER.encode())
        write_po(file, catalog, width=120, include_lineno=False, sort_by_file=True, omit_header=True)
    MO.write_bytes(compiled(written()))
    lacking = [message.id for message in catalog if message.id and not all(translations(message))]
    for sentence in lacking:
        print(f"no Chinese: {sentence}")
    return 1 if lacking else 0


def translations(message) -> tuple[str, ...]:
    """A message's Chinese, in one or more plural forms."""
    return message.string if isinstance(message.string, tuple) else (message.string,)


if __name__ == "__main__":
    sys.exit(main())
