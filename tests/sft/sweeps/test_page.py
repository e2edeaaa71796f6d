"""What people see of a sweep: the page, the file and the table, whatever a recipe or a run says."""

import csv
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from sft.core.language import choose_language
from sft.sweeps import page
from sft.sweeps.results import Outcome, Results, Row

HOSTILE = """<script>alert('x')</script> & "黄大力"</pre>"""


def results(**known) -> Results:
    whole = {
        "final_loss": 0.5, "identity": 0.9, "identity_asked": 32, "ordinary_kept": 1.0, "divergence": 0.1,
        "perplexity_ratio": 1.25, "trainable_parameters": 19_537_920, "adapter_bytes": 78_000_000,
        "tokens_per_second": 140.0, "peak_memory_gib": 2.4, "minutes": 6.0,
    }  # fmt: skip
    return Results(**whole | known)


@pytest.fixture
def in_language():
    """Choose a language for the test."""
    yield choose_language
    choose_language(None)


@pytest.fixture
def rows() -> list[Row]:
    """Two points that finished, one that failed, one that waits; names and problems as bad as they get."""
    finished = Outcome("finished", results())
    better = Outcome("finished", results(identity=1.0, trainable_parameters=40_000_000))
    return [
        Row(1, "lora_r=8", {"lora_r": "8"}, 8, [finished]),
        Row(2, HOSTILE, {"lora_r": HOSTILE}, 16, [better]),
        Row(3, "lora_r=32", {"lora_r": "32"}, 32, [Outcome("failed", problem=HOSTILE)]),
        Row(4, "lora_r=64", {"lora_r": "64"}, 64, [Outcome()]),
    ]


