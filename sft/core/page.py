"""Renders HTML pages that open offline: one file with its style inside, nothing loaded from elsewhere.

In: a Jinja template and values. Out: HTML in which every value is escaped, in the languages that are shown. The only
script that a browser runs on it is the one that copies a command. Knows nothing about what a page shows.
"""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sft.core.language import _, html_language, ngettext

PAGES = Path(__file__).parent / "pages"
SCRIPT = (PAGES / "copy.js").read_text(encoding="utf-8")
SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


def render(name: str, folder: Path, **values: object) -> str:
    """The template `name` of a folder, which may extend `base.html`, filled with the values.

    Raises:
        jinja2.UndefinedError: the template uses a value that was not given.
    """
    loader = FileSystemLoader([folder, PAGES])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"_": _, "ngettext": ngettext}
    return environment.get_template(name).render(
        values, language=html_language(), script=Markup(SCRIPT), script_digest=SCRIPT_DIGEST
    )
