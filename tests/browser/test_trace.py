"""The picture of a graph in a real browser: drawn, walked, grouped, and its neurons zeroed."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from browser.accessibility import serious_faults
from browser.graphs import made_up_trace
from browser.samples import HOSTILE
from browser.saving import saved_csv
from neuron_attribution.conversations.messages import TokenOrigin
from neuron_attribution.traces import TraceNodeKind
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import PROMPT, FakeEngine
from service.servers import running_server

READY = "html[data-ready]"
SIZE = {"neurons": 200, "layers": 30, "texts": [" river", " bank", *HOSTILE]}


@pytest.fixture(scope="module")
def trace():
    return made_up_trace(**SIZE)


@pytest.fixture
def page(visit, written, trace):
    with visit(written(trace), viewport={"width": 1280, "height": 1000}) as page:
        page.wait_for_selector(READY)
        page.locator(".graph .node").first.wait_for()
        yield page


def node_at(page, index):
    return page.locator(f"#node-{index}")


def focused(page):
    return int(page.evaluate("document.activeElement.id").removeprefix("node-"))


def incoming(trace, target):
    """The edges into a node, the largest share first."""
    return sorted((edge for edge in trace.graph.edges if edge.target == target), key=lambda edge: -edge.share)


def sign(trace, edge):
    return -1 if edge.contribution * trace.graph.nodes[edge.target].activation < 0 else 1


def test_tokens_are_below_layers_go_upward_and_the_output_is_on_top(page, trace):
    heights = page.locator(".graph .node").evaluate_all(
        "all => all.map((each) => [+each.id.slice(5), +each.getAttribute('transform').split(/[,)]/)[1]])"
    )
    layers = {}
    for index, height in heights:
        node = trace.graph.nodes[index]
        tops = {TraceNodeKind.OUTPUT: SIZE["layers"], TraceNodeKind.TOKEN: -1, TraceNodeKind.BIAS: node.layer}
        layers.setdefault(tops.get(node.kind, node.neuron and node.neuron.layer), []).append(height)
    rows = [layers[layer] for layer in sorted(layers)]
    assert len(heights) > 200
    assert all(min(lower) > max(higher) for lower, higher in pairwise(rows))


def test_boxes_do_not_lie_on_each_other(page):
    places = page.locator(".graph .node").evaluate_all("all => all.map((each) => each.getAttribute('transform'))")
    assert len(set(places)) == len(places)
    boxes = page.locator(".graph .node rect").evaluate_all(
        "all => all.map((each) => each.getBoundingClientRect()).map(({ x, y, width, height }) => [x, y, width, height])"
    )
    apart = [
        abs(one[0] - other[0]) >= one[2] or abs(one[1] - other[1]) >= one[3]
        for number, one in enumerate(boxes)
        for other in boxes[:number]
    ]
    assert all(apart)


def test_the_edges_of_a_node_are_as_wide_as_their_share_and_coloured_by_sign(page, trace):
    node_at(page, 0).hover()
    lines = page.locator(".edges.lit path").evaluate_all(DRAWN_EDGES)
    drawn = {source: (width, side) for source, target, width, side in lines if target == 0}
    edges = incoming(trace, 0)
    assert set(drawn) == {edge.source for edge in edges}
    largest = max(edge.share for edge in trace.graph.edges)
    for edge in edges:
        width, side = drawn[edge.source]
        assert width == pytest.approx(0.7 + 7 * (edge.share / largest) ** 0.5, rel=1e-3)
        assert side == ("positive" if sign(trace, edge) > 0 else "negative")


def test_the_keyboard_follows_paths_down_and_up(page, trace):
    page.get_by_label("Edges shown").focus()
    for _ in range(2):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "node-0":
            break
    first, second = incoming(trace, 0)[:2]
    page.keyboard.press("ArrowDown")
    assert focused(page) == first.source
    page.keyboard.press("ArrowRight")
    assert focused(page) == second.source
    page.keyboard.press("ArrowDown")
    assert focused(page) == incoming(trace, second.source)[0].source
    for _ in range(40):
        page.keyboard.press("ArrowUp")
    assert focused(page) == 0
    page.keyboard.press("Enter")
    assert page.locator(".side h3").first.inner_text().startswith("The output")


def test_a_click_on_a_neuron_shows_what_zeroing_it_did(page, trace):
    node = trace.graph.nodes[7]
    node_at(page, 7).click()
    text = page.locator(".side .measured").inner_text().replace("−", "-")
    assert f"log odds +1.2500 → {1.25 - node.effect:+.4f}" in text
    assert f"effect {node.effect:+.4f}" in text
    sources = page.locator(".side .ends").first.locator(".position").all_inner_texts()
    assert len(sources) == min(8, len(incoming(trace, 7)))


def test_pinned_neurons_become_one_node_and_are_taken_apart_again(page, trace):
    members = [edge.source for edge in incoming(trace, 0) if trace.graph.nodes[edge.source].neuron][:2]
    for member in members:
        node_at(page, member).focus()
        page.keyboard.press("p")
    page.get_by_label("Name of the group").fill("towns")
    page.get_by_role("button", name="Make one node of them").click()
    assert all(node_at(page, member).count() == 0 for member in members)
    assert page.locator("#group-0 text").text_content() == "towns"
    together = sum(sign(trace, edge) * edge.share for edge in incoming(trace, 0) if edge.source in members)
    drawn = page.locator("#group-0").evaluate(
        "group => group.__data__.gives.find(({ target }) => target.kind === 'output').signed"
    )
    assert drawn == pytest.approx(together, rel=1e-5)
    effects = sum(trace.graph.nodes[member].effect for member in members)
    assert f"{effects:+.4f} together".replace("-", "−") in page.locator(".side .detail").inner_text()
    page.get_by_role("button", name="Take towns apart").click()
    assert all(node_at(page, member).count() == 1 for member in members)


def test_the_templates_tokens_without_neurons_are_one_node_at_first(visit, written):
    trace = made_up_trace(neurons=6, layers=4, texts=["<|user|>"] * 20 + [" river", " bank"])
    origins = tuple(TokenOrigin(0, "user", template=number < 20) for number in range(22))
    busy = {node.position for node in trace.graph.nodes if node.neuron}
    folded = [node.position for node in trace.graph.nodes[7:27] if node.position not in busy]
    with visit(written(replace(trace, origins=origins))) as page:
        page.wait_for_selector(READY)
        assert page.locator("#group-0 title").text_content().startswith(f"group ⋯{len(folded)} template")
        shown = page.locator(".graph .node.token").count()
        page.get_by_role("button", name="template apart").click()
        assert page.locator("#group-0").count() == 0
        assert page.locator(".graph .node.token").count() > shown


def test_nodes_and_edges_are_saved(page, trace):
    page.get_by_text("Edges (", exact=False).last.click()
    rows = saved_csv(page, "Edges")
    assert [float(row["contribution"]) for row in rows] == [
        pytest.approx(edge.contribution, rel=1e-6) for edge in trace.graph.edges
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_nothing_serious_bars_anybody(visit, written, trace, scheme, width):
    with visit(written(trace), color_scheme=scheme, viewport={"width": width, "height": 900}) as page:
        page.wait_for_selector(READY)
        node_at(page, 7).click()
        assert serious_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_graph_of_two_hundred_neurons_is_soon_there(page, trace):
    seconds = page.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1000
    looked = page.evaluate(TIME_OF_A_LOOK)
    print(
        f"{len(trace.graph.nodes)} nodes, {len(trace.graph.edges)} edges: interactive after {seconds:.2f} s, ", end=""
    )
    print(f"a node lights its paths in {looked:.0f} ms")
    assert page.locator(".graph .edges path").count() >= 150


def test_a_live_page_draws_a_graph_and_zeroes_a_neuron(visit):
    with running_server(ThreadWorker(FakeEngine()), web="localhost:0") as server:
        assert server.loaded.wait(30)
        with visit(f"http://{server.web_address}/") as page:
            page.locator("#prompt-text").fill(PROMPT)
            page.get_by_label("Shown as").select_option("graph")
            page.get_by_role("button", name="Explain").click()
            page.get_by_role("button", name="neuron 1.3 at").click()
            page.get_by_role("button", name="Zero 1.3").click()
            page.locator(".zeroing").get_by_text("Zeroed at position 5: ").wait_for()
            told = page.locator(".zeroing").inner_text()
            odds = re.search(r"log odds (\S+) → (\S+);", told.replace("−", "-")).groups()
            assert [float(value) for value in odds] == pytest.approx([0, 0], abs=1e-5)
            assert "KL 0.2500 nats" in told
            page.get_by_role("button", name="Pin", exact=True).click()
            page.get_by_label("Name of the group").fill("towns")
            page.get_by_role("button", name="Make one node of them").click()
            page.get_by_role("button", name="Zero towns").click()
            page.locator(".zeroing").get_by_text("Zeroed at position 5: ").wait_for()
            with visit(page.url) as other:
                other.get_by_role("button", name="neuron 1.3 at").wait_for()


DRAWN_EDGES = """all => all.map((each) => {
    const { source, target } = each.__data__;
    return [source.index, target.index, Number(each.getAttribute("stroke-width")), each.className.baseVal];
})"""

TIME_OF_A_LOOK = """async () => {
    const begin = performance.now();
    document.querySelector("#node-7").focus();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - begin;
}"""
