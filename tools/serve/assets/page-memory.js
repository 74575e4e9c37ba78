// The memory strip: the bound, the plan and what was measured, and each step with its waits.

const memory = { bound: 0, plan: 0, server: 0, peak: 0 };

function figures(entries) {
  $("memory-figures").replaceChildren(...entries.map(([name, value]) => {
    const group = element("div");
    group.append(element("dt", name), element("dd", value));
    return group;
  }));
}

// Shows the memory of the process.
function showMemory(measured) {
  if (measured) memory.measured = measured;
  if (!memory.bound) return;
  const share = (bytes) => Math.min(100, bytes / memory.bound * 100) + "%";
  $("bar-measured").style.width = share(memory.measured ?? 0);
  $("bar-plan").style.width = share(memory.plan);
  figures([
    ["planned for the model", mib(memory.plan)],
    ["bound with the server", mib(memory.bound)],
    ["measured now", memory.measured ? mib(memory.measured) : "unknown"],
  ]);
}

// Draws the steps of a job. `count`: steps in all.
function showSteps(trace, count) {
  const chart = $("steps-chart");
  const [width, height] = [Math.max(count, 1) * 10, 96];
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const most = Math.max(...trace.map((step) => step.seconds), 1e-9);
  const make = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const bars = trace.flatMap((step, index) => {
    const all = step.seconds / most * (height - 8);
    const wait = Math.min(1, step.waited_seconds / step.seconds) * all;
    const x = index * 10 + 1;
    return [
      make("rect", { class: "step", x, width: 8, y: height - all, height: all - wait }),
      make("rect", { class: "wait", x, width: 8, y: height - wait, height: wait }),
    ];
  });
  const known = trace.map((step, index) => [index, step.process_bytes]).filter(([, b]) => b);
  const points = known.map(([index, bytes]) =>
    `${index * 10 + 5},${height - bytes / memory.bound * (height - 8)}`);
  chart.replaceChildren(...bars, make("polyline", { points: points.join(" ") }));
  const last = trace.at(-1);
  if (!last) {
    chart.setAttribute("aria-label", "No steps yet");
    $("steps-text").textContent = "";
    return;
  }
  const waited = trace.reduce((sum, step) => sum + step.waited_seconds, 0);
  const seconds = trace.reduce((sum, step) => sum + step.seconds, 0);
  const text = `${trace.length} of ${count} steps in ${duration(seconds)}, of it ` +
    `${duration(waited)} waiting for weights; last step ${duration(last.seconds)}`;
  chart.setAttribute("aria-label", text);
  $("steps-text").textContent = text;
  showMemory(last.process_bytes);
}
