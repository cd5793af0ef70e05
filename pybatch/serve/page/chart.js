// A small chart over time: lines with areas below them, axes, and a text that says the same.

import { make, makeSvg, setText } from "./elements.js";

const LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 20;  // pixels
const MINUTE = 60, GAP = 10;  // seconds; over a longer gap there is no line

/** The least of 1, 2, 4, 6 and 8 times a power of ten that is no less than a value: its half is a round number too. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999999);
}

export class Chart {
  /**
   * series: [{name, of(point), color}], where `of` may return null. format: a value as text. most: the fixed end of the
   * axis, or undefined; least: an end of the axis that is never less.
   */
  constructor(container, { title, series, format, most, least = 0, span }) {
    Object.assign(this, { title, series, format, most, least, span });
    this.figure = make("span", { class: "figure" }, "–");
    this.more = make("span", { class: "more soft" });
    const legend = make("span", { class: "legend", "aria-hidden": "true" });
    if (series.length > 1) {
      for (const { name, color } of series) legend.append(make("span", {}, make("i", { class: color }), name));
    }
    this.svg = makeSvg("svg", { role: "img", "aria-label": title });
    container.append(
      make(
        "figure",
        { class: "card" },
        make("figcaption", {}, make("h3", {}, title), legend, make("p", {}, this.figure, this.more)),
        this.svg,
      ),
    );
    this.points = [];
    this.now = 0;
    this.watch();
  }

  /** Draws again where the width changes, and shows the values under the pointer. */
  watch() {
    new ResizeObserver(() => this.draw(this.points, this.now)).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  point(x) {
    this.pointer = x;
    this.draw(this.points, this.now);
  }

  headline(figure, more) {
    setText(this.figure, figure);
    setText(this.more, more);
  }

  /** points: ascending by `time`, in seconds, of which those of the last `span` are shown. */
  draw(points, now) {
    Object.assign(this, { points, now });
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!width) return;
    const base = height - BOTTOM;
    const begin = now - this.span;
    const shown = points.filter((point) => point.time >= begin);
    const values = this.series.flatMap(({ of }) => shown.map(of)).filter((value) => value !== null);
    const peak = Math.max(0, ...values);
    const top = this.most ?? ceiling(Math.max(peak, this.least));
    const x = (at) => LEFT + ((at - begin) / this.span) * (width - LEFT - RIGHT);
    const y = (value) => base - (Math.min(value, top) / top) * (base - TOP);

    const parts = [];
    for (const value of [0, top / 2, top]) {
      parts.push(makeSvg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
      parts.push(text(this.format(value), LEFT - 6, y(value) + 4, "end"));
    }
    for (let at = 0; at <= this.span; at += MINUTE) {
      const place = x(now - at);
      parts.push(makeSvg("line", { class: "axis", x1: place, x2: place, y1: base, y2: base + 3 }));
    }
    parts.push(text(`${this.span / MINUTE} min ago`, LEFT, height - 4, "start"));
    parts.push(text("now", width - RIGHT, height - 4, "end"));
    this.series.forEach(({ of, color }, number) => {
      for (const run of runs(shown, of)) {
        const line = run.map((point) => `${x(point.time).toFixed(1)},${y(of(point)).toFixed(1)}`).join("L");
        if (number === 0) {
          const area = `M${x(run[0].time).toFixed(1)},${base}L${line}L${x(run.at(-1).time).toFixed(1)},${base}Z`;
          parts.push(makeSvg("path", { class: `area ${color}`, d: area }));
        }
        parts.push(makeSvg("path", { class: `line ${color}`, d: `M${line}${run.length === 1 ? "h.1" : ""}` }));
      }
    });
    if (this.pointer > LEFT && shown.length) parts.push(...this.values(shown, x, width, base));
    this.svg.replaceChildren(...parts);
    this.svg.setAttribute("aria-label", this.words(shown, peak));
  }

  /** A line through the point nearest to the pointer, and its values. */
  values(shown, x, width, base) {
    const distance = (point) => Math.abs(x(point.time) - this.pointer);
    const nearest = shown.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    const place = x(nearest.time);
    const words = this.series.filter(({ of }) => of(nearest) !== null)
      .map(({ name, of }) => (this.series.length > 1 ? `${name} ${this.format(of(nearest))}` : this.format(of(nearest))));
    const left = place > width / 2;
    const label = text(words.join("  "), place + (left ? -6 : 6), TOP + 10, left ? "end" : "start");
    label.setAttribute("class", "value");
    return [makeSvg("line", { class: "pointer", x1: place, x2: place, y1: TOP, y2: base }), label];
  }

  words(shown, peak) {
    const newest = this.series.map(({ name, of }) => {
      const value = shown.map(of).findLast((each) => each !== null);
      return `${name} ${value === undefined ? "not known" : this.format(value)}`;
    });
    return `${this.title} over the last ${this.span / MINUTE} minutes. Now: ${newest.join(", ")}. Highest: ${this.format(peak)}.`;
  }
}

/** The stretches of points whose value is known, without long gaps. */
function runs(points, of) {
  const found = [];
  let last = -Infinity;
  for (const point of points) {
    if (of(point) === null) continue;
    if (point.time - last > GAP) found.push([]);
    found.at(-1).push(point);
    last = point.time;
  }
  return found;
}

function text(content, x, y, anchor) {
  return makeSvg("text", { x, y, "text-anchor": anchor }, content);
}
