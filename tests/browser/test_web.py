"""The live page in a real browser, asking a real server."""

import hashlib

import pytest
from browser.accessibility import serious_faults
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import FakeEngine
from service.servers import running_server

TOKEN = "alices-token"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> is"


@pytest.fixture
def page(demo_server, visit):
    with visit(demo_server.page) as page:
        page.get_by_text("SmolLM2-135M-Instruct, 30 layers").wait_for()
        yield page


def explain(page, prompt, **fields):
    page.locator("#prompt-text").fill(prompt)
    for label, text in fields.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(text)
    page.get_by_role("button", name="Explain").click()


def test_a_prompt_becomes_an_explanation_whose_heads_and_neurons_can_be_opened(page):
    explain(page, "The capital of France is")
    page.get_by_role("heading", name="Why ␣Paris?").wait_for()
    page.locator(".head-map g > rect").nth(5).click()
    page.get_by_text("Positions of head 0.h5 as a table").wait_for()
    page.get_by_role("button", name="24.1005", exact=True).first.click()
    page.locator(".projection tbody tr").nth(59).wait_for()
    assert "␣capitals" in page.locator(".projection").inner_text()


def test_a_head_beyond_the_servers_limit_is_not_asked_for(page):
    def tell_less(route):
        answer = route.fetch()
        model = answer.json()
        route.fulfill(response=answer, json=model | {"limits": model["limits"] | {"top_k": 5}})

    explain(page, "The capital of France is")
    page.get_by_role("heading", name="Why ␣Paris?").wait_for()
    page.route("**/v1/get_model", tell_less)
    asked = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    page.locator(".head-map g > rect").nth(5).click()
    page.get_by_text("this server returns the first 5").wait_for()
    assert asked == ["get_model"]


def test_another_token_can_be_explained(page):
    explain(page, "The capital of France is", Token_to_explain=" London", Rather_than=" Paris")
    page.get_by_role("heading", name="Why ␣London rather than ␣Paris?").wait_for()


def test_an_alternative_that_is_clicked_is_explained(page):
    explain(page, "The capital of France is")
    page.get_by_role("heading", name="Why ␣Paris?").wait_for()
    page.get_by_text("As a table", exact=True).first.click()
    page.get_by_role("button", name="␣London", exact=True).click()
    page.get_by_role("heading", name="Why ␣London?").wait_for()
    assert page.get_by_label("Token to explain").input_value() == " London"


def test_the_address_holds_the_question(page, demo_server, visit):
    explain(page, "The capital of France is", Rather_than=" London")
    page.get_by_role("heading", name="Why ␣Paris rather than ␣London?").wait_for()
    explain(page, "The capital of Italy is", Rather_than="")
    page.get_by_role("heading", name="Why ␣Rome?").wait_for()
    with visit(page.url) as other:
        other.get_by_role("heading", name="Why ␣Rome?").wait_for()
        assert other.locator("#prompt-text").input_value() == "The capital of Italy is"
    page.get_by_role("link", name="Heads").click()
    page.go_back()
    page.get_by_role("heading", name="Why ␣Paris rather than ␣London?").wait_for()


def test_a_continuation_and_what_the_model_writes_are_explained_together_and_token_by_token(page):
    page.get_by_label("What is explained").select_option("completion")
    explain(page, "The capital of France is", Continuation=" Paris.")
    tokens = page.get_by_role("toolbar", name="Explained tokens")
    tokens.get_by_role("button", name=".", exact=True).click()
    page.get_by_role("heading", name="Why .?").wait_for()
    page.get_by_label("What is explained").select_option("generate")
    explain(page, "The capital of France is", Tokens_to_write="3")
    page.get_by_text("sums over 3 tokens").wait_for()
    assert tokens.get_by_role("button").all_inner_texts()[:2] == ["their sum", "␣Paris"]
    page.locator(".head-map g > rect").nth(5).click()
    page.get_by_text("Positions of head 0.h5 as a table").wait_for()


def test_a_neuron_is_zeroed_from_its_row(page):
    explain(page, "The capital of France is")
    page.get_by_role("button", name="24.1005", exact=True).first.click()
    page.get_by_role("button", name="Zero 24.1005").click()
    told = page.locator(".zeroing")
    told.get_by_text("rank 1 → 1; KL 0.2").wait_for()
    assert "77.25 % → 46.5" in told.inner_text()
    assert told.locator("tbody tr").count() == 10


