// The server's /stats: what it is and does, and points of the last minutes. Times are seconds, sizes bytes.

import { get } from "./client.js";
import { bytes, count, percent, short } from "./format.js";

export const SPAN = 300;  // seconds of points that are kept

export class Stats {
  points = [];

  /** Asks for what is new. Returns {now, server, points, newest, running, finished, meters}. */
  async load() {
    const since = this.points.at(-1)?.time ?? 0;
    const { now, server, series, machine, requests } = await get(`stats?since=${since}`);
    const names = Object.keys(series);
    for (let i = 0; i < series.time.length; i += 1) {
      const point = Object.fromEntries(names.map((name) => [name, series[name][i]]));
      if (point.time > since) this.points.push(point);
    }
    this.points = this.points.filter((point) => point.time > now - SPAN);
    const newest = this.points.at(-1) ?? {};
    return { now, server, points: this.points, newest, ...requests, meters: meters(machine, newest) };
  }
}

const rate = (value) => `${bytes(value)}/s`;

/** What the machine is busy with: {name, text, share}, where a share of null is of nothing. */
function meters(machine, newest) {
  const { memory_total: total, disks, gpus } = machine;
  const used = newest.memory_used ?? total - machine.memory_available;
  return [
    { name: "CPU", text: percent(newest.cpu), share: newest.cpu ?? 0 },
    { name: "Memory", text: `${bytes(used)} of ${bytes(total)}`, share: used / total },
    ...gpus.flatMap(ofGpu),
    ...Object.entries(disks).map(([path, { total, free }]) => (
      { name: `Disk of ${path}`, text: `${bytes(total - free)} of ${bytes(total)}`, share: 1 - free / total }
    )),
    {
      name: "This process",
      text: `${bytes(machine.process_memory)}, ${short(newest.process_cpu)} cores`,
      share: null,
    },
    { name: "Disk", text: `${rate(newest.disk_read)} read, ${rate(newest.disk_written)} written`, share: null },
    { name: "Network", text: `${rate(newest.network_received)} in, ${rate(newest.network_sent)} out`, share: null },
  ];
}

function ofGpu({ index, name, memory_total: total, memory_used: used, utilization, power, temperature }) {
  const facts = [percent(utilization)];
  if (power !== null) facts.push(`${count(power)} W`);
  if (temperature !== null) facts.push(`${count(temperature)} °C`);
  return [
    { name: `GPU ${index}, ${name}`, text: facts.join(", "), share: utilization ?? 0 },
    { name: `Memory of GPU ${index}`, text: `${bytes(used)} of ${bytes(total)}`, share: used === null ? 0 : used / total },
  ];
}
