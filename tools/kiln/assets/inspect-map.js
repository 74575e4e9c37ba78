// The canvas: networks, memory over the schedule, and the lanes of reading and computing.
const canvas = $("map"), pen = canvas.getContext("2d");
const view = { axis: "op", x0: 0, x1: 1, y0: 0, y1: 1 };
let width = 0, height = 0, colors = {}, hover = null, box = null, selected = -1;
const LANE = 20, BAND = 22, AXIS = 20;
const SLOT = memory.slot_bytes.length > 6 ? 6 : 14;

const extent = () => positions[view.axis][instants];
const top = Math.max(deviceBytes, Math.min(roomBytes, deviceBytes * 1.08)) * 1.03;
const gutter = () => (width < 600 ? 58 : 70);
const slotsHigh = memory.slot_bytes.length * (SLOT + 2);
const area = () => ({ x: gutter(), y: BAND + 4, w: width - gutter() - 8, h: height - BAND - slotsHigh - 2 * LANE - AXIS - 28 });
const lanes = () => {
  const a = area(), slots = a.y + a.h + 8, read = slots + slotsHigh + 3;
  return { slots, read, compute: read + LANE + 3 };
};
const toX = (p) => { const a = area(); return a.x + (p - view.x0) / (view.x1 - view.x0) * a.w; };
const toY = (b) => { const a = area(); return a.y + a.h - (b - view.y0) / (view.y1 - view.y0) * a.h; };
const fromX = (x) => { const a = area(); return view.x0 + (x - a.x) / a.w * (view.x1 - view.x0); };
const fromY = (y) => { const a = area(); return view.y0 + (a.y + a.h - y) / a.h * (view.y1 - view.y0); };
const at = (instant) => positions[view.axis][instant];

function readColors() {
  const style = getComputedStyle(document.documentElement);
  const names = ["bg", "card", "ink", "muted", "line", "accent", "activation", "activation-2", "activation-3", "scratch",
    "port", "weights", "weights-2", "read", "ready", "used", "stall", "compute", "compute-2", "grid", "map", "label"];
  colors = Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
}

function resize() {
  const ratio = window.devicePixelRatio || 1;
  width = canvas.clientWidth; height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  draw();
}

function clampView() {
  const limit = extent(), least = view.axis === "op" ? 2 : limit / 2e5;
  const span = Math.min(limit, Math.max(least, view.x1 - view.x0));
  view.x0 = Math.min(Math.max(0, view.x0), limit - span); view.x1 = view.x0 + span;
  const tall = Math.min(top, Math.max(top / 4000, view.y1 - view.y0));
  view.y0 = Math.min(Math.max(0, view.y0), top - tall); view.y1 = view.y0 + tall;
}

function setView(x0, x1, y0 = 0, y1 = top) {
  Object.assign(view, { x0, x1, y0, y1 });
  clampView(); draw();
}

function zoom(factor, x = area().x + area().w / 2, y = null) {
  const px = fromX(x);
  view.x0 = px - (px - view.x0) * factor; view.x1 = px + (view.x1 - px) * factor;
  if (y !== null) {
    const py = fromY(y);
    view.y0 = py - (py - view.y0) * factor; view.y1 = py + (view.y1 - py) * factor;
  }
  clampView(); draw();
}

function bufferColor(b) {
  if (b.kind === "activation") return colors[["activation", "activation-2", "activation-3"][b.buffer % 3]];
  if (isResident(b.kind)) return colors[b.buffer % 2 ? "weights" : "weights-2"];
  return colors[b.kind];
}

function rectangle(x0, x1, y0, y1, color, label) {
  const a = area();
  const left = Math.max(a.x, x0), right = Math.min(a.x + a.w, Math.max(x1, x0 + 0.7));
  if (right <= left) return;
  const upper = Math.max(a.y, y1), lower = Math.min(a.y + a.h, Math.max(y0, y1 + 0.5));
  if (lower <= upper) return;
  const gap = right - left > 4 ? 0.5 : 0, line = lower - upper > 3 ? 0.5 : 0;
  pen.fillStyle = color;
  pen.fillRect(left, upper, right - left - gap, lower - upper - line);
  if (label && right - left > 70 && lower - upper > 14) text(label, left + 4, (upper + lower) / 2, right - left - 8);
}

