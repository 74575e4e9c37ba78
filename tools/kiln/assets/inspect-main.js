// The page around the map: figures, keys, pointer, keyboard.
const tip = $("tip");

function element(tag, content, className) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}

// How many tensors are stored in the commonest way, and the others.
function storageCounts() {
  const counts = new Map();
  for (const t of account.tensors) {
    const whole = t.shape.slice(1).reduce((a, b) => a * b, 1);
    const kind = t.block === null || t.block === whole ? t.storage : `${t.storage} in groups of ${t.block}`;
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([kind, count]) => `${count} ${kind}`);
  return [parts[0] ?? "0", parts.slice(1).join(", ")];
}

function makeHeader() {
  $("model").textContent = account.model;
  $("made").textContent = `${account.precision}, made for ${account.profile}`;
  const p = account.predicted, w = account.weights;
  const tiles = [
    ["Planned peak", mib(memory.peak_bytes), "of " + mib(memory.budget_bytes)],
    ["Picture, predicted", duration(p.picture_ns), p.sampler_steps + " steps"],
    ["A step", duration(p.step_ns), duration(p.step_stall_ns) + " waiting"],
    ["Streamed a pass", mib(w.streamed_bytes_a_pass), mib(w.resident_bytes) + " resident"],
    ["Tensors", ...storageCounts()],
    ["Launches", String(account.ops.length), account.arena.length + " buffers"],
  ];
  const repeated = account.networks.reduce((a, b) => (a.passes >= b.passes ? a : b));
  if (repeated.measured_ns !== null) {
    tiles.splice(3, 0, ["Launches a pass", duration(repeated.measured_ns), "measured, " + repeated.name]);
  }
  for (const [name, value, beside] of tiles) {
    const tile = element("div"), figure = element("dd", value + " ");
    figure.append(element("small", beside));
    tile.append(element("dt", name), figure);
    $("tiles").append(tile);
  }
  const r = account.rates;
  const half = r.half_flops_per_s === r.flops_per_s ? "" : ` (${r.half_flops_per_s / 1e9} in FP16)`;
  $("rates").textContent = `Predicted from ${r.flops_per_s / 1e9} GFLOP/s${half}, ${r.memory_bytes_per_s / 1e9} GB/s of memory ` +
    `and ${r.io_bytes_per_s / 1e9} GB/s of storage. A launch takes its arithmetic or its traffic, whichever is longer; ` +
    "reading runs ahead as far as slots are free. The repeated network is shown in a later pass.";
}

function makeBudget() {
  const resident = sum(account.peak.live.filter((b) => isResident(b.kind)).map((b) => b.len_bytes));
  const parts = [
    ["Arena: activations", memory.arena_bytes - resident, "activation"],
    ["Arena: resident weights", resident, "weights"],
    ["Weight slots", sum(memory.slot_bytes), "used"], ["Staging", memory.staging_bytes, "scratch"],
    ["Host buffers", memory.host_bytes, "port"], ["Compiled kernels", memory.program_bytes, "fixed"],
    ["Process and driver", memory.baseline_bytes, "fixed-2"],
  ].filter((part) => part[1] > 0);
  const key = (name, bytes, color) => {
    const span = element("span"), patch = element("i");
    patch.style.background = color;
    span.append(patch, name + " ", element("b", mib(bytes)));
    $("budget-keys").append(span);
  };
  for (const [name, bytes, color] of parts) {
    const bar = element("i");
    bar.style.cssText = `flex: 0 0 ${bytes / memory.budget_bytes * 100}%; background: var(--${color})`;
    bar.title = `${name} ${mib(bytes)}`;
    $("budget").append(bar);
    key(name, bytes, `var(--${color})`);
  }
  const free = memory.budget_bytes - memory.peak_bytes;
  const rest = element("i", undefined, "free");
  rest.title = "Free " + mib(free);
  $("budget").append(rest);
  key("Free", free, "var(--bg)");
}

