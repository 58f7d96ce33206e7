// Maps: all methods side by side in one plot, one colour for all, one selection for all.

const BINS = 24;
const SIDE = 330;
const [FAINT, STRONG] = [0.12, 0.85];
const MOST_DRAWN_AS_SVG = 12_000;
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const cell = document.getElementById("cell");

async function mapOf(points) {
  const scaled = async text => Float32Array.from(await numbersOf(text, Uint16Array), value => value / points.steps);
  const row = await numbersOf(page.arrays[points.row], Uint32Array); // steps from row to row
  for (let i = 1; i < row.length; i += 1) row[i] += row[i - 1];
  return {
    ...points,
    x: (await scaled(points.x)).map(value => value * points.aspect),
    y: await scaled(points.y),
    row,
    held: await numbersOf(page.arrays[points.held], Uint8Array),
    tile: points.sheet === null ? null : await numbersOf(page.arrays[points.tile], Uint16Array),
  };
}

async function columnOf(entry) {
  if (entry.values) {
    const values = await numbersOf(entry.values, Float32Array);
    const finite = values.filter(Number.isFinite).sort();
    const [low, high] = [0.01, 0.99].map(share => finite[Math.round(share * (finite.length - 1))]);
    const span = high - low || 1;
    const bins = Uint8Array.from(values, value => (Number.isFinite(value)
      ? Math.min(BINS - 1, Math.max(0, Math.floor(((value - low) / span) * BINS))) : BINS));
    return { values, bins, low, high, count: BINS, at: i => (Number.isFinite(values[i]) ? String(Number(values[i].toPrecision(4))) : "–") };
  }
  const codes = await numbersOf(entry.codes, entry.wide ? Uint16Array : Uint8Array);
  return { names: entry.names, codes, at: i => entry.names[codes[i]] ?? "–" };
}

function viridis(share) {
  const at = share * (VIRIDIS.length - 1);
  const [a, b] = [Math.floor(at), Math.ceil(at)].map(i => [1, 3, 5].map(k => parseInt(VIRIDIS[i].slice(k, k + 2), 16)));
  return `rgb(${a.map((value, k) => Math.round(value + (b[k] - value) * (at % 1))).join(",")})`;
}

// Colours of the values of a column over all maps: the most frequent groups have their own.
function paletteOf(name, maps) {
  const columns = maps.map(map => (name in map.columns ? page.read[map.columns[name]] : null));
  if (columns.some(column => column?.values)) {
    const colours = Array.from({ length: BINS }, (_, i) => viridis(i / (BINS - 1)));
    const numeric = columns.filter(column => column?.values);
    return { columns, colours, low: Math.min(...numeric.map(c => c.low)), high: Math.max(...numeric.map(c => c.high)), numeric: true };
  }
  const counts = new Map();
  columns.forEach(column => column?.codes.forEach(code => {
    if (code < column.names.length) counts.set(column.names[code], (counts.get(column.names[code]) ?? 0) + 1);
  }));
  const { few, many } = page.colours;
  const most = counts.size <= few.length ? few : many;
  const ranked = Array.from(counts.keys()).sort((a, b) => counts.get(b) - counts.get(a)).slice(0, most.length);
  const own = ranked.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  const names = Array.from(counts.keys()).sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  return { columns, counts, names, place: new Map(own.map((one, i) => [one, i])), colours: most.slice(0, own.length), numeric: false };
}

// Cells by screen and row, which all maps of a screen share.
class Selection {
  constructor() {
    this.rows = new Map();
  }

  add(map, i) {
    if (!this.rows.has(map.screen)) this.rows.set(map.screen, new Set());
    this.rows.get(map.screen).add(map.row[i]);
  }

  has(map, i) {
    return this.rows.get(map.screen)?.has(map.row[i]) ?? false;
  }

  get size() {
    return Array.from(this.rows.values()).reduce((sum, rows) => sum + rows.size, 0);
  }
}

