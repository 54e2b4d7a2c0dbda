// Shows the data the page holds.

const VIEWS = { attribution: showAttribution, comparison: showComparison, trace: showTrace };

const embedded = document.getElementById("data");
if (embedded) {
  const page = JSON.parse(embedded.textContent);
  VIEWS[page.view](document.getElementById("page"), page);
  const whole = () => JSON.stringify(page.result, null, 2);
  document.getElementById("tools").append(saveButton("JSON", "Save all of it as JSON", `${page.view}.json`, "application/json", whole));
  // Once the first picture stands.
  requestAnimationFrame(() =>
    setTimeout(() => {
      performance.mark("ready");
      document.documentElement.dataset.ready = "";
    }),
  );
}
