// One attribution as a page: what is explained, and every part of its explanation.

const SECTIONS = [promptSection, predictionSection, layersSection, headsSection, valueNeuronsSection, queriesSection, conditionsSection];
const WHOLE_SECTIONS = [answerSection, promptSection, layersSection, headsSection, valueNeuronsSection, conditionsSection];

/** Shows an AttributeResponse (canonical protobuf JSON); `live` may hold fetchHead and fetchProjection. */
function showAttribution(root, { result, version }, live = {}) {
  const positions = result.aggregate ? result.aggregate.positions : result.explanations.map(({ position }) => position);
  const explained = new Set(positions.map((position) => position + 1));
  const body = make("div", { class: "explanation" });
  const show = (index) => {
    const whole = index === WHOLE;
    const explanation = whole ? wholeExplanation(result) : result.explanations[index];
    const file = (name) => (whole ? `${name}-of-the-answer` : result.explanations.length > 1 ? `${name}-after-${explanation.position}` : name);
    const view = { result, explanation, explainedPositions: explained, version, file, ...live };
    if (live.fetchHead) view.fetchHead = (head) => live.fetchHead(head, index, explanation);
    view.zero = live.zero && !whole ? (neuron) => live.zero(neuron, explanation) : undefined;
    view.shade = (chosen) => picture?.shade(chosen);
    view.explain = (other) => picture.choose(other);
    const sections = (whole ? WHOLE_SECTIONS : SECTIONS).map((build) => build(view)).filter(Boolean);
    body.replaceChildren(whole ? answerTitle(result.aggregate) : title(explanation), contents(sections), ...sections);
    if (body.getBoundingClientRect().top < 0) body.scrollIntoView();
  };
  const several = result.aggregate || result.explanations.length > 1;
  const picture = several ? new AnswerPicture(result, show) : undefined;
  root.replaceChildren(...(several ? [picture.element] : []), body);
  document.documentElement.style.setProperty("--picture-height", "0px");
  if (several) picture.choose(result.aggregate ? WHOLE : 0);
  else show(0);
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
