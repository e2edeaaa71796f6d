"""Takes the picture of a page that the documents show.

python -m tests.support.picture work_dirs/demo/report.html docs/pictures/report.png [WIDTH] [HEIGHT]
"""

import base64
import io
import sys
from pathlib import Path

from PIL import Image

from tests.support.browser import open_browser

COLOURS = 64


def main(page: str, out: str, width: str = "1000", height: str = "900") -> None:
    """Write the top of a page, a file or an address, as a PNG of few colours."""
    with open_browser() as browser:
        size = {"width": int(width), "height": int(height), "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page if "://" in page else Path(page).resolve().as_uri())
        shot = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