function makeKeys() {
  const keys = [["activation", "activation"], ["scratch", "scratch"], ["port", "input or output"],
    ["weights", "resident weights"], ["read", "reading a block"], ["ready", "block waits for use"], ["used", "block in use"],
    ["compute", "computing"], ["stall", "waiting for weights"]];
  for (const [color, name] of keys) {
    const span = element("span"), patch = element("i");
    patch.style.background = `var(--${color})`;
    span.append(patch, name);
    $("map-keys").append(span);
  }
  for (const [color, name] of [["muted", "top of the arena"], ["stall", "budget"], ["accent", "peak"], ["ink", "live bytes"]]) {
    const span = element("span"), line = element("i", undefined, name === "live bytes" ? "line solid" : "line");
    line.style.borderColor = `var(--${color})`;
    span.append(line, name);
    $("map-keys").append(span);
  }
}

function showNetwork(network) {
  const room = (at(network.upper) - at(network.lower)) * 0.01;
  setView(at(network.lower) - room, at(network.upper) + room);
}

function setAxis(axis) {
  if (axis === view.axis) return;
  const from = positions[view.axis], to = positions[axis];
  const convert = (p) => {
    const i = Math.min(search(from, p), instants - 1), span = from[i + 1] - from[i];
    return to[i] + (span > 0 ? (p - from[i]) / span : 0) * (to[i + 1] - to[i]);
  };
  const whole = view.x1 - view.x0 >= extent() * 0.999;
  const [x0, x1] = [convert(view.x0), convert(view.x1)];
  view.axis = axis;
  for (const button of $("axis").children) button.setAttribute("aria-pressed", button.dataset.axis === axis);
  setView(whole ? 0 : x0, whole ? extent() : x1, view.y0, view.y1);
}

function makeTools() {
  for (const button of $("axis").children) button.onclick = () => setAxis(button.dataset.axis);
  for (const network of account.networks) {
    const button = element("button", network.name);
    button.title = `${network.runs}, ${duration(network.pass_ns)} a pass`;
    button.onclick = () => showNetwork(network);
    $("networks").append(button);
  }
  $("zoom-in").onclick = () => zoom(0.5);
  $("zoom-out").onclick = () => zoom(2);
  $("zoom-reset").onclick = () => setView(0, extent());
  $("search").oninput = (event) => {
    words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    $("table").scrollTop = 0;
    arrange(); draw();
  };
  $("table").onscroll = fill;
  $("rows").onclick = (event) => {
    const line = event.target.closest(".row");
    if (line) select(Number(line.dataset.op), "table");
  };
}

// What lies under a point of the canvas.
function probe(x, y) {
  const a = area(), l = lanes();
  if (x < a.x || x > a.x + a.w || y < 0 || y > height - AXIS) return null;
  const instant = Math.min(search(positions[view.axis], fromX(x)), instants - 1);
  const found = { instant, op: opNear(instant), buffer: -1, load: -1, resident: -1 };
  const bytes = fromY(y), px = fromX(x);
  if (view.axis === "time") {
    found.resident = account.networks.findIndex((n) => at(n.lower) - n.resident_ns <= px && px < at(n.lower));
  }
  if (y >= a.y && y <= a.y + a.h) {
    found.buffer = account.arena.findIndex((b) =>
      b.lower <= instant && instant < b.upper && b.offset_bytes <= bytes && bytes < b.offset_bytes + b.len_bytes);
    found.load = account.loads.findIndex((load, i) => {
      const base = slotBase[load.slot];
      if (bytes < base || bytes >= base + account.blocks[load.block].len_bytes) return false;
      return occupied(load, i, px);
    });
  } else if (y >= l.slots && y < l.slots + slotsHigh) {
    const slot = Math.floor((y - l.slots) / (SLOT + 2));
    found.load = account.loads.findIndex((load, i) => load.slot === slot && occupied(load, i, px));
  } else if (y >= l.read && y < l.read + LANE) {
    found.load = account.loads.findIndex((_, i) => inside(i, px));
  } else if (y >= l.compute && loadAt[instant] >= 0) {
    found.load = loadAt[instant];
  }
  return found;
}

