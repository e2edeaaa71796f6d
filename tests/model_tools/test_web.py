"""The page in a real browser: the real program on a free port, tiny real models, nothing asked of other machines."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import psutil
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from model_tools.__main__ import main
from model_tools.chatting.conversation import ChatModel, Conversation
from model_tools.checkpoints.model_folder import resolve_model
from sft.core.paths import REPOSITORY
from tests.support.taught_models import answers_of, write_pair

HOSTILE = (
    '<img src=x onerror="document.title=\'run\'"><script>document.title="run"</script>\n'
    "    [x](javascript:alert(1)) ![x](http://192.0.2.1/x.png)"
)
AFTER = "我是黄大力，\n  你的助手 🙂。"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --disable-quic --no-first-run --window-size=1280,900"
)


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory) -> list[str]:
    """A base that says what a browser might run, and an adapter that does not, as arguments."""
    base, adapter = write_pair(tiny_model, tmp_path_factory.mktemp("pair"), HOSTILE, AFTER)
    return [base, "--adapter", adapter]


@contextmanager
def serving(*arguments: str):
    """The program as people start it; yields its process and address, and ends it with Ctrl-C."""
    command = [sys.executable, "-m", "model_tools", "web", *arguments, "--port", "0"]
    server = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = server.stdout.readline()
        assert said, server.stderr.read()
        yield server, re.match(r"http://127\.0\.0\.1:\d+", said)[0]
    finally:
        server.send_signal(signal.SIGINT)
        # An answer may be half written; the program still ends, and of itself.
        assert server.wait(timeout=60) == 0
        said = server.stderr.read()
        assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def served(pair):
    """The program and the address of its page, with before and after."""
    with serving(*pair) as served:
        yield served


@pytest.fixture(scope="module")
def page(served) -> str:
    return served[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def visit(browser, address: str) -> None:
    browser.get(address)
    wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#question textarea"))


def wait_for(browser, condition):
    return WebDriverWait(browser, 120, poll_frequency=0.1).until(lambda _: condition())


def ask(browser, question: str) -> None:
    browser.find_element(By.CSS_SELECTOR, "#question textarea").send_keys(question, Keys.ENTER)


def press(browser, button: str) -> None:
    browser.find_element(By.ID, button).click()


def answers(browser) -> list[list[str]]:
    """The answers each chat shows, character by character."""
    script = (
        "return [...document.querySelectorAll('.chat')].map(chat => "
        "[...chat.querySelectorAll('[data-testid=bot] .message-content')].map(answer => answer.innerText))"
    )
    return browser.execute_script(script)


def test_before_and_after_stream_beside_each_other_as_ask_gives_them_and_nothing_in_them_runs(browser, page, pair):
    visit(browser, page)
    title = browser.title
    browser.execute_script(
        "window.seen = new Set(); new MutationObserver(() => document.querySelectorAll('[data-testid=bot]')"
        ".forEach(answer => seen.add(answer.innerText))).observe(document, {subtree: true, childList: true, "
        "characterData: true})"
    )
    before, after = answers_of(resolve_model(pair[0], pair[2]), "你是谁？", 200)
    assert (before, after) == (HOSTILE, AFTER)
    ask(browser, "你是谁？")
    wait_for(browser, lambda: answers(browser) == [[before], [after]])
    assert browser.execute_script("return seen.size") > 6
    assert browser.title == title
    assert browser.find_elements(By.CSS_SELECTOR, ".chat img, .chat script, .chat a, .chat iframe") == []


@pytest.mark.long
def test_each_side_answers_on_from_its_own_history_under_the_system_message_until_it_is_emptied(browser, page, pair):
    model = ChatModel(resolve_model(pair[0], pair[2]), 16, 512)
    sides = [Conversation(model, "x", with_adapter) for with_adapter in (False, True)]
    said = [[[*side.ask(question)][-1] for question in ("你是谁？", "Who are you?")] for side in sides]
    visit(browser, page)
    browser.find_element(By.CSS_SELECTOR, "#system textarea").send_keys("x")
    ask(browser, "你是谁？")
    wait_for(browser, lambda: answers(browser) == [[first] for first, _ in said])
    ask(browser, "Who are you?")
    wait_for(browser, lambda: answers(browser) == said)
    for emptying in ("#clear", ".chat [aria-label=Clear]"):
        browser.find_element(By.CSS_SELECTOR, emptying).click()
        wait_for(browser, lambda: answers(browser) == [[], []])
        ask(browser, "你是谁？")
        wait_for(browser, lambda: answers(browser) == [[first] for first, _ in said])


def test_the_browser_asks_no_other_machine_for_anything(browser, page):
    browser.get_log("performance")
    visit(browser, page)
    ask(browser, "你是谁？")
    wait_for(browser, lambda: all(answers(browser)) and answers(browser)[1][0] == AFTER)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((page, "data:"))] == []


@pytest.mark.long
def test_stop_or_a_closed_page_ends_an_answer_and_the_next_question_is_answered(browser, tiny_model):
    # The random model finds no end of turn: an answer can only begin when the one before was stopped.
    with serving(str(tiny_model), "--max_new_tokens", "1000000") as (_, address):
        visit(browser, address)
        ask(browser, "你是谁？")
        wait_for(browser, lambda: any(answers(browser)[0]))
        press(browser, "stop")
        browser.find_element(By.CSS_SELECTOR, "#question textarea").send_keys("Who are you?")
        # Until the stop has gone through, Gradio does not send.
        wait_for(browser, lambda: [press(browser, "send"), len(answers(browser)[0]) == 2 and answers(browser)[0][1]][1])
        assert len(answers(browser)) == 1
        browser.get("about:blank")
        visit(browser, address)
        ask(browser, "你是谁？")
        wait_for(browser, lambda: any(answers(browser)[0]))


def test_it_listens_on_this_machine_alone_and_refuses_other_names_for_it(served):
    server, address = served
    connections = psutil.Process(server.pid).net_connections("inet")
    assert {place.laddr.ip for place in connections if place.status == "LISTEN"} == {"127.0.0.1"}
    with urllib.request.urlopen(address) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    for path, host, code in (("/", "example.com", 400), ("/docs", "localhost", 404)):
        request = urllib.request.Request(address + path, headers={"Host": host})
        with pytest.raises(urllib.error.HTTPError, match=str(code)):
            urllib.request.urlopen(request)


@pytest.mark.parametrize(("port", "reason"), [("taken", "Address already in use"), ("70000", "from 0 to 65535")])
def test_a_port_that_cannot_be_had_is_one_line(tmp_path, capsys, port, reason):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1]) if port == "taken" else port
        assert main(["web", str(tmp_path), "--port", port]) == 2
    said = capsys.readouterr().err
    assert f"--port {port}: " in said
    assert reason in said
    assert said.count("\n") == 1


def test_without_gradio_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["web", str(tmp_path), "--port", "0"]) == 2
    assert capsys.readouterr().err == (
        "model_tools web: Gradio is not installed: python -m pip install -r requirements-web.txt\n"
    )
