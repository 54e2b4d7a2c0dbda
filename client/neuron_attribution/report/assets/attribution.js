// One attribution as a page: what is explained, and every part of its explanation.

const SECTIONS = [promptSection, predictionSection, layersSection, headsSection, valueNeuronsSection, queriesSection, conditionsSection];
const WHOLE_SECTIONS = [answerSection, promptSection, layersSection, headsSection, valueNeuronsSection, conditionsSection];
const WHOLE = -1;

/** Shows an AttributeResponse (canonical protobuf JSON); `live` may hold fetchHead and fetchProjection. */
function showAttribution(root, { result, version }, live = {}) {
  const positions = result.aggregate ? result.aggregate.positions : result.explanations.map(({ position }) => position);
  const explained = new Set(positions.map((position) => position + 1));
  const body = make("div", { class: "explanation" });
  const show = (index) => {
    const whole = index === WHOLE;
    const explanation = whole ? wholeExplanation(result) : result.explanations[index];
    const file = (name) => (whole ? `${name}-of-the-answer` : result.explanations.length > 1 ? `${name}-after-${explanation.position}` : name);
    const view = { result, explanation, explainedPositions: explained, version, file };
    if (live.fetchHead && !whole) view.fetchHead = (head) => live.fetchHead(head, index, explanation);
    view.fetchProjection = live.fetchProjection;
    view.explainToken = live.explainToken;
    if (live.zero && !whole) view.zero = (neuron) => live.zero(neuron, explanation);
    const sections = (whole ? WHOLE_SECTIONS : SECTIONS).map((build) => build(view)).filter(Boolean);
    body.replaceChildren(whole ? answerTitle(result.aggregate) : title(explanation), contents(sections), ...sections);
  };
  root.replaceChildren(...explanationChoice(result, show), body);
  show(result.aggregate ? WHOLE : 0);
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

/** Buttons for the explained tokens, and for all of them together, where there are several. */
function explanationChoice({ explanations, aggregate }, show) {
  if (explanations.length + (aggregate ? 1 : 0) < 2) return [];
  const choices = explanations.map(({ target, position }, index) => [index, `after position ${position}`, tokenChip(target.token)]);
  if (aggregate) choices.unshift([WHOLE, "the sum over the explained tokens, or the mean", isMean(aggregate) ? "their mean" : "their sum"]);
  const buttons = choices.map(([index, title, content], number) =>
    make("button", { type: "button", "aria-pressed": String(number === 0), title, onclick: () => choose(index, number) }, content),
  );
  const choose = (index, chosen) => {
    buttons.forEach((button, number) => button.setAttribute("aria-pressed", String(number === chosen)));
    show(index);
  };
  return [make("div", { class: "choice", role: "group", "aria-label": "Explained tokens" }, make("span", {}, "Explained tokens"), buttons)];
}
