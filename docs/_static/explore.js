// Draws error against time of measured sizes, and moves a mark as the reader moves codebooks and rank.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 640, HEIGHT = 380, LEFT = 62, RIGHT = 14, TOP = 14, BOTTOM = 48;
const byId = (id) => document.getElementById(id);

function element(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Powers of `base` that lie within [low, high], and the two around them.
function ticks(low, high, base) {
  const first = Math.floor(Math.log(low) / Math.log(base)), last = Math.ceil(Math.log(high) / Math.log(base));
  return Array.from({ length: last - first + 1 }, (_, i) => base ** (first + i));
}

function scales(layer) {
  const points = Object.values(layer.figures).filter(([nmse]) => nmse > 0);
  const speeds = ticks(Math.min(1, ...points.map(([, time]) => 1 / time)), Math.max(...points.map(([, time]) => 1 / time)), 2);
  const errors = ticks(Math.max(1e-6, Math.min(...points.map(([nmse]) => nmse))), 1, 10);
  const place = (value, all, from, to) =>
    from + ((to - from) * Math.log(value / all[0])) / Math.log(all[all.length - 1] / all[0]);
  return {
    speeds, errors,
    x: (time) => place(1 / time, speeds, LEFT, WIDTH - RIGHT),
    y: (nmse) => place(Math.min(1, Math.max(nmse, errors[0])), errors, HEIGHT - BOTTOM, TOP),
  };
}

function drawAxes(plot, { speeds, errors, x, y }) {
  for (const speed of speeds) {
    plot.append(element("line", { x1: x(1 / speed), x2: x(1 / speed), y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" }));
    plot.append(element("text", { x: x(1 / speed), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, `${speed}x`));
  }
  for (const error of errors) {
    plot.append(element("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(error), y2: y(error), class: "grid" }));
    plot.append(element("text", { x: LEFT - 8, y: y(error) + 5, "text-anchor": "end" }, error < 0.001 ? error.toExponential(0) : String(Number(error.toPrecision(1)))));
  }
  plot.append(element("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, "times as fast as XLA float32"));
  plot.append(element("text", { x: 14, y: HEIGHT / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${HEIGHT / 2})` }, "NMSE"));
}

function draw(layer, chosen) {
  const plot = byId("explore-plot"), scale = scales(layer);
  plot.replaceChildren();
  drawAxes(plot, scale);
  const named = { "XLA f32": "", "XLA int8": "XLA int8", int8: "our int8" };
  for (const [name, [nmse, time]] of Object.entries(layer.figures)) {
    if (name === "XLA f32") continue;
    const kind = name in named ? "whole" : "size";
    const point = element("circle", { cx: scale.x(time), cy: scale.y(nmse), r: kind === "whole" ? 5 : 3.5, class: kind });
    const title = named[name] || `${name.replace(", ", " codebooks, rank ")}`;
    point.append(element("title", {}, `${title}: NMSE ${nmse}, ${(1 / time).toFixed(2)}x`));
    plot.append(point);
    if (kind === "whole") plot.append(element("text", { x: scale.x(time) + 8, y: scale.y(nmse) + 5 }, named[name]));
  }
  const figure = layer.figures[chosen];
  if (figure) plot.append(element("circle", { cx: scale.x(figure[1]), cy: scale.y(figure[0]), r: 8, class: "chosen" }));
}

function words(layer, codebooks, rank) {
  const figure = layer.figures[`${codebooks}, ${rank}`];
  if (!figure) return codebooks + rank ? "Not measured: the rank exceeds the features or outputs." : "Nothing would be computed. Move a slider.";
  const [nmse, time] = figure;
  const speed = time <= 1 ? `${(1 / time).toFixed(1)} times as fast as` : `slower than (${(1 / time).toFixed(2)}x)`;
  return `NMSE ${nmse}, ${speed} XLA float32: ${(layer.exact_ms * time).toPrecision(3)} instead of ${layer.exact_ms} ms.`;
}

function start(data) {
  const select = byId("explore-layer"), c = byId("explore-c"), r = byId("explore-r");
  data.layers.forEach((layer, i) => select.append(new Option(
    `${layer.domain}: ${layer.name} (${layer.rows} rows, ${layer.features} → ${layer.outputs})`, i)));
  c.max = data.codebooks.length - 1;
  r.max = data.ranks.length - 1;
  c.value = r.value = 3;
  const update = () => {
    const layer = data.layers[select.value], codebooks = data.codebooks[c.value], rank = data.ranks[r.value];
    byId("explore-c-value").textContent = codebooks;
    byId("explore-r-value").textContent = rank;
    byId("explore-words").textContent = words(layer, codebooks, rank);
    draw(layer, `${codebooks}, ${rank}`);
  };
  for (const input of [select, c, r]) input.addEventListener("input", update);
  byId("explore-facts").textContent =
    `Measured with python -m benchmarks.explore: one thread of ${data.cpu}, jax ${data.jax}, ${data.date}.`;
  update();
}

fetch(byId("explore").dataset.source).then((answer) => answer.json()).then(start).catch((error) => {
  byId("explore-words").textContent = `The measurements could not be loaded: ${error}. The page must be served, not opened as a file.`;
});
