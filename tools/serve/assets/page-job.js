// A job from the request to the picture: its events, preview, time left, and Cancel.

const running = { id: null, events: null, trace: [], preview: null, told: "" };

const STAGES = {
  queued: (job) => job.ahead > 0 ? `${job.ahead} before this one` : "waiting",
  loading: (job) => job.kernels ? `compiling kernels: ${job.kernels.join(" of ")}` : "loading",
  prompt: () => "reading the prompt",
  sampling: (job) => `step ${job.step} of ${job.steps}`,
  decoding: () => "decoding the picture",
  done: () => "done",
  failed: () => "failed",
  cancelled: () => "cancelled",
};

// Tells the stage to everyone at once, and to screen readers at stages and quarters only.
function tell(job) {
  const text = STAGES[job.stage](job);
  $("left").textContent = [
    text, job.seconds_left ? duration(job.seconds_left) + " left" : "",
  ].filter(Boolean).join(", ");
  const quarter = job.stage === "sampling" ? Math.floor(job.step / job.steps * 4) : 0;
  const key = job.stage + quarter;
  if (key !== running.told) $("status").textContent = text;
  running.told = key;
  $("progress").hidden = false;
  $("progress").value = job.stage === "done" ? 1 : job.step / (job.steps + 1);
}

function showPreview(path) {
  if (!path || path === running.preview) return;
  running.preview = path;
  $("picture").src = path;
  $("picture").alt = "Preview";
  $("picture").hidden = false;
  $("empty").hidden = $("shown").hidden = true;
}

function follow(job) {
  Object.assign(running, { id: job.id, trace: [], preview: null, told: "" });
  showSteps([], job.steps);
  busy(true);
  tell(job);
  const events = running.events = new EventSource(`/v1/pictures/${job.id}/events`);
  const receive = (event) => {
    const now = JSON.parse(event.data);
    // After a reconnection all steps come again.
    const known = new Set(running.trace.map((step) => step.step));
    running.trace.push(...now.trace.filter((step) => !known.has(step.step)));
    if (now.trace.length) showSteps(running.trace, now.steps);
    tell(now);
    showPreview(now.preview_path);
    return now;
  };
  events.addEventListener("state", receive);
  events.addEventListener("end", async (event) => {
    events.close();
    await ended(receive(event));
  });
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) {
      busy(false);
      $("error").textContent = "The server does not answer.";
    }
  };
}

async function ended(job) {
  busy(false);
  $("progress").hidden = true;
  $("left").textContent = "";
  if (job.stage === "failed") $("error").textContent = job.error;
  if (job.stage !== "done") {
    $("picture").hidden = true;
    $("empty").hidden = false;
    return;
  }
  addPictures(job);
  const item = $("pictures").firstChild;
  await showPicture({ path: job.files[0].path, job: job.id, item }).catch(gone);
  const { times } = job.files[0].report;
  const seconds = times.prompt_seconds + times.sample_seconds + times.decode_seconds;
  $("status").textContent = [`done in ${duration(seconds)}`, ...job.files[0].warnings].join("; ");
}

function busy(is) {
  $("make").disabled = is;
  $("cancel").disabled = !is;
  $("result").setAttribute("aria-busy", is);
}

async function make(fields) {
  $("error").textContent = "";
  try {
    follow(await ask("/v1/pictures", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(fields),
    }));
  } catch (error) {
    $("error").textContent = error.message;
  }
}

async function cancel() {
  $("cancel").disabled = true;
  await ask("/v1/pictures/" + running.id, { method: "DELETE" }).catch(() => {});
  $("make").focus();
}
