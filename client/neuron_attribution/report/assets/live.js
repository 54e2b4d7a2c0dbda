// The page as a server shows it: ask, and fetch what is clicked on.

const PROJECTED = 10;

/** An answer that is an error: google.rpc.Status as JSON, or what a proxy says. */
class CallError extends Error {
  constructor(status, answer) {
    super(answer?.message ?? `the server answered ${status}`);
    this.unauthenticated = status === 401;
    const details = answer?.details ?? [];
    this.violations = details.flatMap((detail) => detail.fieldViolations ?? []);
    this.requestId = details.map((detail) => detail.metadata?.request_id).find(Boolean);
  }
}

/** One call of the service; the token is kept in its field alone. */
async function callService(method, message, signal) {
  const headers = { "Content-Type": "application/json" };
  const token = field("access-token").value.trim();
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(`/v1/${method}`, { method: "POST", headers, body: JSON.stringify(message), signal });
  const text = await response.text();
  const answer = parsed(text);
  if (!response.ok || !answer) throw new CallError(response.status, answer ?? { message: text.trim() || undefined });
  return answer;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

let running;

function submit(event) {
  event.preventDefault();
  if (running) return running.abort();
  const asked = question();
  if (location.hash !== addressOf(asked)) history.pushState(null, "", addressOf(asked));
  return explain(asked);
}

async function explain(asked) {
  running = new AbortController();
  begin();
  try {
    const started = performance.now();
    await (asked.shown ? explainByGraph : explainByParts)(asked, running.signal);
    return say(`Answered in ${((performance.now() - started) / 1000).toFixed(2)} s.`);
  } catch (error) {
    return error.name === "AbortError" ? say("Cancelled.") : complain(error);
  } finally {
    running = undefined;
    field("explain").textContent = "Explain";
  }
}

async function explainByParts(asked, signal) {
  const request = requestOf(asked);
  showAnswer(request, await callService("attribute", { ...request, position_projection_top_k: 5 }, signal));
}

async function explainByGraph(asked, signal) {
  const result = await callService("trace", traceRequestOf(asked), signal);
  const live = result.positions.length === 1 ? { zeroMembers: (nodes) => zeroMembers(nodes, result) } : {};
  showTrace(field("page"), { result }, live);
  offerJson("trace.json", result);
}

function begin() {
  field("explain").textContent = "Cancel";
  field("problem").hidden = true;
  say("Asking …");
}

function showAnswer(request, result) {
  const live = { fetchHead: (head, index, explanation) => fetchHead(request, head, index, explanation), fetchProjection, zero: (neuron, explanation) => zero(neuron, result, explanation) };
  if (result.explanations.length === 1) live.explainToken = explainToken;
  showAttribution(field("page"), { result }, live);
  offerJson("attribution.json", result);
}

function offerJson(name, result) {
  field("tools").replaceChildren(saveButton("JSON", "Save all of it as JSON", name, "application/json", () => JSON.stringify(result, null, 2)));
}

/** Heads come strongest first: one is reached by asking for as many as stand before it, from the nearer end. */
async function fetchHead(request, head, index, explanation) {
  const score = headScoreOf(head, explanation.head_scores);
  const scores = explanation.head_scores.values;
  const ranks = { INCREASE: d3.count(scores, (other) => (other >= score ? 1 : NaN)), DECREASE: d3.count(scores, (other) => (other <= score ? 1 : NaN)) };
  const end = ranks.INCREASE <= ranks.DECREASE ? "INCREASE" : "DECREASE";
  const { limits } = await callService("get_model", {});
  if (ranks[end] > limits.top_k) throw new Error(`This head stands at place ${ranks[end]} from the nearer end; this server returns the first ${limits.top_k} (--maximum-top-k).`);
  const whole = index === WHOLE;
  const message = { ...request, direction: `DIRECTION_${end}`, head_top_k: ranks[end], parts: ["PART_HEADS", "PART_HEAD_POSITIONS"], aggregate_only: whole };
  if (!whole) delete message.aggregate;
  const answer = await callService("attribute", message);
  const { heads, heads_decreasing: lowering } = whole ? answer.aggregate : answer.explanations[index];
  return [...heads, ...lowering].find((other) => headName(other.head) === headName(head)) ?? Promise.reject(new Error("The server did not return this head."));
}

async function fetchProjection(neuron) {
  const answer = await callService("project_neuron", { neurons: [neuron], top_k: 3 * PROJECTED });
  return answer.projections[0].projection;
}

/** The prediction at the explained position with a neuron zeroed. */
function zero(neuron, result, explanation) {
  return zeroed([neuron], result, explanation);
}

function zeroed(neurons, { tokens }, { position, target }, where = {}) {
  const ids = tokens.slice(0, position + 1).map(({ id }) => id);
  return callService("intervene", { prompt: { token_ids: { ids } }, target: { id: target.token.id }, sets: [{ interventions: [{ neurons, zero: true, ...where }] }] });
}

/** The same without the neurons of a graph's nodes: where all of them are at the explained position there alone. */
async function zeroMembers(nodes, result) {
  const [position] = result.positions;
  const there = nodes.every((node) => node.position === position);
  const answer = await zeroed(nodes.map(({ neuron }) => ({ ffn: neuron })), result, { position, target: result.targets[0] }, { explained_position_only: there });
  const where = there ? `Zeroed at position ${position}` : "Zeroed at every position, not only at those of the graph";
  const odds = [answer.before, answer.results[0].after].map((state) => number(logOdds(state.target), true));
  return { ...answer, where: `${where}: log odds ${odds.join(" → ")}` };
}

function logOdds({ log_probability: value }) {
  return value - Math.log1p(-Math.exp(value));
}

function explainToken({ id, text }) {
  clicked.set(text, id);
  field("explained").value = "target";
  field("target-text").value = text;
  showExplained();
  field("ask").requestSubmit();
}

function say(text) {
  field("status").textContent = text;
}

function complain(error) {
  say("");
  if (error.unauthenticated) {
    field("token-label").hidden = false;
    field("access-token").focus();
  }
  const fields = error.violations?.map(({ field: name, description }) => make("li", {}, make("code", {}, name), `: ${description}`)) ?? [];
  const trace = error.requestId ? [make("p", { class: "note" }, `Request ${error.requestId}`)] : [];
  const said = fields.length ? make("ul", {}, fields) : make("p", {}, error.message);
  const remedy = error.unauthenticated ? [make("p", {}, "Type it into the field Access token above.")] : [];
  field("problem").replaceChildren(make("strong", {}, error.unauthenticated ? "A token is needed" : "That did not work"), said, ...remedy, ...trace);
  field("problem").hidden = false;
}

async function introduce() {
  try {
    const { model, sizes } = await callService("get_model", {});
    say(`${model.name}, ${sizes.layers} layers of ${sizes.heads} heads, ${model.dtype}.`);
  } catch (error) {
    complain(error);
  }
}

field("ask").addEventListener("submit", submit);
field("explained").addEventListener("change", showExplained);
field("prompt-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) field("ask").requestSubmit();
});
field("access-token").addEventListener("change", () => field("page").childElementCount || introduce());
window.addEventListener("popstate", () => {
  running?.abort();
  if (readAddress()) setTimeout(() => explain(question()));
});
showExplained();
introduce().then(() => readAddress() && explain(question()));