function text(label, x, y, room) {
  pen.fillStyle = colors.label; pen.font = "11px system-ui, sans-serif"; pen.textBaseline = "middle"; pen.textAlign = "left";
  const fit = Math.floor(room / 6.6);
  if (fit < 6) return;
  pen.fillText(label.length > fit ? "…" + label.slice(label.length - fit + 1) : label, x, y);
}

function drawBuffers() {
  const p = positions[view.axis];
  account.arena.forEach((b, i) => {
    if (p[b.upper] < view.x0 || p[b.lower] > view.x1) return;
    pen.globalAlpha = words.length && !matches(bufferText[i]) ? 0.13 : 1;
    const x0 = toX(p[b.lower]), x1 = toX(p[b.upper]);
    rectangle(x0, x1, toY(b.offset_bytes), toY(b.offset_bytes + b.len_bytes), bufferColor(b), b.name);
  });
  pen.globalAlpha = 1;
}

function drawSlots() {
  const p = positions[view.axis];
  account.loads.forEach((load, i) => {
    const block = account.blocks[load.block];
    const y0 = toY(slotBase[load.slot]), y1 = toY(slotBase[load.slot] + block.len_bytes);
    pen.globalAlpha = words.length && !matches(loadText[i]) ? 0.13 : 1;
    for (const [from, to] of loadReadings[i]) {
      rectangle(toX(atTime(view.axis, from)), toX(atTime(view.axis, to)), y0, y1, colors.read);
    }
    const network = account.networks[networkAt(load.step)];
    const ready = Math.max(load.start_ns + load.ns, account.start_ns[network.lower]);
    rectangle(toX(atTime(view.axis, ready)), toX(p[load.step + 1]), y0, y1, colors.ready);
    rectangle(toX(p[load.step + 1]), toX(p[load.free - 1]), y0, y1, colors.used, block.name);
  });
  pen.globalAlpha = 1;
}

// A bar in a lane, from one position to another.
function bar(from, to, y, color, high = LANE, name = "") {
  const a = area();
  const x0 = Math.max(a.x, toX(from)), x1 = Math.min(a.x + a.w, Math.max(toX(to), toX(from) + 0.6));
  if (x1 <= x0) return;
  pen.fillStyle = color; pen.fillRect(x0, y, x1 - x0 - (x1 - x0 > 4 ? 0.5 : 0), high);
  if (name && x1 - x0 > 70) text(name, x0 + 4, y + high / 2, x1 - x0 - 8);
}

// A lane for each slot: reading, waiting, in use.
function drawSlotLanes() {
  const a = area(), l = lanes(), p = positions[view.axis];
  const y = (slot) => l.slots + slot * (SLOT + 2);
  memory.slot_bytes.forEach((_, slot) => {
    pen.fillStyle = colors.map; pen.fillRect(a.x, y(slot), a.w, SLOT);
    if (SLOT > 10) label("slot " + slot, a.x - 7, y(slot) + SLOT / 2, "right", colors.muted);
  });
  account.loads.forEach((load, i) => {
    const name = account.blocks[load.block].name, begin = account.start_ns[account.networks[networkAt(load.step)].lower];
    pen.globalAlpha = words.length && !matches(loadText[i]) ? 0.15 : 1;
    for (const [from, to] of loadReadings[i]) bar(atTime(view.axis, from), atTime(view.axis, to), y(load.slot), colors.read, SLOT);
    const ready = atTime(view.axis, Math.max(load.start_ns + load.ns, begin));
    if (ready < p[load.step + 1]) bar(ready, p[load.step + 1], y(load.slot), colors.ready, SLOT);
    bar(p[load.step + 1], p[load.free - 1], y(load.slot), colors.used, SLOT, SLOT > 10 ? name : "");
  });
  pen.globalAlpha = 1;
}

