"""A Chromium without a window, which asks nothing of other machines: for tests of pages, and for pictures of them."""

import shutil

from selenium import webdriver

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --disable-quic --no-first-run --hide-scrollbars"
)


def has_browser() -> bool:
    """Whether Chromium and what steers it are installed."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


def open_browser(*flags: str) -> webdriver.Chrome:
    """Start it, with flags besides; its log has what it asked the network for."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS.split(), *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    # Named, or else selenium looks for it on the network.
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
