"""The page in a real browser: the real program on a free port, tiny real models, nothing asked of other machines."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from model_tools.__main__ import main
from model_tools.chatting.conversation import ChatModel, Conversation
from model_tools.checkpoints.model_folder import resolve_model
from sft.core.paths import REPOSITORY
from tests.support.browser import has_browser, open_browser
from tests.support.taught_models import answers_of, write_pair

HOSTILE = (
    '<img src=x onerror="document.title=\'run\'"><script>document.title="run"</script>\n'
    "    [x](javascript:alert(1)) ![x](http://192.0.2.1/x.png)"
)
AFTER = "我是黄大力，\n  你的助手 🙂。"


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory) -> list[str]:
    """A base that says what a browser might run, and an adapter that does not, as arguments."""
    base, adapter = write_pair(tiny_model, tmp_path_factory.mktemp("pair"), HOSTILE, AFTER)
    return [base, "--adapter", adapter]


@contextmanager
def serving(*arguments: str, **environment: str):
    """The program as people start it; yields its process and address, and ends it with Ctrl-C."""
    command = [sys.executable, "-m", "model_tools", "web", *arguments, "--port", "0"]
    server = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"LANGUAGE": "C"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
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
    if not has_browser():
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    profile = tmp_path_factory.mktemp("profile")
    with open_browser("--window-size=1280,900", f"--user-data-dir={profile}") as browser:
        yield browser


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
    assert browser.execute_script("return seen.size") > 2
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
def test_stop_or_a_closed_page_ends_an_answer_and_the_next_question_is_answered(browser, endless_model):
    # The random model finds no end of turn: an answer can only begin when the one before was stopped.
    with serving(str(endless_model), "--max_new_tokens", "1000000") as (_, address):
        visit(browser, address)
        ask(browser, "你是谁？")
        wait_for(browser, lambda: any(answers(browser)[0]))
        browser.find_element(By.CSS_SELECTOR, "#question .stop-button").click()
        wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#question .submit-button"))
        ask(browser, "Who are you?")
        wait_for(browser, lambda: len(answers(browser)[0]) == 2 and answers(browser)[0][1])
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


SAID = {
    "zh": (
        "adapter：训练前后对比", "训练前：base", "训练后：adapter", "左边是训练前的 base", "右边是加上适配器 adapter",
        "问题", "系统消息", "你叫什么名字？", "发送", "停止", "清空", "例子",
    ),
    "en": (
        "adapter: before and after training", "Before training: base", "After training: adapter",
        "on the left, base as it was before training", "the same model with the adapter adapter", "Question",
        "System message", "What is your name?", "Send", "Stop", "Clear", "Examples",
    ),
}  # fmt: skip


def text_with(browser, address: str, words: tuple[str, ...]) -> str:
    """The text of the page once it says all of this; it is drawn piece by piece."""
    visit(browser, address)
    shown = partial(browser.find_element, By.TAG_NAME, "body")
    wait_for(browser, lambda: [word for word in words if word not in shown().text] == [])
    return shown().text


def test_it_says_who_answers_where_in_both_languages_and_an_example_is_one_click(browser, page):
    text_with(browser, page, (*SAID["zh"], *SAID["en"]))
    assert browser.title == "adapter：训练前后对比 / adapter: before and after training"
    for example in ("Who are you?", "你是谁？"):
        browser.find_element(By.XPATH, f"//button[normalize-space()='{example}']").click()
        box = browser.find_element(By.CSS_SELECTOR, "#question textarea")
        wait_for(browser, lambda box=box, example=example: box.get_attribute("value") == example)


@pytest.mark.parametrize(("language", "other"), [("zh", "en"), ("en", "zh")])
def test_it_is_in_the_language_that_is_chosen(browser, pair, language, other):
    with serving(*pair, "--language", language) as (_, address):
        text = text_with(browser, address, SAID[language])
        assert browser.title == SAID[language][0]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/docs")
        assert refused.value.read().decode() == {"zh": "没有这个页面", "en": "no such page"}[language]
    assert [word for word in SAID[other] if word in text] == []


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory):
    """The page of the base model alone, and the folder that the program may leave files in."""
    files = tmp_path_factory.mktemp("files")
    with serving(pair[0], "--max_new_tokens", "400", TMPDIR=str(files)) as (_, address):
        yield address
    assert list(files.iterdir()) == []


def test_one_model_is_gradios_own_chat_and_remembers_what_was_said_as_it_was_said(browser, alone, pair):
    conversation = Conversation(ChatModel(resolve_model(pair[0]), 16, 400))
    questions = ["你是谁？", "  <b>Who</b> &amp;\n\tare you?"]
    said = [[*conversation.ask(question.strip())][-1] for question in questions]
    assert said[0] == HOSTILE
    visit(browser, alone)
    assert browser.title == "与 base 对话 / Chat with base"
    # A click on the example asks it.
    browser.find_element(By.XPATH, "//*[contains(@class,'chat')]//button[contains(., '你是谁？')]").click()
    wait_for(browser, lambda: answers(browser) == [said[:1]])
    box = browser.find_element(By.CSS_SELECTOR, "#question textarea")
    wait_for(browser, box.is_enabled)
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", box, questions[1]
    )
    box.send_keys(Keys.ENTER)
    wait_for(browser, lambda: answers(browser) == [said])
    asked = "return [...document.querySelectorAll('[data-testid=user] .message-content')].map(each => each.innerText)"
    assert browser.execute_script(asked)[1].strip() == questions[1].strip()
    browser.find_element(By.CSS_SELECTOR, ".chat [aria-label=Retry]").click()
    wait_for(browser, lambda: not browser.find_elements(By.CSS_SELECTOR, "#question .submit-button"))
    wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#question .submit-button"))
    assert answers(browser) == [said]
    browser.find_element(By.CSS_SELECTOR, ".chat [aria-label=Clear]").click()
    wait_for(browser, lambda: answers(browser) == [[]])
    assert browser.find_elements(By.CSS_SELECTOR, ".chat img, .chat script, .chat a, .chat iframe") == []


@pytest.mark.parametrize("address", ["page", "alone"])
def test_a_question_that_is_more_than_the_model_reads_is_refused_in_both_languages(browser, address, request):
    visit(browser, request.getfixturevalue(address))
    box = browser.find_element(By.CSS_SELECTOR, "#question textarea")
    browser.execute_script("arguments[0].value = '黄'.repeat(600); arguments[0].dispatchEvent(new Event('input'))", box)
    box.send_keys(Keys.ENTER)
    shown = "return [...document.querySelectorAll('.toast-body')].map(toast => toast.innerText).join('')"
    toast = wait_for(browser, lambda: browser.execute_script(shown))
    assert "模型最多读 512 个" in toast
    assert "the model reads 512: clear it, or ask in fewer words." in toast


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("address", ["page", "alone"])
def test_nothing_of_the_page_is_cut_at_its_right(browser, address, width, request):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 640}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    visit(browser, request.getfixturevalue(address))
    ask(browser, "你是谁？")
    wait_for(browser, lambda: all(answers(browser)) and answers(browser)[0][0] == HOSTILE)
    beyond = (
        "return [...document.querySelectorAll('h1, button, textarea, label, .chat, .message-content')].filter(each => "
        "each.checkVisibility() && (each.getBoundingClientRect().right > innerWidth + 1 || "
        "each.getBoundingClientRect().left < 0)).map(each => each.outerHTML.slice(0, 200))"
    )
    assert browser.execute_script(beyond) == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


OWN_POST = "/gradio_api/queue/join"
EVENT = b"{}"  # which begins nothing


def ask_for(address: str, method: str, path: str, body: bytes | Iterator[bytes] = b"", **headers: str) -> int:
    """The status of an answer; a body of several parts goes without its length."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Content-Type": "application/json"} | named)
    return connection.getresponse().status


