// The form: what the chosen model offers, and the request.

let server;

const model = () => server.models.find((known) => known.name === $("model").value);

function showSpacings() {
  const sampler = server.samplers.find((known) => known.name === $("sampler").value);
  const first = ["", sampler?.has_own ? "its own" : "the model's"];
  fill($("spacing"), [first, ...(sampler?.spacings ?? [])]);
}

function showModel() {
  const chosen = model();
  const planned = chosen.planned[0];
  fill($("size"), chosen.sizes);
  $("steps").value = chosen.steps;
  $("guidance").value = chosen.guidance;
  $("guidance-field").hidden = !chosen.has_guidance;
  fill($("sampler"), server.samplers.map((s) => [s.name, s.title]), chosen.sampler);
  showSpacings();
  const tiny = chosen.decoders.includes("tiny");
  $("decoder-field").hidden = chosen.decoders.length < 2;
  const titles = { full: "Full", tiny: "Tiny, faster" };
  fill($("decoder"), chosen.decoders.map((name) => [name, titles[name]]));
  const coarse = [["latent", "Coarse"], ["none", "None"]];
  fill($("preview"), tiny ? [["decoder", "Sharp, by the tiny decoder"], ...coarse] : coarse);
  $("init-field").hidden = !chosen.init_image;
  $("begin").hidden = !chosen.init_image;
  $("mask-tools").hidden = $("mask-canvas").hidden = !chosen.mask;
  const plan = mib(planned.peak_bytes);
  $("about").textContent = `${chosen.model}, ${chosen.precision}, planned ${plan}`;
}

const number = (id) => $(id).value === "" ? undefined : Number($(id).value);

function fields() {
  const chosen = model();
  return {
    model: chosen.name,
    prompt: $("prompt").value,
    negative_prompt: $("negative").value,
    size: $("size").value,
    steps: number("steps"),
    sampler: $("sampler").value,
    spacing: $("spacing").value || undefined,
    guidance: chosen.has_guidance ? number("guidance") : undefined,
    seed: number("seed"),
    decoder: $("decoder").value || undefined,
    preview: $("preview").value,
    ...initFields(),
  };
}

async function start() {
  server = await ask("/v1/server");
  const { memory: planned } = server;
  Object.assign(memory, { bound: planned.total_bytes, plan: planned.plan_bytes });
  showMemory(planned.process_bytes);
  fill($("model"), server.models.map((known) => known.name), server.default_model);
  showModel();
  $("model").addEventListener("change", showModel);
  $("sampler").addEventListener("change", showSpacings);
  $("size").addEventListener("change", removePicture);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    make(fields());
  });
  $("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  $("cancel").addEventListener("click", cancel);
  listenToDrawing();
  listenToGallery();
  const { pictures } = await ask("/v1/pictures");
  for (const job of pictures.toReversed()) addPictures(job);
  document.body.dataset.ready = "true";
}

start().catch((error) => { $("error").textContent = error.message; });
