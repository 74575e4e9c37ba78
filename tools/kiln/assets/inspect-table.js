// The table of ops: only the rows in sight are in the document.
const ROW = 30;
const picture = (op) => op.predicted_ns * account.networks[op.network].passes;
const longest = Math.max(1, ...account.ops.map(picture));
const number = (key, label, room, value, show) => ({ key, label, room, value, show, number: true });
const COLUMNS = [
  number("step", "Step", "62px", (op) => op.step, String),
  { key: "name", label: "Op", room: "minmax(230px, 2.4fr)", value: opName, show: String },
  { key: "variant", label: "Variant", room: "minmax(150px, 1fr)", value: (op) => `${op.op} ${op.variant}`, show: String },
  { key: "shape", label: "Shape", room: "minmax(120px, .8fr)", value: (op) => op.shape.join(" × "), show: String },
  number("flops", "Arithmetic", "116px", (op) => op.flops, flops),
  number("bytes", "Moved", "98px", (op) => op.bytes, mib),
  number("predicted", "Predicted", "94px", (op) => op.predicted_ns, duration),
  { key: "bound", label: "Bound by", room: "96px", value: (op) => op.bound, show: String },
  ...(hasMeasured ? [
    number("measured", "Measured", "94px", (op) => op.measured_ns ?? 0, (ns) => (ns ? duration(ns) : "–")),
    number("ratio", "Meas. / pred.", "104px", (op) => (op.measured_ns ?? 0) / Math.max(1, op.predicted_ns),
      (r) => (r ? r.toFixed(2) : "–")),
  ] : []),
  number("picture", "In a picture", "112px", picture, duration),
];
let order = { key: "step", down: false }, shown = account.ops.map((_, i) => i);

function makeHead() {
  $("table").style.setProperty("--columns", COLUMNS.map((c) => c.room).join(" "));
  const head = $("head");
  for (const column of COLUMNS) {
    const button = document.createElement("button");
    button.dataset.key = column.key;
    if (column.number) button.className = "number";
    button.onclick = () => {
      const again = order.key === column.key;
      order = { key: column.key, down: again ? !order.down : Boolean(column.number) && column.key !== "step" };
      arrange();
    };
    head.append(button);
  }
}

// Filters and sorts.
function arrange() {
  const column = COLUMNS.find((c) => c.key === order.key), sign = order.down ? -1 : 1;
  const keys = account.ops.map(column.value);
  shown = account.ops.map((_, i) => i).filter((i) => matches(opText[i]));
  shown.sort((a, b) => (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : a - b));
  for (const button of $("head").children) {
    const mark = button.dataset.key === order.key ? (order.down ? " ↓" : " ↑") : "";
    button.textContent = COLUMNS.find((c) => c.key === button.dataset.key).label + mark;
  }
  const ns = sum(shown.map((i) => picture(account.ops[i])));
  $("count").textContent = `${shown.length} of ${account.ops.length} launches, ${duration(ns)} of a picture`;
  $("rows").style.height = shown.length * ROW + "px";
  fill();
}

function fill() {
  const table = $("table"), rows = $("rows");
  const first = Math.max(0, Math.floor(table.scrollTop / ROW) - 4);
  const last = Math.min(shown.length, first + Math.ceil(table.clientHeight / ROW) + 8);
  const list = [];
  for (let k = first; k < last; k++) list.push(row(k));
  rows.replaceChildren(...list);
}

function row(place) {
  const index = shown[place], op = account.ops[index], line = document.createElement("div");
  line.className = index === selected ? "row on" : "row";
  line.style.top = place * ROW + "px";
  line.dataset.op = index;
  for (const column of COLUMNS) {
    const cell = document.createElement("span");
    cell.textContent = column.show(column.value(op));
    if (column.number) cell.className = "number";
    if (column.key === "name") cell.title = cell.textContent + "\n" + op.problem;
    if (column.key === "picture") {
      cell.className = "number share";
      cell.style.setProperty("--part", picture(op) / longest * 100 + "%");
    }
    line.append(cell);
  }
  return line;
}

// Marks an op in both views and brings it into sight.
function select(index, from) {
  selected = index;
  if (index >= 0 && from === "table") {
    const middle = (at(account.ops[index].step) + at(account.ops[index].step + 1)) / 2;
    const span = Math.min(view.x1 - view.x0, extent() / 12);
    setView(middle - span / 2, middle + span / 2, view.y0, view.y1);
  }
  const place = shown.indexOf(index);
  if (place >= 0 && from === "map") $("table").scrollTop = Math.max(0, place * ROW - $("table").clientHeight / 2);
  fill(); draw();
}
