// Keeps the page as it is now: fills in what the server says has changed, counts seconds, and draws the charts.
"use strict";

const QUIET = 10_000;
const parts = new Map();
const filled = new WeakMap();
// By how much the database's clock is ahead of this one's, in milliseconds.
let ahead = document.body.dataset.now ? document.body.dataset.now * 1000 - Date.now() : 0;
let heardAt = Date.now();
let leader = null;

function words(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (!hours) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return days ? `${days} d ${hours % 24} h` : `${hours} h ${minutes % 60} min`;
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function count() {
  const now = (Date.now() + ahead) / 1000;
  for (const time of document.querySelectorAll("time.lasts")) set(time, words(now - time.dataset.lasts));
  for (const time of document.querySelectorAll("time.since")) set(time, `for ${words(now - time.dataset.since)}`);
  for (const time of document.querySelectorAll("time.until")) {
    const left = time.dataset.until - now;
    set(time, left > 0 ? `in ${words(left + 1)}` : left < -1 ? `due for ${words(-left)}` : "now");
  }
}

function fill() {
  const focused = document.activeElement?.id;
  for (const [id, html] of parts) {
    const element = document.getElementById(id);
    if (element && filled.get(element) !== html) {
      element.innerHTML = html;
      filled.set(element, html);
    }
  }
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
  count();
}

function show(kind, text) {
  document.getElementById("live").dataset.kind = kind;
  set(document.getElementById("live-words"), text);
}

function take(event) {
  heardAt = Date.now();
  const seen = JSON.parse(event.data);
  const { series, ...changed } = seen.parts;
  for (const [id, html] of Object.entries(changed)) parts.set(id, html);
  if (seen.now && !seen.away) ahead = seen.now * 1000 - Date.now();
  document.body.classList.toggle("away", seen.away);
  fill();
  if (leader !== null && seen.leader !== leader.name) {
    set(document.getElementById("spoken"), seen.leader ? `${seen.leader} leads now` : "nobody leads");
  }
  leader = { name: seen.leader };
  if (series) draw(series);
  show(seen.away ? "away" : "live", seen.away ? "Postgres is away" : "live");
}

function listen() {
  const events = new EventSource(`/events${location.search}`);
  events.onmessage = take;
  events.onerror = () => {
    show("lost", "connecting");
    // After an answer that is none, the browser does not try again.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
}

// The charts, with the table of each as what others read.
const charts = {};

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function seconds(value) {
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 60 ? `${+value.toFixed(1)} s` : `${+(value / 60).toFixed(1)} min`;
}

function options(element, series, scales, axes) {
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  return {
    width: element.clientWidth,
    height: 170,
    legend: { show: false },
    cursor: { y: false, points: { size: 6 } },
    scales: { x: { range: () => [(Date.now() + ahead) / 1000 - 3600, (Date.now() + ahead) / 1000] }, ...scales },
    axes: [{ ...axis, space: 70, incrs: [60, 300, 600, 900, 1200], values: (_, at) => at.map((t) => clock(t)) }, ...axes.map((one) => ({ ...axis, size: 58, ...one }))],
    series: [{}, ...series],
  };
}

function clock(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
}

// Of a logarithmic axis, those that are worth a line.
function decades(_, at) {
  return at.map((value) => (Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6 ? value : null));
}

function draw({ lateness, backlog }) {
  plot("lateness", lateness.length ? [lateness.map((row) => row[0]), lateness.map((row) => Math.max(0.001, row[3])), lateness.map((row) => Math.max(0.001, row[2]))] : null, (element) =>
    options(
      element,
      [
        { label: "worst", stroke: colour("--late"), width: 2, scale: "s", points: { show: false } },
        { label: "average", stroke: colour("--accent"), width: 2, scale: "s", points: { show: false } },
      ],
      { s: { distr: 3 } },
      [{ scale: "s", filter: decades, grid: { stroke: colour("--line"), width: 1, filter: decades }, values: (_, at) => at.map((value) => (value === null ? "" : seconds(value))) }],
    ));
  plot("backlog", backlog.length > 1 ? [backlog.map((row) => row[0]), backlog.map((row) => row[1]), backlog.map((row) => row[2])] : null, (element) =>
    options(
      element,
      [
        { label: "waiting", stroke: colour("--accent"), fill: colour("--accent-soft"), width: 2, scale: "n", points: { show: false } },
        { label: "the oldest for", stroke: colour("--late"), width: 2, scale: "s", points: { show: false } },
      ],
      { n: { range: (_, least, most) => [0, Math.max(5, most * 1.1)] }, s: { range: (_, least, most) => [0, Math.max(1, most * 1.1)] } },
      [{ scale: "n", size: 44 }, { scale: "s", side: 1, grid: { show: false }, values: (_, at) => at.map((value) => (value === null ? "" : seconds(value))) }],
    ));
}

function plot(name, data, make) {
  const element = document.getElementById(name);
  if (!data) {
    if (!charts[name]) element.textContent = name === "lateness" ? "No slot was published in the last hour." : "Drawn from when the dashboard was started.";
    return;
  }
  charts[name] ??= { chart: null, make };
  charts[name].data = data;
  if (charts[name].chart) {
    charts[name].chart.setData(data);
  } else {
    element.textContent = "";
    charts[name].chart = new uPlot(make(element), data, element);
  }
}

function redraw() {
  for (const [name, one] of Object.entries(charts)) {
    one.chart.destroy();
    one.chart = new uPlot(one.make(document.getElementById(name)), one.data, document.getElementById(name));
  }
}

let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(redraw, 150);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
setInterval(count, 250);
setInterval(() => {
  if (Date.now() - heardAt > QUIET) show("lost", "nothing heard");
}, 5000);
count();
listen();
