// Texts: elements by id, numbers for people, and the text chunks of PNG files.

const $ = (id) => document.getElementById(id);

const mib = (bytes) => (bytes / 1048576).toFixed(0) + " MiB";

function duration(seconds) {
  if (seconds < 10) return seconds.toFixed(1) + " s";
  if (seconds < 90) return Math.round(seconds) + " s";
  return Math.floor(seconds / 60) + " min " + Math.round(seconds % 60) + " s";
}

// An element with a text and attributes.
function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Fills a select with options, each a value or [value, label].
function fill(select, options, chosen) {
  select.replaceChildren(...options.map((option) => {
    const [value, label] = Array.isArray(option) ? option : [option, option];
    return element("option", label, { value });
  }));
  if (chosen !== undefined && options.some((o) => (Array.isArray(o) ? o[0] : o) === chosen)) {
    select.value = chosen;
  }
}

// Answers as JSON; a refusal is an Error with the server's line.
async function ask(path, options = {}) {
  const response = await fetch(path, options);
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(answer.error?.message ?? "the server answers " + response.status);
  }
  return answer;
}

// Keys and values of the tEXt and iTXt chunks of a PNG file, as far as they are not compressed.
function pngText(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const found = new Map();
  const utf8 = new TextDecoder();
  const latin1 = new TextDecoder("latin1");
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = latin1.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    const end = data.indexOf(0);
    const key = latin1.decode(data.subarray(0, Math.max(end, 0)));
    if (kind === "tEXt") found.set(key, latin1.decode(data.subarray(end + 1)));
    if (kind === "iTXt" && data[end + 1] === 0) {
      // Language and translated key end with a zero each.
      const language = data.indexOf(0, end + 3);
      found.set(key, utf8.decode(data.subarray(data.indexOf(0, language + 1) + 1)));
    }
    at += 12 + length;
  }
  return found;
}