async function drawMaps(place, Plotly) {
  const webgl = page.webgl && Boolean(document.createElement("canvas").getContext("webgl"));
  const maps = await Promise.all(page.maps.map(mapOf));
  page.read = await Promise.all(page.columns.map(columnOf));
  const total = maps.reduce((sum, map) => sum + map.count, 0);
  const every = webgl ? 1 : Math.ceil(total / MOST_DRAWN_AS_SVG);
  const config = { ...CONFIG, doubleClick: "reset" };
  const state = { column: null, palette: null, selected: null };
  const chooser = document.getElementById("map-colour");
  const legend = document.getElementById("map-legend");
  const said = document.getElementById("map-selected");
  const dragging = document.getElementById("map-drag");
  if (matchMedia("(pointer: coarse)").matches) dragging.value = ""; // a finger scrolls the page
  const clear = document.getElementById("map-clear");

  const names = [];
  for (const map of maps) {
    for (const name of Object.keys(map.columns)) if (!names.includes(name)) names.push(name);
  }
  chooser.append(...names.map(name => element("option", { value: name }, name)));
  state.column = names[0];

  // Points by colour; those that are not selected are one faint group beneath the others.
  function tracesOf(map, number) {
    const column = state.palette.columns[number];
    const { colours, place: own } = state.palette;
    const colourOf = column?.names?.map(name => own.get(name) ?? colours.length);
    const groups = new Map();
    for (let i = 0; i < map.count; i += every) {
      const out = state.selected !== null && !state.selected.has(map, i);
      let colour = colours.length;
      if (column?.values && column.bins[i] < BINS) colour = column.bins[i];
      else if (column?.names) colour = colourOf[column.codes[i]] ?? colour;
      const key = out ? -1 : 2 * colour + map.held[i];
      let group = groups.get(key);
      if (!group) groups.set(key, group = { out, held: map.held[i] && !out, colour: colours[colour] ?? page.colours.other, members: [] });
      group.members.push(i);
    }
    const axis = number ? number + 1 : "";
    return Array.from(groups.values()).sort((a, b) => b.out - a.out || a.held - b.held).map(group => ({
      type: webgl ? "scattergl" : "scatter",
      mode: "markers",
      xaxis: `x${axis}`,
      yaxis: `y${axis}`,
      x: Float32Array.from(group.members, i => map.x[i]),
      y: Float32Array.from(group.members, i => map.y[i]),
      customdata: Int32Array.from(group.members),
      meta: number,
      hoverinfo: "none",
      selected: { marker: { opacity: group.out ? FAINT : STRONG } },
      unselected: { marker: { opacity: group.out ? FAINT : STRONG } },
      marker: {
        size: (group.held ? 7 : 5) * (total > 50_000 ? 0.6 : 1),
        symbol: group.held ? "diamond" : "circle",
        color: group.out ? page.colours.other : group.colour,
        opacity: group.out ? FAINT : STRONG,
        line: total > 50_000 ? { width: 0 } : { width: group.held ? 0.8 : 0.4, color: group.held ? "var(--ink)" : "var(--rim)" },
      },
    }));
  }

  function layoutOf() {
    const width = place.clientWidth || 600;
    const across = Math.max(1, Math.min(maps.length, Math.floor(width / 280)));
    const down = Math.ceil(maps.length / across);
    const side = Math.min(SIDE * 1.6, width / across);
    const height = down * (side + 22);
    const layout = {
      height, margin: { l: 2, r: 2, t: 2, b: 2 }, hovermode: "closest", dragmode: dragging.value || false,
      showlegend: false, uirevision: "maps", annotations: [],
    };
    maps.forEach((map, i) => {
      const axis = i ? i + 1 : "";
      const [row, column] = [Math.floor(i / across), i % across];
      const gap = 6 / width;
      const top = 1 - row / down;
      const shown = { visible: true, showticklabels: false, showgrid: false, zeroline: false, ticks: "", showline: true, mirror: true, linecolor: "var(--line)" };
      layout[`xaxis${axis}`] = { ...shown, domain: [column / across + gap, (column + 1) / across - gap], anchor: `y${axis}`, constrain: "range" };
      layout[`yaxis${axis}`] = { ...shown, domain: [1 - (row + 1) / down + 4 / height, top - 22 / height], anchor: `x${axis}`, scaleanchor: `x${axis}`, constrain: "range" };
      layout.annotations.push({
        text: plain(map.title.length > 44 ? `${map.title.slice(0, 43)}…` : map.title), showarrow: false, xref: "paper", yref: "paper",
        x: column / across + gap, y: top, xanchor: "left", yanchor: "top", font: { size: 12 },
      });
    });
    return layout;
  }

  const figure = () => ({ data: maps.flatMap(tracesOf), layout: layoutOf() });

  async function refresh() {
    const { data, layout } = dressed(figure());
    await Plotly.react(place, data, layout, config);
    clear.disabled = state.selected === null;
    said.textContent = state.selected === null ? "" : `${state.selected.size.toLocaleString("en")} cells selected`;
  }

  async function select(cells) {
    state.selected = cells;
    await Plotly.relayout(place, { selections: [] });
    await refresh();
    drawLegend();
  }

  function membersOf(name) {
    const found = new Selection();
    maps.forEach((map, number) => {
      const column = state.palette.columns[number];
      const code = column?.names?.indexOf(name) ?? -1;
      for (let i = 0; code >= 0 && i < map.count; i += 1) if (column.codes[i] === code) found.add(map, i);
    });
    return found;
  }

  function drawLegend() {
    const { palette } = state;
    const find = document.getElementById("map-find");
    find.closest("label").hidden = palette.numeric;
    if (palette.numeric) {
      const ends = [palette.low, palette.high].map(value => element("span", {}, String(Number(value.toPrecision(3)))));
      legend.replaceChildren(element("div", { class: "ramp", title: "from the 1st to the 99th percentile" }, ends[0], element("i"), ends[1]));
      legend.querySelector("i").style.background = `linear-gradient(90deg, ${palette.colours.join(",")})`;
      return;
    }
    const wanted = find.value.trim().toLowerCase();
    const names = palette.names.filter(name => name.toLowerCase().includes(wanted));
    legend.replaceChildren(...names.slice(0, 300).map(name => {
      const mark = element("i");
      mark.style.background = palette.colours[palette.place.get(name)] ?? page.colours.other;
      return element("button", {
        type: "button", title: `${palette.counts.get(name).toLocaleString("en")} points`,
        "aria-pressed": String(state.named === name),
        onclick: () => {
          state.named = state.named === name ? null : name;
          select(state.named === null ? null : membersOf(name)).catch(fail);
        },
      }, mark, name);
    }));
    if (names.length > palette.colours.length) {
      legend.append(element("p", { class: "note" }, `${palette.colours.length} largest in colour, the others grey; press a name to see it`));
    }
  }

  async function colourBy(name) {
    state.column = name;
    state.named = null;
    state.palette = paletteOf(name, maps);
    await refresh();
    drawLegend();
  }

  function describe(map, i) {
    const first = ["Label", "Predicted label", "Environment", "Part of the fold", state.column];
    return Array.from(new Set(first)).filter(name => name in map.columns)
      .map(name => `${name}: ${page.read[map.columns[name]].at(i)}`).concat(`row ${map.row[i]}`).join("\n");
  }

  function showCell(found) {
    const point = found.points[0];
    const map = maps[point.data.meta];
    const i = point.customdata;
    const canvas = cell.querySelector("canvas");
    const tile = map.tile === null ? 0 : map.tile[i];
    canvas.hidden = tile === 0;
    if (tile > 0) {
      const { image, side, columns } = sheets[map.sheet];
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(image, ((tile - 1) % columns) * side, Math.floor((tile - 1) / columns) * side, side, side, 0, 0, canvas.width, canvas.height);
    }
    cell.querySelector("p").textContent = describe(map, i);
    cell.hidden = false;
    const { width, height } = cell.getBoundingClientRect();
    const { clientX, clientY } = found.event.touches?.[0] ?? found.event.changedTouches?.[0] ?? found.event;
    cell.style.left = `${Math.max(4, Math.min(clientX + 16, innerWidth - width - 4))}px`;
    cell.style.top = `${Math.max(4, Math.min(clientY + 16, innerHeight - height - 4))}px`;
  }

  function rows() {
    const titles = names;
    const found = [["map", "row", "x", "y", "held out", "selected", ...titles]];
    for (const map of maps) {
      for (let i = 0; i < map.count; i += 1) {
        found.push([map.title, map.row[i], map.x[i], map.y[i], map.held[i], state.selected === null || state.selected.has(map, i) ? 1 : 0,
          ...titles.map(name => (name in map.columns ? page.read[map.columns[name]].at(i) : ""))]);
      }
    }
    return found;
  }

  const sheets = page.sheets.map(sheet => {
    const image = new Image();
    image.src = sheet.source;
    return { ...sheet, image };
  });
  await colourBy(state.column);
  let pinned = false;
  place.on("plotly_hover", found => { pinned = false; showCell(found); });
  place.on("plotly_unhover", () => { if (!pinned) cell.hidden = true; });
  place.on("plotly_click", found => { pinned = true; showCell(found); });
  place.on("plotly_selected", found => {
    if (!found?.points?.length) return;
    state.named = null;
    const cells = new Selection();
    for (const point of found.points) cells.add(maps[point.data.meta], point.customdata);
    select(cells).catch(fail);
  });
  dragging.addEventListener("change", () => Plotly.relayout(place, { dragmode: dragging.value || false }).catch(fail));
  addEventListener("scroll", () => { cell.hidden = true; }, { passive: true });
  chooser.addEventListener("change", () => colourBy(chooser.value).catch(fail));
  document.getElementById("map-find").addEventListener("input", drawLegend);
  clear.addEventListener("click", () => { state.named = null; select(null).catch(fail); });
  let across = place.clientWidth;
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (Math.abs(place.clientWidth - across) > 40) { across = place.clientWidth; refresh().catch(fail); }
  })).observe(place);
  return { figure, rows, config };
}
