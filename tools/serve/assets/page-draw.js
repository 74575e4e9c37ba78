// The picture to begin with, and the mask that is drawn on it.

const draw = { loaded: false, masked: false, down: false, cursor: [0, 0] };

function brush(x, y) {
  const context = $("mask-canvas").getContext("2d");
  context.fillStyle = "#fff";
  context.beginPath();
  context.arc(x, y, Number($("brush").value) / 2, 0, 2 * Math.PI);
  context.fill();
  draw.masked = true;
}

function clearMask() {
  const canvas = $("mask-canvas");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  draw.masked = false;
}

// Shows a picture at the size of the pictures to make: scaled to cover it, the rest cut off.
async function beginWith(blob) {
  const bitmap = await createImageBitmap(blob);
  const [width, height] = $("size").value.split("x").map(Number);
  for (const id of ["init-canvas", "mask-canvas"]) Object.assign($(id), { width, height });
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  const context = $("init-canvas").getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  clearMask();
  draw.loaded = true;
  draw.cursor = [width / 2, height / 2];
  $("init-tools").hidden = false;
  $("init-field").open = true;
}

function removePicture() {
  draw.loaded = false;
  $("init").value = "";
  $("init-tools").hidden = true;
  clearMask();
}

// The mask as a picture: white where the picture changes.
function maskUrl() {
  const mask = $("mask-canvas");
  const canvas = element("canvas");
  Object.assign(canvas, { width: mask.width, height: mask.height });
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(mask, 0, 0);
  return canvas.toDataURL("image/png");
}

// The fields of a request.
function initFields() {
  if (!draw.loaded || $("init-field").hidden) return {};
  const fields = {
    init_image: $("init-canvas").toDataURL("image/png"),
    strength: Number($("strength").value),
  };
  if (draw.masked && !$("mask-tools").hidden) fields.mask = maskUrl();
  return fields;
}

function listenToDrawing() {
  const canvas = $("mask-canvas");
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * canvas.width;
    return [x, (event.clientY - box.top) / box.height * canvas.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    draw.down = true;
    canvas.setPointerCapture(event.pointerId);
    brush(...place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!draw.down) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) brush(...place(part));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => { draw.down = false; });
  }
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
    const [x, y] = moves[event.key] ?? [0, 0];
    draw.cursor = [draw.cursor[0] + x, draw.cursor[1] + y];
    if (event.key === " ") brush(...draw.cursor);
    if (event.key === " " || event.key in moves) event.preventDefault();
  });
  $("init").addEventListener("change", async () => {
    const [file] = $("init").files;
    if (!file) return;
    try {
      await beginWith(file);
      $("error").textContent = "";
    } catch {
      $("error").textContent = file.name + " is no picture that this browser reads";
    }
  });
  $("init-remove").addEventListener("click", removePicture);
  $("mask-clear").addEventListener("click", clearMask);
  const show = () => { $("strength-value").value = Math.round($("strength").value * 100) + " %"; };
  $("strength").addEventListener("input", show);
  show();
}
