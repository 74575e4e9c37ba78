// The account, and what is derived from it for drawing. Every number shown is the account's.
const account = JSON.parse(document.getElementById("account").textContent);
const $ = (id) => document.getElementById(id);
const sum = (list) => list.reduce((a, b) => a + b, 0);

// Bytes rounded up to a tenth of a MiB, as the terminal does.
function mib(bytes) {
  return (Math.ceil(bytes / 1048576 * 10) / 10).toFixed(1) + " MiB";
}

function duration(ns) {
  if (ns === 0) return "0";
  if (ns < 1e6) return (ns / 1e3).toFixed(1) + " µs";
  if (ns < 1e9) return (ns / 1e6).toFixed(1) + " ms";
  if (ns < 120e9) return (ns / 1e9).toFixed(1) + " s";
  return Math.floor(ns / 60e9) + ":" + String(Math.floor(ns / 1e9) % 60).padStart(2, "0") + " min";
}

function flops(count) {
  if (count === 0) return "none";
  if (count >= 1e12) return (count / 1e12).toFixed(2) + " TFLOP";
  if (count >= 1e9) return (count / 1e9).toFixed(count >= 1e11 ? 1 : 2) + " GFLOP";
  return (count / 1e6).toFixed(count && count < 1e7 ? 2 : 1) + " MFLOP";
}

const isResident = (kind) => kind === "weights" || kind === "constants";

const instants = account.live_bytes.length;
const opAt = new Int32Array(instants).fill(-1);
account.ops.forEach((op, index) => { opAt[op.step] = index; });
const loadAt = new Int32Array(instants).fill(-1);
account.loads.forEach((load, index) => { loadAt[load.step] = index; });
const hasMeasured = account.ops.some((op) => op.measured_ns !== null);

function networkAt(instant) {
  return account.networks.findIndex((n) => n.lower <= instant && instant < n.upper);
}

function opName(op) {
  return account.networks[op.network].name + "." + op.name;
}

// The launch at an instant, or the next one after it.
function opNear(instant) {
  let at = Math.max(0, instant);
  while (at < instants && opAt[at] < 0) at++;
  while (at >= instants || (at > 0 && opAt[at] < 0)) at--;
  return opAt[at];
}

// The slots stand on the arena, one on the other.
const memory = account.memory;
const slotBase = [];
let deviceBytes = memory.arena_bytes;
for (const bytes of memory.slot_bytes) {
  slotBase.push(deviceBytes);
  deviceBytes += bytes;
}
const fixedBytes = memory.staging_bytes + memory.host_bytes + memory.program_bytes + memory.baseline_bytes;
const roomBytes = memory.budget_bytes - fixedBytes;

// Where an instant begins: in time, or by ops, where a launch is 1 wide, a wait for weights a
// half, and what takes no time nothing.
const positions = { op: new Float64Array(instants + 1), time: Float64Array.from(account.start_ns) };
for (let i = 0; i < instants; i++) {
  const waits = loadAt[i] >= 0 && account.loads[loadAt[i]].stall_ns > 0;
  positions.op[i + 1] = positions.op[i] + (opAt[i] >= 0 ? 1 : waits ? 0.5 : 0);
}

// Index of the last element that is at most `value`.
function search(list, value) {
  let low = 0, high = list.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (list[middle] <= value) low = middle; else high = middle - 1;
  }
  return low;
}

// Position of a time on an axis.
function atTime(axis, ns) {
  if (axis === "time") return ns;
  const times = positions.time, at = positions.op;
  const i = Math.min(search(times, ns), instants - 1);
  const width = times[i + 1] - times[i];
  const part = width > 0 ? Math.min(1, Math.max(0, (ns - times[i]) / width)) : 0;
  return at[i] + part * (at[i + 1] - at[i]);
}

// A load's reading as intervals of time: one that began in the pass before is drawn at the end
// of the pass that is shown.
function readings(load) {
  const network = account.networks[networkAt(load.step)];
  const start = account.start_ns[network.lower], end = start + network.pass_ns;
  const from = load.start_ns, to = load.start_ns + load.ns;
  if (from >= start) return [[from, to]];
  const parts = [[from + network.pass_ns, Math.min(to + network.pass_ns, end)]];
  if (to > start) parts.push([start, to]);
  return parts;
}
const loadReadings = account.loads.map(readings);

// What the search field asks for: every word must occur.
let words = [];
const matches = (text) => words.every((word) => text.includes(word));
const opText = account.ops.map((op) =>
  `${opName(op)} ${op.op} ${op.variant} ${op.entry} ${op.problem} ${op.step}`.toLowerCase());
const bufferText = account.arena.map((b) => `${b.name} ${b.kind}`.toLowerCase());
const loadText = account.loads.map((l) => `${account.blocks[l.block].name} streamed`.toLowerCase());
