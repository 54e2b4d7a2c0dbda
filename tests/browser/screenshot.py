"""`make screenshots`: the pictures of the documents, from the demo model."""

import shutil
import sys
from pathlib import Path

from neuron_attribution import Client
from playwright.sync_api import sync_playwright
from service.demo_server import serving
from service.scraping import free_address

PROMPT = "Tim's dad lent him a bicycle, and Anna's mother gave her a piano.\nIn the evening she liked to play the"
QUESTION = "What is the capital of Australia, and why not Sydney?"
ANSWER_TOKENS = 30
REPORT_SIZE = {"width": 1180, "height": 1500}
TRACED = "The capital of France is"
TRACED_NODES = 40
TRACE_SIZE = {"width": 1280, "height": 1000}
ANSWER_SIZE = {"width": 1180, "height": 1180}
WEB_SIZE = {"width": 1180, "height": 900}


def main(folder):
    """Write the pictures there."""
    web = free_address()
    with sync_playwright() as playwright, serving("--web", web) as (address, _), Client(address) as client:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take_report(browser, client, folder)
        take_web(browser, web, folder)
        take_answer(browser, client, folder)
        take_trace(browser, client, folder)
        browser.close()


def take_report(browser, client, folder):
    """One next token."""
    page = browser.new_page(viewport=REPORT_SIZE)
    page.set_content(client.attribute(PROMPT).to_html())
    page.wait_for_selector("html[data-ready]")
    page.screenshot(path=folder / "report.png")


def take_web(browser, web, folder):
    """The live page."""
    page = browser.new_page(viewport=WEB_SIZE, color_scheme="dark")
    page.goto(f"http://{web}/")
    page.get_by_role("button", name="Explain").click()
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=folder / "web.png")


def take_answer(browser, client, folder):
    """A whole answer, shaded by the second of its neurons."""
    asked = [{"role": "user", "content": QUESTION}]
    result = client.attribute(messages=asked, generate=ANSWER_TOKENS, aggregate="sum", direction="both", timeout=120)
    page = browser.new_page(viewport=ANSWER_SIZE)
    page.set_content(result.to_html())
    page.wait_for_selector("html[data-ready]")
    page.get_by_role("rowheader").nth(1).click()
    page.mouse.move(0, 0)
    page.screenshot(path=folder / "answer.png")


def take_trace(browser, client, folder):
    """A graph, with the paths through the neuron that raises the output most of those at the last position."""
    trace = client.trace(TRACED, nodes=TRACED_NODES, heads=True, timeout=120)
    position = trace.graph.positions[0]
    nodes = enumerate(trace.graph.nodes)
    index, _ = max((each for each in nodes if each[1].neuron and each[1].position == position), key=_effect)
    page = browser.new_page(viewport=TRACE_SIZE)
    page.set_content(trace.to_html())
    page.locator(f"#node-{index}").click()
    page.screenshot(path=folder / "trace.png")


def _effect(numbered):
    return numbered[1].effect


if __name__ == "__main__":
    main(Path(sys.argv[1]))
