// With #selftest the page uses itself as a person would and writes what it saw into the document.
function selftest() {
  const results = { errors: [] };
  const frame = canvas.getBoundingClientRect(), a = area();
  const send = (type, x, y, more) => {
    const Kind = type === "wheel" ? WheelEvent : PointerEvent;
    const where = { clientX: frame.left + x, clientY: frame.top + y, bubbles: true, cancelable: true };
    canvas.dispatchEvent(new Kind(type, { ...where, ...more }));
  };
  const middle = (op) => (toX(at(op.step)) + toX(at(op.step + 1))) / 2;
  const tipText = () => (tip.hidden ? "" : tip.innerText);
  const count = () => Number($("count").textContent.split(" ")[0]);

  paint();
  results.tiles = [...$("tiles").children].map((tile) => tile.innerText);
  results.budget = $("budget-keys").innerText;
  results.rows = count();
  results.rows_in_document = $("rows").children.length;

  const peak = account.ops[opNear(account.peak.step)];
  setView(at(peak.step) - 10, at(peak.step) + 10); paint();
  const largest = account.peak.live.reduce((x, y) => (x.len_bytes >= y.len_bytes ? x : y));
  send("pointermove", middle(peak), toY(largest.offset_bytes + largest.len_bytes / 2), { pointerId: 1, pointerType: "mouse" });
  results.hovered = { op: opName(peak), buffer: largest.name, tip: tipText() };

  setView(0, extent()); paint();
  const before = view.x1 - view.x0;
  send("wheel", a.x + a.w / 2, a.y + a.h / 2, { deltaY: -80, ctrlKey: true });
  results.wheel_zoom = (view.x1 - view.x0) / before;
  send("pointerdown", a.x + 100, a.y + 50, { pointerId: 2, shiftKey: true });
  send("pointermove", a.x + 200, a.y + 150, { pointerId: 2, shiftKey: true });
  const span = view.x1 - view.x0;
  send("pointerup", a.x + 200, a.y + 150, { pointerId: 2, shiftKey: true });
  results.box_zoom = (view.x1 - view.x0) / span;
  const left = view.x0;
  send("pointerdown", a.x + 200, a.y + 50, { pointerId: 3 });
  send("pointermove", a.x + 100, a.y + 50, { pointerId: 3 });
  send("pointerup", a.x + 100, a.y + 50, { pointerId: 3 });
  results.panned = view.x0 > left;
  $("zoom-reset").click();
  results.reset = view.x0 === 0 && view.x1 === extent();

  setAxis("time"); paint();
  results.time_extent_ns = extent();
  setAxis("op");
  $("search").value = "attention"; $("search").dispatchEvent(new Event("input")); paint();
  results.found = count();
  $("search").value = ""; $("search").dispatchEvent(new Event("input"));
  [...$("head").children].find((b) => b.dataset.key === "predicted").click();
  results.slowest = $("rows").firstChild.innerText.split("\n");
  $("rows").firstChild.click(); paint();
  results.selected = selected;

  const started = performance.now();
  setView(0, extent());
  for (let i = 0; i < 10; i++) paint();
  results.paint_ms = (performance.now() - started) / 10;
  results.errors = failures;
  $("selftest").textContent = JSON.stringify(results);
}

function hoverPeak() {
  paint();
  const frame = canvas.getBoundingClientRect(), op = account.ops[opNear(account.peak.step)];
  const largest = account.peak.live.find((b) => !isResident(b.kind)) ?? account.peak.live[0];
  const x = (toX(at(op.step)) + toX(at(op.step + 1))) / 2, y = toY(largest.offset_bytes + largest.len_bytes / 2);
  const where = { clientX: frame.left + x, clientY: frame.top + y, pointerType: "mouse", pointerId: 1 };
  canvas.dispatchEvent(new PointerEvent("pointermove", where));
}

const failures = [];
addEventListener("error", (event) => failures.push(event.message));
// Links into the page, joined by &: #time, #network=unet, #search=words, #op=3 (by step), #hover (the peak).
for (const word of location.hash.slice(1).split("&")) {
  if (word === "selftest") {
    try { selftest(); } catch (error) { $("selftest").textContent = JSON.stringify({ errors: [String(error.stack)] }); }
  }
  if (word === "time") setAxis("time");
  const network = account.networks.find((n) => word === "network=" + n.name);
  if (network) showNetwork(network);
  if (word.startsWith("search=")) {
    $("search").value = decodeURIComponent(word.slice(7));
    $("search").dispatchEvent(new Event("input"));
  }
  if (word.startsWith("op=")) select(opNear(Number(word.slice(3))), "table");
  if (word === "hover") hoverPeak();
}