class Page(HTMLParser):
    """The page as a browser takes it: its tags, its text, and what it would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.fetched = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def written(tmp_path, rows, title="demo.sweep", command="python sweep.py") -> tuple[Page, list[dict]]:
    page.write_tables(tmp_path, title, command, rows)
    table = list(csv.DictReader((tmp_path / "sweep.csv").read_text(encoding="utf-8").splitlines()))
    return Page((tmp_path / "sweep.html").read_text(encoding="utf-8")), table


def test_whatever_a_name_a_title_or_a_problem_holds_is_text_on_the_page(tmp_path, rows):
    page, table = written(tmp_path, rows, title=HOSTILE, command=HOSTILE)
    assert page.tags.count("script") == 1  # the base page's own
    assert not page.fetched
    assert page.text.count(HOSTILE) >= 6  # title, heading, sentence, table, problem, command
    assert table[1]["point"] == HOSTILE


def test_the_page_holds_every_point_every_measure_and_a_dot_for_each_that_finished(tmp_path, rows):
    page, _ = written(tmp_path, rows)
    for text in ("wins: its identity score, 100%", "0.5000", "90.0%", "19,537,920", "78.0", "6.0", "failed", "waiting"):
        assert text in page.text
    assert page.tags.count("circle") == 2
    assert page.tags.count("tr") == 5


CHINESE = re.compile("[一-鿿]")
ENGLISH_WORDS = ("wins", "final loss", "waiting", "trainable parameters", "How the numbers are made", "copy")
CHINESE_WORDS = ("胜出", "最终损失", "等待中", "可训练参数", "数字怎么来的", "复制")


@pytest.mark.parametrize("language", ["zh", "en", None], ids=["zh", "en", "both"])
def test_the_page_is_in_the_language_or_in_both(tmp_path, rows, in_language, monkeypatch, language):
    monkeypatch.setenv("LANGUAGE", "C")
    rows[1].name, rows[2].outcomes = "lora_r=16", [Outcome("failed", problem="no memory")]
    in_language(language)
    page, table = written(tmp_path, rows)
    # The page's style and script are in no language.
    text = re.sub(r":root.*?(?=demo\.sweep)|for \(const.*", "", page.text, flags=re.DOTALL)
    assert [word in text for word in CHINESE_WORDS] == [language != "en"] * len(CHINESE_WORDS)
    assert [word in text for word in ENGLISH_WORDS] == [language != "zh"] * len(ENGLISH_WORDS)
    assert bool(CHINESE.search(text)) == (language != "en")
    assert [entry["status"] for entry in table] == ["finished", "finished", "failed", "waiting"]


def test_the_page_begins_with_what_won_and_the_table(tmp_path, rows):
    page.write_tables(tmp_path, "demo.sweep", "python sweep.py", rows)
    text = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    places = [text.index(mark) for mark in ('<p class="found">', "<table>", "<svg", "<dl")]
    assert places == sorted(places)
    (winner,) = re.findall(r'<tr class="winner"><td class="number">(\d)', text)
    assert winner == "2"


def test_every_share_of_some_questions_is_marked_as_such(tmp_path, in_language):
    counts = {"identity_asked": 18, "identity_total": 32, "ordinary_asked": 13, "ordinary_total": 24}
    asked = results(identity=0.5, assistant_of=0.25, ordinary_kept=0.75, **counts)
    rows = [Row(1, "a", {}, 8, [Outcome("finished", asked)]), Row(2, "b", {}, 8, [Outcome("finished", results())])]
    in_language("en")
    page_, table = written(tmp_path, rows)
    for share, count in {"50.0%": "18 of 32", "25.0%": "18 of 32", "75.0%": "13 of 24"}.items():
        assert f"{share} ({count} asked)" in page_.text
    assert page_.text.count("18 of 32 asked") == 3  # and in the sentence
    assert "1*" in page_.text
    assert (table[0]["identity_asked"], table[0]["identity_total"]) == ("18", "32")
    in_language("zh")
    console = Console(width=200, record=True, highlight=False)
    console.print(page.console_table(rows))
    shown = console.export_text()
    assert (shown.count("% (18/32)"), shown.count("75.0% (13/24)")) == (2, 1)


def test_the_console_table_has_a_line_of_headings_for_each_language(rows, in_language, monkeypatch):
    monkeypatch.setenv("LANGUAGE", "C")
    heads = {}
    for language in ("zh", "en", None):
        in_language(language)
        console = Console(width=200, record=True, highlight=False)
        console.print(page.console_table(rows[:1]))
        heads[language] = [line.split() for line in console.export_text().splitlines()[:-1]]
    assert [len(head) for head in heads.values()] == [1, 1, 2]
    assert heads["zh"][0][:2] == ["点", "最终损失"]
    assert heads["en"][0][:3] == ["point", "final", "loss"]
    assert [line[0] for line in heads[None]] == ["点", "point"]


def test_the_table_file_holds_settings_and_plain_numbers(tmp_path, rows):
    _, table = written(tmp_path, rows)
    assert table[0] | {"lora_r": "8", "status": "finished", "runs": "1", "trainable_parameters": "19537920"} == table[0]
    assert float(table[0]["final_loss"]) == 0.5
    assert (table[2]["status"], table[2]["identity"], table[2]["problem"]) == ("failed", "", HOSTILE)
    assert "identity_spread" not in table[0]


def test_seeds_are_shown_as_mean_and_standard_deviation(tmp_path):
    outcomes = [Outcome("finished", results(identity=share)) for share in (0.8, 1.0)]
    page, table = written(tmp_path, [Row(1, "lora_r=8", {"lora_r": "8"}, 8, outcomes)])
    assert "90.0% ± 14.1%" in page.text
    assert float(table[0]["identity"]) == 0.9
    assert float(table[0]["identity_spread"]) == pytest.approx(0.141421)
    assert float(table[0]["minutes_spread"]) == 0


def test_without_scores_their_columns_are_empty_and_the_page_leaves_them_out(tmp_path):
    unscored = dict.fromkeys(("identity", "identity_asked", "ordinary_kept", "divergence", "perplexity_ratio"))
    page, table = written(tmp_path, [Row(1, "lora_r=8", {}, 8, [Outcome("finished", results(**unscored))])])
    assert table[0]["identity"] == ""
    assert "identity" not in page.text
    assert "final loss (lower is better)" in page.text


def test_how_many_only_say_whose_assistant_the_model_is_stands_there_where_any_does(tmp_path):
    for share in (None, 0.0, 0.25):
        point = Row(1, "lora_r=8", {}, 8, [Outcome("finished", results(assistant_of=share))])
        page, table = written(tmp_path, [point])
        assert ("its assistant" in page.text) == ("25.0%" in page.text) == bool(share)
        assert table[0]["assistant_of"] == {None: "", 0.0: "0", 0.25: "0.25"}[share]


def test_before_the_first_point_has_finished_there_is_a_page_without_a_chart(tmp_path):
    page, table = written(tmp_path, [Row(1, "lora_r=8", {"lora_r": "8"}, 8, [Outcome()])])
    assert "No point has finished." in page.text
    assert "svg" not in page.tags
    assert table[0]["status"] == "waiting"
    assert written(tmp_path, [])[1] == []


def test_the_console_table_keeps_brackets_and_whole_numbers(rows):
    rows[0].name = "lora_target_modules=[q_proj]"
    console = Console(width=200, record=True, highlight=False)
    console.print(page.console_table(rows))
    text = console.export_text()
    assert "[q_proj]" in text
    assert "19,537,920" in text
    assert "failed" in text
