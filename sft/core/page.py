"""Fills a page of HTML: one file, its style inside, no script and nothing from elsewhere; every value is escaped."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PAGES = Path(__file__).parent / "pages"


def render(name: str, folder: Path, **values) -> str:
    """The page `name` of a folder, built on `base.html`, with the values in it as text."""
    loader = FileSystemLoader([folder, PAGES])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name).render(values)