def test_no_upload_is_read_and_nothing_but_the_page_is_served(alone):
    for path in ("upload", "upload?upload_id=x", "stream/x", "component_server", "run/other", "call/x", "vibe-edit"):
        assert (path, ask_for(alone, "POST", f"/gradio_api/{path}")) == (path, 404)
        assert ask_for(alone, "POST", f"/gradio_api/{path}", b"", Content_Length=str(300 << 20)) == 413
    paths = (
        "info openapi.json file=/etc/passwd file/etc/passwd proxy=http://127.0.0.1/ upload_progress app_id token user"
    )
    for path in (
        *(f"/gradio_api/{path}" for path in paths.split()),
        "/openapi.json",
        "/docs",
        "/monitoring",
        "/logout",
    ):
        assert (path, ask_for(alone, "GET", path)) == (path, 404)
    for method, path in (("POST", "/login"), ("PUT", "/"), ("DELETE", "/"), ("OPTIONS", OWN_POST), ("POST", "/")):
        assert (path, ask_for(alone, method, path)) == (path, 404)
    for path in ("/", "/theme.css", "/favicon.ico", "/config"):
        assert (path, ask_for(alone, "GET", path)) == (path, 200)


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({"Origin": "http://evil.example"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "http://localhost:8888"}, True),
        ({"Sec_Fetch_Site": "cross-site"}, True),
        ({"Sec_Fetch_Site": "same-site"}, True),
        ({"Origin": "{address}", "Sec_Fetch_Site": "same-origin"}, False),
        ({}, False),
    ],
    ids=lambda value: " ".join(value.values()) or "none" if isinstance(value, dict) else "",
)
def test_only_the_page_itself_or_what_is_no_browser_may_ask(alone, headers, is_refused):
    given = {name: value.format(address=alone) for name, value in headers.items()}
    for path in (OWN_POST, "/gradio_api/run/predict", "/gradio_api/cancel", "/gradio_api/reset"):
        assert (ask_for(alone, "POST", path, EVENT, **given) == 403) == is_refused, path
    assert (ask_for(alone, "GET", "/theme.css", **given) == 403) == is_refused
    if list(headers) == ["Sec_Fetch_Site"]:  # a link to the page
        assert ask_for(alone, "GET", "/", **given) == 200


def test_a_body_that_is_too_long_is_refused_with_or_without_its_length(alone):
    assert ask_for(alone, "POST", OWN_POST, b"", Content_Length=str((4 << 20) + 1)) == 413
    assert ask_for(alone, "POST", OWN_POST, iter([b" " * (1 << 20)] * 4 + [b" "])) == 413


def test_a_websocket_is_refused(alone):
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    assert ask_for(alone, "GET", "/", **headers, Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==") != 101


def test_another_sites_page_cannot_ask_in_a_browser(browser, alone, tmp_path):
    (tmp_path / "index.html").write_text("<title>evil</title>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{other.server_port}/")
        browser.get_log("performance")
        script = (
            "const [address, done] = arguments; fetch(address, {method: 'POST', mode: 'no-cors', body: '{}'})"
            ".then(() => done('sent'), () => done('failed'))"
        )
        assert browser.execute_async_script(script, alone + OWN_POST) == "sent"
        other.shutdown()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    answered = [event["params"]["response"] for event in events if event["method"] == "Network.responseReceived"]
    assert [each["status"] for each in answered if each["url"] == alone + OWN_POST] == [403]


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
