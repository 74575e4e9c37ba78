// Pictures that are done, with the settings that their files record.

const gallery = { shown: null };

const SETTINGS = ["prompt", "negative prompt", "seed", "steps", "sampler", "spacing", "guidance",
  "guidance rescale", "eta", "strength", "mask", "plain prompt", "model"];

// Shows a picture in full, with its settings.
async function showPicture(entry) {
  const file = await (await fetch(entry.path)).blob();
  const text = pngText(await file.arrayBuffer());
  gallery.shown = { ...entry, text, file };
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(file);
  $("picture").alt = "Picture: " + text.get("prompt");
  $("picture").hidden = false;
  $("empty").hidden = true;
  const given = SETTINGS.filter((key) => text.get(key) && (text.get(key) !== "0" || key === "seed"));
  $("settings").replaceChildren(...given.flatMap((key) =>
    [element("dt", key), element("dd", text.get(key))]));
  $("download").href = entry.path;
  $("download").download = `kiln-${text.get("seed")}.png`;
  $("shown").hidden = false;
}

// Adds the pictures of a job in front of the others.
function addPictures(job) {
  for (const [index, file] of job.files.entries()) {
    const item = element("li");
    const button = element("button", undefined, { type: "button" });
    const alt = `${job.prompt || "no prompt"}, seed ${file.seed}`;
    button.append(element("img", undefined, { src: file.path, alt, loading: "lazy" }));
    button.addEventListener("click", async () => {
      await showPicture({ path: file.path, job: job.id, item }).catch(gone);
      $("result").scrollIntoView({ block: "nearest" });
    });
    item.append(button);
    item.dataset.path = file.path;
    $("pictures").prepend(item);
    if (index === 0) $("none").hidden = true;
  }
}

function gone() {
  $("error").textContent = "The server has forgotten this picture.";
}

// Puts the settings of the shown picture into the form.
function reuse() {
  const { text } = gallery.shown;
  $("prompt").value = text.get("prompt") ?? "";
  $("negative").value = text.get("negative prompt") ?? "";
  for (const key of ["seed", "steps", "guidance", "sampler"]) $(key).value = text.get(key) ?? "";
  $("sampler").dispatchEvent(new Event("change"));
  $("spacing").value = text.get("spacing") ?? "";
  $("prompt").focus();
}

async function forget() {
  const { job, path, item } = gallery.shown;
  await ask("/v1/pictures/" + job, { method: "DELETE" }).catch(() => {});
  const rest = path.slice(0, path.lastIndexOf("/"));
  for (const other of [...$("pictures").children]) {
    if (other === item || other.dataset.path.startsWith(rest + "/")) other.remove();
  }
  $("picture").hidden = $("shown").hidden = true;
  $("empty").hidden = false;
  $("none").hidden = $("pictures").children.length > 0;
  $("prompt").focus();
}

function listenToGallery() {
  $("reuse").addEventListener("click", reuse);
  $("forget").addEventListener("click", forget);
  $("begin").addEventListener("click", () => beginWith(gallery.shown.file));
}
