// One attribution as a page: what is explained, and every part of its explanation.

const SECTIONS = [promptSection, predictionSection, layersSection, headsSection, valueNeuronsSection, queriesSection, conditionsSection];

/** Shows an AttributeResponse (canonical protobuf JSON); `live` may hold fetchHead and fetchProjection. */
function showAttribution(root, { result, version }, live = {}) {
  const explained = new Set(result.explanations.map(({ position }) => position + 1));
  const body = make("div", { class: "explanation" });
  const show = (index) => {
    const explanation = result.explanations[index];
    const file = (name) => (result.explanations.length > 1 ? `${name}-after-${explanation.position}` : name);
    const view = { result, explanation, explainedPositions: explained, version, file };
    if (live.fetchHead) view.fetchHead = (head) => live.fetchHead(head, index, explanation);
    view.fetchProjection = live.fetchProjection;
    view.explainToken = live.explainToken;
    if (live.zero) view.zero = (neuron) => live.zero(neuron, explanation);
    const sections = SECTIONS.map((build) => build(view)).filter(Boolean);
    body.replaceChildren(title(explanation), contents(sections), ...sections);
  };
  root.replaceChildren(...explanationChoice(result, show), body);
  show(0);
}

function title({ target, contrast, position }) {
  const than = contrast ? [" rather than ", tokenChip(contrast.token)] : [];
  const rank = `probability ${percent(target.probability)}, rank ${target.rank}, log probability ${number(target.log_probability)}, after position ${position}`;
  return make("header", {}, make("h1", {}, "Why ", tokenChip(target.token), ...than, "?"), note(rank));
}

function contents(sections) {
  // The address stays as it is: that of a live page holds its question.
  const go = (event, target) => (event.preventDefault(), target.scrollIntoView());
  const link = (target) => make("a", { href: `#${target.id}`, onclick: (event) => go(event, target) }, target.firstChild.textContent);
  return make("nav", { "aria-label": "Contents" }, sections.map(link));
}

/** Buttons for the explained tokens, where there are several. */
function explanationChoice({ explanations }, show) {
  if (explanations.length < 2) return [];
  const buttons = explanations.map(({ target, position }, index) =>
    make("button", { type: "button", "aria-pressed": String(index === 0), title: `after position ${position}`, onclick: () => choose(index) }, tokenChip(target.token)),
  );
  const choose = (index) => {
    buttons.forEach((button, number) => button.setAttribute("aria-pressed", String(number === index)));
    show(index);
  };
  return [make("div", { class: "choice", role: "group", "aria-label": "Explained tokens" }, make("span", {}, "Explained tokens"), buttons)];
}
