// Plots: plotly.js is unpacked when the first is drawn; each follows light and dark, and saves.

const CONFIG = {
  responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false,
};
const FONT = { family: "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif", size: 11 };
const PAPER = { "--rim": "rgba(0,0,0,0)", "--ink": "#1d2329", "--quiet": "#5d6770", "--line": "#dfe3e7", "--paper": "#ffffff" };
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map();
let plotly = null;

// Plots read < and & in names as markup; escaped, names stay text.
const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function loaded() {
  plotly ??= unpacked("plotly").then(text => {
    document.head.append(element("script", {}, text));
    return window.Plotly;
  });
  return plotly;
}

// The figure in the colours of the page, or of paper; typed arrays are not copied.
function dressed(figure, onPaper = false) {
  const style = getComputedStyle(document.documentElement);
  const colour = name => (onPaper ? PAPER[name] : style.getPropertyValue(name).trim());
  const put = value => {
    if (typeof value === "string") {
      return value.startsWith("var(--") ? colour(value.slice(4, -1)) || value : value;
    }
    if (Array.isArray(value)) return value.map(put);
    if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, put(inner)]));
  };
  const layout = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", ...figure.layout };
  if (onPaper) layout.paper_bgcolor = colour("--paper");
  layout.font = { ...FONT, color: colour("--ink"), ...figure.layout?.font };
  layout.hoverlabel = { bgcolor: colour("--paper"), bordercolor: colour("--line"), font: { color: colour("--ink") } };
  return { data: put(figure.data), layout: put(layout) };
}

function titleOf(place) {
  return place.closest("figure")?.querySelector("figcaption")?.firstChild?.textContent ?? "figure";
}

async function savePicture(place, format) {
  const Plotly = await loaded();
  const figure = dressed(drawn.get(place).figure(), true);
  const { width, height } = place.getBoundingClientRect();
  const caption = plain(titleOf(place));
  figure.layout = { ...figure.layout, width: Math.round(width), height: Math.round(height) + 26, autosize: false };
  figure.layout.margin = { ...figure.layout.margin, t: (figure.layout.margin?.t ?? 10) + 26 };
  figure.layout.title = { text: caption, font: { size: 13 }, x: 0.02, xanchor: "left", y: 0.98, yanchor: "top" };
  const address = await Plotly.toImage(figure, { format, scale: format === "png" ? 3 : 1 });
  save(fileName(titleOf(place), format), address);
}

function rowsOfFigure({ data }) {
  const rows = [["series", "x", "y", "z", "text"]];
  for (const trace of data) {
    const name = trace.name ?? "";
    if (trace.z) {
      trace.z.forEach((line, i) => Array.from(line).forEach((z, j) => {
        rows.push([name, trace.x?.[j] ?? j, trace.y?.[i] ?? i, z, trace.text?.[i]?.[j] ?? ""]);
      }));
    } else {
      const length = Math.max(trace.x?.length ?? 0, trace.y?.length ?? 0);
      for (let i = 0; i < length; i += 1) {
        rows.push([name, trace.x?.[i] ?? i, trace.y?.[i] ?? i, null, Array.isArray(trace.text) ? trace.text[i] : ""]);
      }
    }
  }
  return rows;
}

function offerToSave(place) {
  const csv = () => (drawn.get(place).rows ?? (() => rowsOfFigure(drawn.get(place).figure())))();
  const button = (name, onclick) => element("button", { type: "button", onclick }, name);
  place.closest("figure")?.querySelector("figcaption")?.append(element("span", { class: "tools" },
    button("PNG", () => savePicture(place, "png")),
    button("SVG", () => savePicture(place, "svg")),
    button("CSV", () => save(fileName(titleOf(place), "csv"), csvOf(csv()), "text/csv"))));
}

async function draw(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  const Plotly = await loaded();
  if (place.classList.contains("map")) {
    drawn.set(place, await drawMaps(place, Plotly));
  } else {
    const figure = page.figures[place.id];
    drawn.set(place, { figure: () => figure });
    const { data, layout } = dressed(figure);
    await Plotly.newPlot(place, data, layout, CONFIG);
  }
  offerToSave(place);
}

async function redress() {
  const Plotly = await loaded();
  for (const [place, one] of drawn) {
    const { data, layout } = dressed(one.figure());
    await Plotly.react(place, data, layout, one.config ?? CONFIG);
  }
}

async function drawIn(root) {
  equipIn(root);
  for (const place of root.querySelectorAll(".plot")) {
    if (!place.closest("details:not([open])")) await draw(place);
  }
}

// Pictures that are no plots are saved as PNG.
function offerPicture(image) {
  const figure = element("button", {
    type: "button",
    onclick: () => {
      const canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight });
      canvas.getContext("2d").drawImage(image, 0, 0);
      save(fileName(image.alt, "png"), canvas.toDataURL("image/png"));
    },
  }, "PNG");
  image.after(element("span", { class: "tools" }, figure));
}

async function start() {
  Object.assign(page, JSON.parse(await unpacked("data")));
  document.querySelectorAll("img.swap").forEach(offerPicture);
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => drawIn(details).catch(fail));
  }
  await drawIn(document);
  dark.addEventListener("change", () => { if (drawn.size) redress().catch(fail); });
  document.body.dataset.drawn = "yes";
}

addEventListener("DOMContentLoaded", () => start().catch(fail));
