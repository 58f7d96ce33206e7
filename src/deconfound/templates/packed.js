"use strict";

const page = {};
const PLAIN_NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function unzipped(text) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser is too old (Chrome 80, Firefox 113 or Safari 16.4 at least)");
  }
  const stream = new Blob([bytesOf(text)]).stream();
  return new Response(stream.pipeThrough(new DecompressionStream("gzip")));
}

async function unpacked(id) {
  return unzipped(document.getElementById(id).textContent).text();
}

// Numbers of a packed column, whose bytes lie apart by their place in a number, the lowest first.
async function numbersOf(text, Kind) {
  const apart = new Uint8Array(await unzipped(text).arrayBuffer());
  const size = Kind.BYTES_PER_ELEMENT;
  const count = apart.length / size;
  const together = new Uint8Array(apart.length);
  for (let place = 0; place < size; place += 1) {
    for (let i = 0; i < count; i += 1) together[i * size + place] = apart[place * count + i];
  }
  return new Kind(together.buffer); // in the order of the machine's bytes
}

function fail(problem) {
  const failure = document.getElementById("failure");
  failure.textContent = `Part of this page could not be drawn: ${problem}`;
  failure.hidden = false;
}

addEventListener("error", event => fail(event.message));
addEventListener("unhandledrejection", event => fail(event.reason));

function element(kind, attributes = {}, ...inside) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "oninput") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...inside);
  return made;
}

function save(name, content, kind) {
  const address = typeof content === "string" && content.startsWith("data:")
    ? content : URL.createObjectURL(new Blob([content], { type: kind }));
  element("a", { href: address, download: name }).click();
  if (address.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// A file's name of a title that other people wrote.
function fileName(title, ending) {
  return `${title.trim().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "figure"}.${ending}`;
}

// Texts that a spreadsheet would compute are marked, as in every CSV of deconfound.
function csvOf(rows) {
  const cell = value => {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    if (typeof value === "number") return String(value);
    const text = /^'*[=+\-@\t\r]/.test(value) && !PLAIN_NUMBER.test(value) ? `'${value}` : value;
    return `"${text.replaceAll('"', '""')}"`;
  };
  return `${rows.map(row => row.map(cell).join(",")).join("\n")}\n`;
}

for (const box of document.querySelectorAll(".paste")) {
  const text = box.firstElementChild;
  box.append(element("button", {
    type: "button",
    onclick: event => {
      getSelection().selectAllChildren(text);
      event.target.textContent = document.execCommand("copy") ? "copied" : "selected";
    },
  }, "copy"));
}
