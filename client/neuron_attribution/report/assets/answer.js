// The explained tokens as a text that stays in view: shaded by what is chosen, each a way to its own explanation.

const WHOLE = -1;

class AnswerPicture {
  /** `show(index)` shows the explanation of a token, or of all of them together (WHOLE). */
  constructor(result, show) {
    Object.assign(this, { result, show, tokens: explainedTokens(result) });
    this.reading = make("p", { class: "reading", role: "status" });
    this.key = make("span");
    this.chips = this.tokens.map((target, index) => this.chip(target, index));
    this.sum = result.aggregate && this.wholeButton();
    this.choice = this.choiceOfQuantity();
    const bar = make("div", { class: "bar" }, make("label", {}, "Shaded by ", this.choice), this.key, this.reading);
    this.element = make("div", { class: "picture" }, this.texts(), bar);
    this.shade(probabilities(result));
    // What is gone to, or focused, stops beneath it.
    const measure = () => document.documentElement.style.setProperty("--picture-height", `${this.element.offsetHeight}px`);
    new ResizeObserver(measure).observe(this.element);
  }

  wholeButton() {
    const properties = { type: "button", title: "The sum over the explained tokens, or the mean", onclick: () => this.choose(WHOLE) };
    return make("button", properties, isMean(this.result.aggregate) ? "their mean" : "their sum");
  }

  chip({ token }, index) {
    const own = index < this.result.explanations.length;
    const go = own ? { onclick: () => this.choose(index) } : { class: "token alone" };
    const read = () => this.read(index);
    return make("button", { type: "button", class: "token", onfocus: read, onpointerenter: read, ...go }, visible(token.text));
  }

  /** The answer, and under it the other one. */
  texts() {
    const own = this.result.aggregate?.targets.length ?? this.tokens.length;
    const broken = (chip) => [chip, make(chip.textContent.includes("↵") ? "br" : "wbr")];
    const lines = [this.chips.slice(0, own), this.chips.slice(own)].map((chips) => chips.flatMap(broken));
    const other = lines[1].length ? [make("p", { class: "prompt" }, make("span", { class: "speaker" }, "rather than"), " ", lines[1])] : [];
    const first = make("p", { class: "prompt" }, this.sum ? [this.sum, " "] : [], lines[0]);
    return arrowed(make("div", { class: "texts", role: "toolbar", "aria-label": "Explained tokens" }, first, other));
  }

  choose(index) {
    this.sum?.setAttribute("aria-pressed", String(index === WHOLE));
    this.chips.slice(0, this.result.explanations.length).forEach((chip, number) => chip.setAttribute("aria-pressed", String(number === index)));
    this.show(index);
  }

  read(index) {
    const { token, probability, log_probability, rank } = this.tokens[index];
    const value = this.shaded.values[index];
    const chosen = this.shaded.key === "probability" || !isScore(value) ? "" : `${this.shaded.read(value)}; `;
    this.reading.textContent = `${visible(token.text)} ${chosen}probability ${percent(probability)}, log probability ${number(log_probability)}, rank ${rank}`;
  }

  choiceOfQuantity() {
    const option = ({ key, name }) => make("option", { value: key }, name);
    const groups = quantityGroups(this.result);
    const first = probabilities(this.result);
    this.known = new Map([first, ...groups.flatMap(([, quantities]) => quantities)].map((each) => [each.key, each]));
    const options = groups.map(([name, quantities]) => make("optgroup", { label: name }, quantities.map(option)));
    const select = make("select", { onchange: () => this.shade(this.known.get(select.value)) }, option(first), options);
    return select;
  }

  /** Shades the tokens by a quantity, which is offered from then on. */
  shade(chosen) {
    if (!chosen) return;
    if (!this.known.has(chosen.key)) this.choice.append(make("option", { value: chosen.key }, chosen.name));
    this.known.set(chosen.key, chosen);
    this.shaded = chosen;
    this.choice.value = chosen.key;
    this.chips.forEach((chip, index) => {
      const { side, style } = shadeOf(chosen.values[index], chosen.largest);
      chip.classList.toggle("negative", side === "negative");
      chip.style.setProperty("--shade", style["--shade"]);
      chip.title = isScore(chosen.values[index]) ? chosen.read(chosen.values[index]) : `${chosen.name} is not known here`;
    });
    this.key.replaceChildren(ramp(chosen));
    this.reading.textContent = chosen.key === "probability" ? "" : `${chosen.name}: ${number(chosen.together, true)} together`;
  }
}

/** One stop for Tab; the arrow keys, Home and End move among the buttons in it. */
function arrowed(box) {
  const buttons = [...box.querySelectorAll("button")];
  const stop = (chosen) => buttons.forEach((button) => (button.tabIndex = button === chosen ? 0 : -1));
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  box.addEventListener("focusin", ({ target }) => buttons.includes(target) && stop(target));
  box.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    buttons[clamp(buttons.indexOf(document.activeElement) + steps[event.key], buttons.length)].focus();
  });
  stop(buttons[0]);
  return box;
}
