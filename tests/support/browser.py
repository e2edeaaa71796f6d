"""A Chromium without a window, which asks nothing of other machines: for tests of pages, and for pictures of them."""

from selenium import webdriver

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --disable-quic --no-first-run --hide-scrollbars"
)


def browser_options(*flags: str) -> webdriver.ChromeOptions:
    """Options to start it with, and flags besides."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), *flags):
        options.add_argument(flag)
    return options