function drawLanes() {
  const a = area(), l = lanes(), p = positions[view.axis];
  pen.fillStyle = colors.map;
  pen.fillRect(a.x, l.read, a.w, LANE); pen.fillRect(a.x, l.compute, a.w, LANE);
  account.loads.forEach((load, i) => {
    pen.globalAlpha = words.length && !matches(loadText[i]) ? 0.15 : 1;
    for (const [from, to] of loadReadings[i]) bar(atTime(view.axis, from), atTime(view.axis, to), l.read, colors.read);
    if (load.stall_ns > 0) bar(p[load.step], p[load.step + 1], l.compute, colors.stall);
  });
  account.networks.forEach((n) => {
    const end = account.start_ns[n.lower];
    pen.globalAlpha = 1;
    if (n.resident_ns > 0 && view.axis === "time") bar(end - n.resident_ns, end, l.read, colors.weights);
    if (n.resident_ns > 0 && view.axis === "time") bar(end - n.resident_ns, end, l.compute, colors.stall);
  });
  account.ops.forEach((op, i) => {
    pen.globalAlpha = words.length && !matches(opText[i]) ? 0.15 : 1;
    const end = view.axis === "time" ? p[op.step] + op.predicted_ns : p[op.step + 1];
    bar(p[op.step], end, l.compute, i === selected ? colors.accent : colors[i % 2 ? "compute" : "compute-2"]);
  });
  pen.globalAlpha = 1;
}

function drawNetworks() {
  const a = area();
  account.networks.forEach((n, i) => {
    const time = view.axis === "time", begin = at(n.lower) - (time ? n.resident_ns : 0);
    const end = time ? at(n.lower) + n.pass_ns : at(n.upper);
    const x0 = Math.max(a.x, toX(begin)), x1 = Math.min(a.x + a.w, toX(end));
    if (x1 <= x0) return;
    pen.fillStyle = colors.grid; pen.fillRect(x0, 0, Math.max(1, x1 - x0 - 1), BAND - 4);
    if (i % 2 === 0) { pen.fillStyle = colors.grid; pen.globalAlpha = 0.5; pen.fillRect(x0, a.y, x1 - x0, a.h); pen.globalAlpha = 1; }
    if (x1 - x0 < 30) return;
    pen.save(); pen.beginPath(); pen.rect(x0, 0, x1 - x0 - 4, BAND); pen.clip();
    label(n.name, x0 + 6, (BAND - 4) / 2, "left", colors.ink); pen.restore();
  });
}

function label(value, x, y, align, color) {
  pen.font = "11.5px system-ui, sans-serif"; pen.textBaseline = "middle"; pen.textAlign = align;
  pen.fillStyle = color; pen.fillText(value, x, y);
}

function niceStep(span, count) {
  const raw = span / count, base = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((f) => f * base).find((step) => step >= raw);
}

function drawAxes() {
  const a = area(), l = lanes(), mega = 1048576;
  const step = 2 ** Math.max(-10, Math.ceil(Math.log2((view.y1 - view.y0) / mega / 6)));
  for (let tick = Math.ceil(view.y0 / mega / step) * step; tick * mega <= view.y1; tick += step) {
    const y = toY(tick * mega);
    pen.fillStyle = colors.grid; pen.fillRect(a.x, y, a.w, 1);
    label(tick + (width < 600 ? "" : " MiB"), a.x - 7, y, "right", colors.muted);
  }
  label("read", a.x - 7, l.read + LANE / 2, "right", colors.muted);
  label("compute", a.x - 7, l.compute + LANE / 2, "right", colors.muted);
  const time = view.axis === "time", list = positions.op;
  const [from, to] = time ? [view.x0, view.x1] : [search(list, view.x0), search(list, view.x1)];
  const gap = Math.max(time ? 0 : 1, niceStep(Math.max(1, to - from), Math.max(2, Math.floor(a.w / 110))));
  let last = -100;
  for (let tick = Math.ceil(from / gap) * gap; tick <= to; tick += gap) {
    const x = Math.max(a.x + 16, toX(time ? tick : list[tick]));
    if (x > a.x + a.w - 26) break;
    if (x - last < 62) continue;
    last = x;
    label(time ? duration(tick) : "step " + tick, x, height - AXIS / 2, "center", colors.muted);
  }
}

function dashed(x0, y0, x1, y1, color) {
  pen.strokeStyle = color; pen.lineWidth = 1.5; pen.setLineDash([6, 4]);
  pen.beginPath(); pen.moveTo(x0, y0); pen.lineTo(x1, y1); pen.stroke(); pen.setLineDash([]);
}