const inside = (load, px) => loadReadings[load].some(([from, to]) =>
  atTime(view.axis, from) <= px && px < atTime(view.axis, to));

// Whether a position falls between a block's reading and its end.
function occupied(load, index, px) {
  const begin = account.start_ns[account.networks[networkAt(load.step)].lower];
  const from = atTime(view.axis, Math.max(load.start_ns, begin));
  return inside(index, px) || (from <= px && px < positions[view.axis][load.free - 1]);
}

function facts(title, list) {
  const items = element("dl");
  for (const [name, value] of list) items.append(element("dt", name), element("dd", value));
  return [element("h3", title), items];
}

function opFacts(op) {
  const list = [
    ["Op", `${op.op} ${op.variant}`], ["Shape", op.shape.join(" × ")], ["Arithmetic", flops(op.flops)],
    ["Moved", mib(op.bytes)], ["Predicted", duration(op.predicted_ns)], ["Bound by", op.bound],
  ];
  if (op.code) {
    list.push(["One instruction at a time", duration(op.single_issue_ns)], ["Registers", String(op.code.registers)]);
    list.push(["Threads", `${op.code.occupancy_percent} %`], ["Code of", op.code.scaled_from ?? "itself"]);
  }
  if (op.measured_ns !== null) list.push(["Measured", duration(op.measured_ns)]);
  list.push(["Live", mib(account.live_bytes[op.step]) + " of arena"], ["Step", String(op.step)]);
  return facts(opName(op), list);
}

function bufferFacts(b) {
  const name = (instant) => opName(account.ops[opNear(instant)]);
  return facts(b.name, [
    ["Holds", b.kind], ["Length", mib(b.len_bytes)], ["Address", `${b.offset_bytes} (${mib(b.offset_bytes)})`],
    ["Live", `steps ${b.lower} to ${b.upper}`], ["From", name(b.lower)], ["To", name(b.upper - 1)],
  ]);
}

function loadFacts(load) {
  const block = account.blocks[load.block];
  return facts(block.name + " (streamed)", [
    ["Length", mib(block.len_bytes)], ["Slot", String(load.slot)], ["Reading", duration(load.ns)],
    ["Waited for", duration(load.stall_ns)], ["Used", `steps ${load.step} to ${load.free}`],
  ]);
}

function showTip(found, clientX, clientY) {
  if (!found) { tip.hidden = true; return; }
  const parts = [];
  const add = (nodes) => { if (parts.length) parts.push(element("hr")); parts.push(...nodes); };
  if (found.resident >= 0) {
    const network = account.networks[found.resident];
    add(facts("Reading the resident weights of " + network.name, [
      ["Length", mib(network.resident_bytes)], ["Takes", duration(network.resident_ns)], ["When", "before the first pass"],
    ]));
  }
  if (found.buffer >= 0) add(bufferFacts(account.arena[found.buffer]));
  if (found.load >= 0) add(loadFacts(account.loads[found.load]));
  if (found.resident < 0) add(opFacts(account.ops[found.op]));
  tip.replaceChildren(...parts);
  tip.hidden = false;
  const room = tip.getBoundingClientRect();
  const left = clientX + 16 + room.width > innerWidth - 8 ? clientX - room.width - 16 : clientX + 16;
  const above = clientY > innerHeight / 2 && clientY - room.height - 16 > 8;
  const upper = above ? clientY - room.height - 16 : Math.min(clientY + 16, innerHeight - room.height - 8);
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, upper) + "px";
}

const pointers = new Map();
let moved = 0, boxing = false;

function place(event) {
  const frame = canvas.getBoundingClientRect();
  return { x: event.clientX - frame.left, y: event.clientY - frame.top };
}

