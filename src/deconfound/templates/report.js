"use strict";

const PALETTE = ["#4269d0", "#efb118", "#e8503f", "#3ca951", "#a463f2", "#17a2b8", "#ff8ab7", "#9c6b4e",
  "#6c7a89", "#97bbf5", "#b59b00", "#7f1d1d", "#0b7a4b", "#5b2a86", "#0d5c75", "#d1478c", "#4d3319", "#b7c4a3"];
const LEGEND_MOST = PALETTE.length;
const HELD_OUT = ["test", "new"];
const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["pan2d", "zoom2d", "resetScale2d", "toImage"]] };
const FONT = { family: "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif", size: 11, color: "#1d2329" };

const page = JSON.parse(document.getElementById("data").textContent);
const cell = document.getElementById("cell");
const sheets = page.sheets.map(sheet => {
  const image = new Image();
  image.src = sheet.source;
  return { ...sheet, image };
});

// Plots read < and & in names as markup; escaped, names stay text.
const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function colourOf(code, count) {
  return count <= LEGEND_MOST ? PALETTE[code] : `hsl(${(code * 137.508) % 360},${55 + 15 * (code % 3)}%,${42 + 8 * (code % 4)}%)`;
}

function tracesOf(points, by) {
  const groups = points[by];
  const held = groups.codes.map((_, i) => HELD_OUT.includes(points.part.names[points.part.codes[i]]));
  const trace = (code, out) => {
    const members = groups.codes.flatMap((c, i) => (c === code && held[i] === out ? [i] : []));
    const name = groups.names[code];
    return {
      type: "scatter",
      mode: "markers",
      name: name === "" ? "(none)" : plain(name),
      legendgroup: `${code}`,
      legendrank: code,
      x: members.map(i => points.x[i]),
      y: members.map(i => points.y[i]),
      customdata: members,
      hoverinfo: "none",
      marker: {
        size: out ? 6.5 : 4.5,
        symbol: out ? "diamond" : "circle",
        color: name === "" ? "#b4b9be" : colourOf(code, groups.names.length),
        opacity: 0.75,
        line: { width: out ? 0.7 : 0, color: "#1d2329" },
      },
    };
  };
  const codes = groups.names.map((_, code) => code);
  const inside = codes.map(code => trace(code, false));
  const outside = codes.map(code => ({ ...trace(code, true), showlegend: inside[code].x.length === 0 }));
  return [...inside, ...outside].filter(one => one.x.length > 0);
}

function mapLayout(groups) {
  const axis = { visible: false };
  return {
    height: 430,
    margin: { l: 4, r: 4, t: 4, b: 4 },
    hovermode: "closest",
    dragmode: "pan",
    xaxis: axis,
    yaxis: { ...axis, scaleanchor: "x" },
    showlegend: groups.names.length <= LEGEND_MOST,
    legend: { itemsizing: "constant", font: { size: 11 }, orientation: "h", y: -0.02, yanchor: "top" },
  };
}

function describe(points, i) {
  const value = group => points[group].names[points[group].codes[i]];
  const lines = [`label: ${value("label") || "none"}`, `environment: ${value("environment") || "none"}`];
  if (value("predicted")) lines.push(`predicted: ${value("predicted")}`);
  lines.push(`${value("part")}, row ${points.row[i]}`);
  return lines.join("\n");
}

function showCell(points, i, event) {
  const canvas = cell.querySelector("canvas");
  const tile = points.sheet === null ? -1 : points.tile[i];
  canvas.hidden = tile < 0;
  if (tile >= 0) {
    const { image, side, columns } = sheets[points.sheet];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, (tile % columns) * side, Math.floor(tile / columns) * side, side, side,
      0, 0, canvas.width, canvas.height);
  }
  cell.querySelector("p").textContent = describe(points, i);
  cell.hidden = false;
  const { width, height } = cell.getBoundingClientRect();
  cell.style.left = `${Math.max(4, Math.min(event.clientX + 16, innerWidth - width - 4))}px`;
  cell.style.top = `${Math.max(4, Math.min(event.clientY + 16, innerHeight - height - 4))}px`;
}

function drawMap(place) {
  const points = page.maps[Number(place.dataset.map)];
  const by = place.dataset.by;
  return Plotly.newPlot(place, tracesOf(points, by), { font: FONT, ...mapLayout(points[by]) }, CONFIG).then(() => {
    place.on("plotly_hover", found => showCell(points, found.points[0].customdata, found.event));
    place.on("plotly_unhover", () => { cell.hidden = true; });
  });
}

function drawFigure(place) {
  const { data, layout } = page.figures[place.id];
  return Plotly.newPlot(place, data, { font: FONT, ...layout }, { ...CONFIG, displayModeBar: false });
}

function draw(place) {
  if (place.dataset.drawn) return Promise.resolve();
  place.dataset.drawn = "yes";
  return place.classList.contains("map") ? drawMap(place) : drawFigure(place);
}

function drawIn(root) {
  return Promise.all(Array.from(root.querySelectorAll(".plot"), place => (place.closest("details:not([open])") ? null : draw(place))));
}

function fail(problem) {
  const failure = document.getElementById("failure");
  failure.textContent = `Part of this page could not be drawn: ${problem}`;
  failure.hidden = false;
}

addEventListener("error", event => fail(event.message));
addEventListener("unhandledrejection", event => fail(event.reason));
for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => drawIn(details));
}
drawIn(document).then(() => { document.body.dataset.drawn = "yes"; });
