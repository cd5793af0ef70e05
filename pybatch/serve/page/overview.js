// The charts: what the engine has done in the last minutes.

import { Chart } from "./chart.js";
import { find } from "./elements.js";
import { count, duration, percent, short } from "./format.js";
import { SPAN } from "./stats.js";

const series = (name, color, field) => ({ name, color, of: (point) => point[field] });

/** Of each chart what it shows, and the headline of the newest point. */
const CHARTS = [
  {
    title: "Batch",
    series: [series("running", "first", "running")],
    format: short,
    least: 4,
    headline: ({ running }, server) => [count(running), `of ${count(server.max_num_seqs)} sequences`],
  },
  {
    title: "KV cache",
    series: [series("used", "first", "kv_usage")],
    format: percent,
    most: 1,
    headline: ({ kv_usage: usage }, { kv_blocks: blocks }) => (
      [percent(usage), `${count(usage * blocks)} of ${count(blocks)} blocks`]
    ),
  },
  {
    title: "Queue",
    series: [series("waiting", "first", "waiting")],
    format: short,
    least: 4,
    headline: ({ waiting }) => [count(waiting), waiting === 1 ? "request waits" : "requests wait"],
  },
  {
    title: "Tokens per second",
    series: [series("output", "first", "output_tokens"), series("prompt", "second", "prompt_tokens")],
    format: (value) => `${short(value)}/s`,
    least: 10,
    headline: (newest) => [short(newest.output_tokens), `output, ${short(newest.prompt_tokens)} prompt`],
  },
  {
    title: "Time to first token",
    series: [series("p50", "first", "ttft_p50"), series("p99", "second", "ttft_p99")],
    format: duration,
    headline: (newest) => [duration(newest.ttft_p50), `p99 ${duration(newest.ttft_p99)}`],
  },
  {
    title: "Time per output token",
    series: [series("p50", "first", "tpot_p50"), series("p99", "second", "tpot_p99")],
    format: duration,
    headline: (newest) => [duration(newest.tpot_p50), `p99 ${duration(newest.tpot_p99)}`],
  },
];
const LATENCIES = ["ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99"];
const RECENT = 60;  // seconds for which a latency that was measured stays in the headline

/** Returns a function that shows the points and the newest of them. */
export function overview() {
  const container = find(".charts");
  const charts = CHARTS.map((options) => new Chart(container, { ...options, span: SPAN }));
  return ({ now, server, points, newest }) => {
    const recent = points.filter((point) => point.time > now - RECENT);
    const shown = { ...newest };
    for (const name of LATENCIES) shown[name] = recent.findLast((point) => point[name] !== null)?.[name];
    charts.forEach((chart, number) => {
      chart.headline(...CHARTS[number].headline(shown, server));
      chart.draw(points, now);
    });
  };
}
