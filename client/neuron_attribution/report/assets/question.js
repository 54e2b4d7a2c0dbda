// The question in the form of the live page, in its address, and as a request.

const field = (id) => document.getElementById(id);
const QUESTION = { prompt: "prompt-text", messages: "talk-json", explained: "explained", target: "target-text", completion: "completion-text", generate: "generate-count", contrast: "contrast-text", direction: "direction", shown: "shown" };
const EXPLAINED = ["target", "completion", "generate"];

/** What the form asks, by the names of its fields; of what is explained in different ways only the one chosen. */
function question() {
  const values = Object.fromEntries(Object.entries(QUESTION).map(([name, id]) => [name, field(id).value]));
  if (values.messages) delete values.prompt;
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => value && (!EXPLAINED.includes(name) || name === values.explained)));
}

/** The question as an AttributeRequest in JSON. */
function requestOf({ prompt, messages, target, completion, generate, contrast, direction }) {
  const request = { prompt: messages ? { conversation: { messages: JSON.parse(messages) } } : { text: prompt }, direction };
  if (target) request.target = chosenToken(target);
  if (completion) request.completion = { text: completion };
  if (generate) request.generate = Number(generate);
  if (completion || generate) request.aggregate = "AGGREGATE_SUM";
  if (contrast) request.contrast = chosenToken(contrast);
  return request;
}

/** The question as a TraceRequest in JSON. */
function traceRequestOf(asked) {
  if (asked.generate) throw new Error("A graph follows back the next token, or a continuation: choose one of these.");
  const { prompt, target, completion, contrast } = requestOf(asked);
  return { prompt, target, completion, contrast, heads: true };
}

/** Tokens that were clicked, by their texts: a text may be that of several tokens, or of none alone. */
const clicked = new Map();

function chosenToken(text) {
  return clicked.has(text) ? { id: clicked.get(text) } : { text };
}

/** Behind #, so that it reaches no server and no log. */
function addressOf(asked) {
  return `#${new URLSearchParams(asked)}`;
}

/** Fills the form from the page's address; whether that holds a question. */
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!asked.get("prompt") && !asked.get("messages")) return false;
  for (const [name, id] of Object.entries(QUESTION)) if (asked.has(name)) field(id).value = asked.get(name);
  for (const name of [...EXPLAINED.slice(0, 2), "contrast", "shown"]) if (!asked.has(name)) field(QUESTION[name]).value = "";
  showTalk(messagesIn(asked.get("messages")));
  showExplained();
  return true;
}

/** The messages in an address, which anybody may have written. */
function messagesIn(text) {
  const found = parsed(text ?? "[]");
  return Array.isArray(found) ? found.filter((message) => typeof message?.role === "string") : [];
}

/** Shows the field that belongs to what is explained. */
function showExplained() {
  for (const label of document.querySelectorAll("[data-explained]")) label.hidden = label.dataset.explained !== field("explained").value;
}
