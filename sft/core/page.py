"""Renders HTML pages that open offline: one file with its style inside, no script, nothing loaded from elsewhere.

In: a Jinja template and values. Out: HTML in which every value is escaped. Knows nothing about what a page shows.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PAGES = Path(__file__).parent / "pages"


def render(name: str, folder: Path, **values: object) -> str:
    """The template `name` of a folder, which may extend `base.html`, filled with the values.

    Raises:
        jinja2.UndefinedError: the template uses a value that was not given.
    """
    loader = FileSystemLoader([folder, PAGES])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name).render(values)