def test_messages_make_a_conversation_whose_speakers_are_shown(page, visit):
    page.locator("#prompt-text").fill("The capital of France is")
    page.get_by_role("button", name="Add message").click()
    assert page.locator("#prompt-text").is_hidden()
    page.get_by_role("button", name="Explain").click()
    page.locator("#prompt .speaker").first.wait_for()
    assert page.locator("#prompt .speaker").all_inner_texts() == ["user", "assistant"]
    with visit(page.url) as other:
        other.locator("#prompt .speaker").first.wait_for()
        assert other.get_by_label("Message", exact=True).input_value() == "The capital of France is"
    page.get_by_role("button", name="Remove message").click()
    assert page.locator("#prompt-text").is_visible()


def test_neurons_that_are_strong_whatever_is_asked_can_be_hidden(page):
    explain(page, "The capital of France is")
    usual = page.locator("#neurons").get_by_role("button", name="28.1078", exact=True)
    usual.wait_for()
    page.get_by_label("Hide neurons").check()
    usual.wait_for(state="hidden")
    assert page.locator("#neurons").get_by_role("button", name="24.1005", exact=True).is_visible()


def test_a_narrow_page_cuts_nothing_and_hides_no_heading(demo_server, visit):
    """Only boxes that scroll by themselves are wider than the page, and no button lies on a caption."""
    with visit(demo_server.page, viewport={"width": 400, "height": 900}) as page:
        page.get_by_text("SmolLM2-135M-Instruct, 30 layers").wait_for()
        explain(page, "The capital of France is")
        page.get_by_role("button", name="24.1005", exact=True).first.click()
        page.get_by_role("button", name="Zero 24.1005").click()
        page.locator(".zeroing tbody tr").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        boxes = page.evaluate(
            """[...document.querySelectorAll("main :is(h1, h2, h3, p, label, button, caption > span)")]
            .filter((each) => each.checkVisibility() && !each.matches(".spoken") && each.textContent)
            .map((each) => [each.tagName, each.textContent, each.getBoundingClientRect()])
            .map(([name, text, { left, right, top, bottom }]) => ({ name, text, left, right, top, bottom }))"""
        )
        assert len(boxes) > 50
        captions = [box for box in boxes if box["name"] == "SPAN"]
        buttons = [box for box in boxes if box["text"] == "CSV"]
        assert [box["text"] for box in (*captions, *buttons) if box["left"] < 0 or box["right"] > 400] == []
        for caption in captions:
            for button in buttons:
                apart = button["bottom"] <= caption["top"] + 1 or button["top"] >= caption["bottom"] - 1
                assert apart or button["left"] >= caption["right"] or button["right"] <= caption["left"]


def test_a_hostile_prompt_is_text(page):
    explain(page, HOSTILE)
    page.get_by_role("heading", level=1).wait_for()
    assert page.locator(".prompt").inner_text().replace("\n", "") == HOSTILE.replace(" ", "␣")
    assert page.locator("main img, main script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_bars_anybody(visit, demo_server, scheme):
    with visit(demo_server.page, errors="400", color_scheme=scheme) as page:
        explain(page, "The capital of France is", Token_to_explain=" Parisianly")
        page.get_by_role("alert").get_by_text("target").wait_for()
        assert serious_faults(page) == []


def test_a_wrong_request_is_told_with_its_field_and_the_remedy(demo_server, visit):
    with visit(demo_server.page, errors="400") as page:
        explain(page, "The capital of France is", Token_to_explain=" Parisianly")
        problem = page.get_by_role("alert")
        problem.get_by_text("target").wait_for()
        assert "tokens" in problem.inner_text()
        page.get_by_label("Token to explain").fill("")
        page.get_by_role("button", name="Explain").click()
        page.get_by_role("heading", name="Why ␣Paris?").wait_for()
        assert not problem.is_visible()


def test_a_token_is_asked_for_and_kept_nowhere(visit, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    settings = {"web": "localhost:0", "token_file": str(tokens)}
    with running_server(ThreadWorker(FakeEngine()), **settings) as server:
        assert server.loaded.wait(30)
        with visit(f"http://{server.web_address}/", errors="401") as page:
            page.get_by_role("alert").get_by_text("A token is needed").wait_for()
            page.get_by_label("Access token").fill(TOKEN)
            explain(page, "The capital of France is")
            page.get_by_role("heading", level=1).wait_for()
            assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
            assert TOKEN not in page.url


def test_a_question_can_be_withdrawn(visit):
    engine = FakeEngine()
    with running_server(ThreadWorker(engine), web="localhost:0") as server, engine:
        assert server.loaded.wait(30)
        engine.hold()
        with visit(f"http://{server.web_address}/") as page:
            explain(page, "The capital of France is")
            page.get_by_role("button", name="Cancel").click()
            page.get_by_text("Cancelled.").wait_for()
