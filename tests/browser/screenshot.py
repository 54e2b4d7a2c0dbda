"""`make screenshots`: the pictures of the documents, from the demo model."""

import shutil
import sys
from pathlib import Path

from neuron_attribution import Client
from playwright.sync_api import sync_playwright
from service.demo_server import serving

PROMPT = "Tim's dad lent him a bicycle, and Anna's mother gave her a piano.\nIn the evening she liked to play the"
SIZE = {"width": 1180, "height": 1500}


def main(folder):
    """Write the pictures there."""
    with serving() as (address, _), Client(address) as client:
        report = client.attribute(PROMPT).to_html()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_content(report)
        page.wait_for_selector("html[data-ready]")
        page.screenshot(path=folder / "report.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