// A label on the map, on a patch so that it can be read over anything.
function badge(value, x, y, color, align = "left") {
  pen.font = "600 11.5px system-ui, sans-serif";
  const a = area(), wide = pen.measureText(value).width + 12;
  let left = align === "left" ? x : x - wide;
  left = Math.min(Math.max(a.x + 2, left), a.x + a.w - wide - 2);
  pen.fillStyle = colors.card; pen.globalAlpha = 0.92;
  pen.beginPath(); pen.roundRect(left, y - 9, wide, 18, 5); pen.fill(); pen.globalAlpha = 1;
  pen.textBaseline = "middle"; pen.textAlign = "left"; pen.fillStyle = color; pen.fillText(value, left + 6, y + 0.5);
}

function drawMarks() {
  const a = area();
  pen.save(); pen.beginPath(); pen.rect(a.x, a.y, a.w, a.h); pen.clip();
  pen.strokeStyle = colors.ink; pen.globalAlpha = 0.55; pen.lineWidth = 1.2; pen.beginPath();
  const first = Math.max(0, search(positions[view.axis], view.x0) - 1);
  for (let i = first; i < instants && at(i) <= view.x1; i++) {
    const y = toY(account.live_bytes[i]);
    pen.lineTo(toX(at(i)), y); pen.lineTo(toX(at(i + 1)), y);
  }
  pen.stroke(); pen.globalAlpha = 1;
  dashed(a.x, toY(memory.arena_bytes), a.x + a.w, toY(memory.arena_bytes), colors.muted);
  dashed(a.x, toY(roomBytes), a.x + a.w, toY(roomBytes), colors.stall);
  const x = (toX(at(account.peak.step)) + toX(at(account.peak.step + 1))) / 2;
  dashed(x, a.y, x, a.y + a.h, colors.accent);
  pen.restore();
  if (x >= a.x && x <= a.x + a.w) badge("peak " + mib(account.peak.live_bytes), x + 6, a.y + a.h - 14, colors.accent);
  const budgetY = toY(roomBytes);
  const budget = `budget: ${mib(roomBytes)} for arena and slots`;
  if (budgetY >= a.y && budgetY <= a.y + a.h) badge(budget, a.x + a.w, Math.max(budgetY, a.y + 11), colors.stall, "right");
  else if (budgetY < a.y && view.y1 >= top * 0.999) badge("↑ " + budget, a.x + a.w, a.y + 11, colors.stall, "right");
}

// Outlines what the op under the pointer reads and writes.
function drawHover() {
  const a = area();
  if (box) {
    pen.strokeStyle = colors.accent; pen.lineWidth = 1.5; pen.fillStyle = colors.accent;
    pen.globalAlpha = 0.12; pen.fillRect(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0); pen.globalAlpha = 1;
    pen.strokeRect(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0);
  }
  const index = hover ? hover.op : selected;
  if (index < 0) return;
  const op = account.ops[index];
  pen.save(); pen.beginPath(); pen.rect(a.x, a.y, a.w, height); pen.clip();
  const x0 = toX(at(op.step)), x1 = Math.max(toX(at(op.step + 1)), x0 + 1);
  pen.fillStyle = colors.ink; pen.globalAlpha = 0.13;
  pen.fillRect(x0, a.y, x1 - x0, lanes().compute + LANE - a.y); pen.globalAlpha = 1;
  const outline = (id, color) => {
    const b = account.arena[id];
    pen.strokeStyle = color; pen.lineWidth = 2;
    const left = toX(at(b.lower)), upper = toY(b.offset_bytes + b.len_bytes);
    pen.strokeRect(left, upper, Math.max(2, toX(at(b.upper)) - left), Math.max(2, toY(b.offset_bytes) - upper));
  };
  op.reads.forEach((id) => outline(id, colors.ink));
  op.writes.forEach((id) => outline(id, colors.stall));
  pen.restore();
}

let pending = false;
function draw() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; paint(); });
}

function paint() {
  const a = area();
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = colors.map; pen.fillRect(a.x, a.y, a.w, a.h);
  drawNetworks(); drawAxes(); drawBuffers(); drawSlots(); drawSlotLanes(); drawLanes(); drawMarks(); drawHover();
}