function pointerMove(event) {
  const now = place(event), before = pointers.get(event.pointerId);
  if (!before) {
    hover = probe(now.x, now.y);
    showTip(hover, event.clientX, event.clientY); draw();
    return;
  }
  moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
  if (boxing) {
    Object.assign(box, { x1: now.x, y1: now.y }); draw();
  } else if (pointers.size === 1) {
    const a = area(), dx = (now.x - before.x) / a.w * (view.x1 - view.x0), dy = (now.y - before.y) / a.h * (view.y1 - view.y0);
    Object.assign(view, { x0: view.x0 - dx, x1: view.x1 - dx, y0: view.y0 + dy, y1: view.y1 + dy });
    clampView(); draw();
  } else {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const factor = Math.max(8, Math.abs(before.x - other.x)) / Math.max(8, Math.abs(now.x - other.x));
    zoom(factor, (now.x + other.x) / 2);
  }
  pointers.set(event.pointerId, now);
  if (moved > 4) { hover = null; tip.hidden = true; }
}

function pointerUp(event) {
  if (!pointers.delete(event.pointerId)) return;
  const now = place(event);
  if (boxing) {
    boxing = false;
    const wide = Math.abs(box.x1 - box.x0) > 6 && Math.abs(box.y1 - box.y0) > 6;
    const x = [fromX(box.x0), fromX(box.x1)].sort((a, b) => a - b), y = [fromY(box.y0), fromY(box.y1)].sort((a, b) => a - b);
    box = null;
    if (wide) setView(x[0], x[1], y[0], y[1]); else draw();
  } else if (moved <= 4 && event.type === "pointerup") {
    hover = probe(now.x, now.y);
    showTip(hover, event.clientX, event.clientY);
    if (hover) select(hover.op, "map");
  }
}

function listen() {
  canvas.onpointermove = pointerMove;
  canvas.onpointerdown = (event) => {
    if (event.button > 0) return;
    if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
    if (pointers.size === 0) moved = 0;
    pointers.set(event.pointerId, place(event));
    boxing = event.shiftKey;
    if (boxing) { const now = place(event); box = { x0: now.x, y0: now.y, x1: now.x, y1: now.y }; }
  };
  canvas.onpointerup = pointerUp;
  canvas.onpointercancel = pointerUp;
  canvas.onpointerleave = (event) => { if (event.pointerType === "mouse") { hover = null; tip.hidden = true; draw(); } };
  canvas.ondblclick = (event) => { const now = place(event); zoom(0.4, now.x); };
  canvas.addEventListener("wheel", (event) => {
    const now = place(event), a = area();
    if (event.ctrlKey || event.metaKey || event.altKey) {
      event.preventDefault();
      zoom(Math.exp(Math.max(-80, Math.min(80, event.deltaY)) * 0.006), now.x, event.shiftKey ? now.y : null);
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const by = (event.deltaX || event.deltaY) / a.w * (view.x1 - view.x0);
      setView(view.x0 + by, view.x1 + by, view.y0, view.y1);
    }
  }, { passive: false });
  canvas.onkeydown = (event) => {
    const span = view.x1 - view.x0, tall = view.y1 - view.y0;
    const pan = (dx, dy) => setView(view.x0 + dx * span, view.x1 + dx * span, view.y0 + dy * tall, view.y1 + dy * tall);
    const actions = {
      ArrowLeft: () => pan(-0.15, 0), ArrowRight: () => pan(0.15, 0), ArrowUp: () => pan(0, 0.15), ArrowDown: () => pan(0, -0.15),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => setView(0, extent()),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  };
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  matchMedia("(prefers-color-scheme: dark)").onchange = () => { readColors(); draw(); };
  new ResizeObserver(resize).observe(canvas);
}

makeHeader(); makeBudget(); makeKeys(); makeTools(); makeHead();
readColors(); listen();
setView(0, extent());
resize(); arrange();
