// The messages of a conversation in the form of the live page. A hidden field holds them as JSON, for question.js.

const ROLES = ["system", "user", "assistant"];

/** The messages in the form. */
function talk() {
  return [...field("talk").children].map((row) => ({ role: row.querySelector("select").value, content: row.querySelector("textarea").value }));
}

/** Puts messages into the form; without any, it has a prompt. */
function showTalk(messages) {
  field("talk").replaceChildren(...messages.map(messageRow));
  keepTalk();
}

function keepTalk() {
  const messages = talk();
  field("talk-json").value = messages.length ? JSON.stringify(messages) : "";
  field("talk").hidden = !messages.length;
  field("prompt-label").hidden = Boolean(messages.length);
  field("prompt-text").required = !messages.length;
}

function messageRow({ role, content }) {
  const roles = ROLES.includes(role) ? ROLES : [...ROLES, role];
  const options = roles.map((each) => make("option", { value: each, selected: each === role }, each));
  const text = make("textarea", { rows: "2", spellcheck: "false", "aria-label": "Message", oninput: keepTalk });
  text.value = content ?? "";
  const remove = () => (row.remove(), keepTalk());
  const row = make(
    "div",
    { class: "message" },
    make("select", { "aria-label": "Role", onchange: keepTalk }, options),
    text,
    make("button", { type: "button", "aria-label": "Remove message", onclick: remove }, "×"),
  );
  return row;
}

/** A message more: the first is the prompt that was typed, then who speaks next. */
function addMessage() {
  const before = talk();
  const last = before.at(-1)?.role;
  const message = { role: last === "user" ? "assistant" : "user", content: before.length ? "" : field("prompt-text").value };
  showTalk([...before, message]);
  field("talk").lastElementChild.querySelector("textarea").focus();
}

field("add-message").addEventListener("click", addMessage);
