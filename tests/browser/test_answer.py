"""The picture of a whole answer in a real browser: shaded tokens, the map of neurons, a conversation."""

from dataclasses import replace

import pytest
from browser.accessibility import serious_faults
from browser.samples import made_up_answer
from browser.saving import saved_csv

READY = "html[data-ready]"
SIZE = {"layers": 30, "heads": 9, "prompt": 10, "answer": 30}
"""As the demo model has them."""


@pytest.fixture(scope="module")
def result():
    return made_up_answer(**SIZE)


@pytest.fixture
def page(visit, written, result):
    with visit(written(result)) as page:
        page.wait_for_selector(READY)
        yield page


def tokens(page):
    return page.get_by_role("toolbar", name="Explained tokens").locator("button.token")


def told(page):
    """What the tokens of the answer say of the chosen quantity, as numbers."""
    titles = tokens(page).evaluate_all("chips => chips.map((chip) => chip.title)")
    return [float(title.split()[-1].replace("−", "-")) for title in titles]


def test_the_answer_is_shaded_by_its_tokens_probabilities_first(page, result):
    probabilities = [target.probability for target in result.aggregate.targets]
    shades = tokens(page).evaluate_all("chips => chips.map((chip) => parseInt(chip.style.getPropertyValue('--shade')))")
    assert shades == [pytest.approx(60 * probability, abs=0.51) for probability in probabilities]
    tokens(page).nth(3).hover()
    assert f"probability {100 * probabilities[3]:.2f} %" in page.locator(".picture .reading").inner_text()


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_a_layer_that_is_chosen_shades_the_answer(page, result, kind):
    name = {"attention": "attention layer 7", "ffn": "FFN layer 7"}[kind]
    page.get_by_label("Shaded by").select_option(name)
    scores = [getattr(explanation.layers, kind)[7] for explanation in result.explanations]
    assert told(page) == [pytest.approx(score, abs=6e-5) for score in scores]
    falling = tokens(page).evaluate_all("chips => chips.map((chip) => chip.classList.contains('negative'))")
    assert falling == [bool(score < 0) for score in scores]


def test_a_head_shades_the_answer_whether_it_was_returned_or_not(page, result):
    page.get_by_role("button", name="29.h1", exact=True).click()
    (returned,) = (head for head in result.aggregate.heads if (head.head.layer, head.head.head) == (29, 1))
    assert told(page) == [pytest.approx(score, abs=6e-5) for score in returned.token_scores]
    page.locator(".head-map g > rect").nth(9 * 4 + 2).click()
    assert page.get_by_label("Shaded by").input_value() == "head 4.h2"
    scores = [explanation.head_scores[4, 2] for explanation in result.explanations]
    assert told(page) == [pytest.approx(score, abs=6e-5) for score in scores]


def test_a_row_of_a_ranking_shades_the_answer(page, result):
    neuron = result.aggregate.ffn_value_neurons.neurons[2]
    page.locator("#neurons").get_by_role("button", name=str(neuron.neuron), exact=True).first.click()
    assert told(page) == [pytest.approx(score, abs=6e-5) for score in neuron.token_scores]


def test_a_row_of_the_map_shades_the_answer_and_is_saved(page, result):
    neurons = result.aggregate.attention_value_neurons.neurons
    grid = page.get_by_role("grid", name="Attention value neurons by token")
    grid.get_by_role("rowheader").nth(1).click()
    assert told(page) == [pytest.approx(score, abs=6e-5) for score in neurons[1].token_scores]
    rows = saved_csv(page, "Attention value neurons by token")
    assert [float(row["sum"]) for row in rows] == [pytest.approx(neuron.score) for neuron in neurons]
    saved = [[float(value) for name, value in row.items() if name not in ("row", "sum")] for row in rows]
    assert saved == [pytest.approx(neuron.token_scores) for neuron in neurons]


def test_the_keyboard_alone_shades_by_a_neuron_and_opens_a_token(page, result):
    while page.evaluate("document.activeElement.closest('.token-map') === null"):
        page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    neuron = result.aggregate.ffn_value_neurons.neurons[1]
    assert told(page) == [pytest.approx(score, abs=6e-5) for score in neuron.token_scores]
    label = page.evaluate("document.activeElement.ariaLabel")
    assert label.startswith(f"␣bank: neuron {neuron.neuron} ")
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    assert f"after position {result.aggregate.positions[1]}" in page.locator("header").inner_text()


def test_a_token_of_the_answer_opens_its_own_explanation_by_keyboard(page, result):
    page.get_by_role("button", name="their sum").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert f"after position {result.aggregate.positions[2]}" in page.locator("header").inner_text()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.get_by_text("sums over 30 tokens").is_visible()


def test_messages_are_a_conversation_whose_template_is_folded(page):
    turns = page.locator("#prompt .turn")
    assert turns.locator(".speaker").all_inner_texts() == ["user", "assistant"]
    said = turns.first.locator(".prompt .token:visible").all_inner_texts()
    assert said == ["⋯2", ",", "␣old", "⋯4"]
    page.get_by_role("button", name="2 tokens of the chat template").first.click()
    assert turns.first.locator(".prompt .token:visible").all_inner_texts()[:3] == ["⋯2", "␣river", "␣bank"]
    page.get_by_label("Show the 8 tokens that the chat template wrote").check()
    assert turns.locator(".prompt bdi.token:visible").count() == 40


def test_an_answer_without_its_tokens_explanations_is_still_shaded(visit, written, result):
    with visit(written(replace(result, explanations=()))) as page:
        page.wait_for_selector(READY)
        page.get_by_label("Shaded by").select_option("neuron 1.101")
        neuron = result.aggregate.ffn_value_neurons.neurons[1]
        assert told(page) == [pytest.approx(score, abs=6e-5) for score in neuron.token_scores]
        tokens(page).nth(1).click()
        assert page.get_by_text("sums over 30 tokens").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_bars_anybody(visit, written, result, scheme):
    with visit(written(result), color_scheme=scheme, viewport={"width": 400, "height": 900}) as page:
        page.wait_for_selector(READY)
        page.get_by_role("rowheader").first.click()
        for summary in page.locator("summary").all():
            summary.click()
        assert serious_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_a_report_of_thirty_tokens_is_soon_there(page):
    seconds = page.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1000
    print(f"an answer of 30 tokens, 30 x 9 heads: interactive after {seconds:.2f} s")
    assert page.get_by_role("grid").count() == 2
