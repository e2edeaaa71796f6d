"""Pages: every value is escaped, a missing one is an error, and the page loads nothing from elsewhere."""

import base64
import hashlib
import re

import pytest
from jinja2 import UndefinedError

from sft.core.page import render

TEMPLATE = "{% extends 'base.html' %}{% block content %}<p>{{ answer }}</p>{% endblock %}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "answer.html").write_text(TEMPLATE)
    return tmp_path


def test_what_a_model_wrote_is_text_and_never_html(folder):
    page = render("answer.html", folder, title="a & b", answer="<script>alert(1)</script>")
    assert "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>" in page
    assert "<h1>a &amp; b</h1>" in page


def test_a_value_that_is_not_given_is_an_error_not_an_empty_place(folder):
    with pytest.raises(UndefinedError, match="answer"):
        render("answer.html", folder, title="a")


def test_the_base_page_allows_its_one_script_and_forbids_whatever_is_not_in_the_file(folder):
    page = render("answer.html", folder, title="a", answer="b")
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:" in page
    assert not any(part in page for part in ("src=", "href=", "http://", "https://"))
