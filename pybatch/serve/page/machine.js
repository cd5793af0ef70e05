// What the machine is busy with.

import { find, listIn, make, setText } from "./elements.js";

/** Returns a function that shows meters: {name, text, share}, where a share of null has no bar. */
export function machine() {
  return listIn(find("#machine dl"), ({ name }) => name, ({ name }) => {
    const value = make("span");
    const bar = make("progress", { max: 1, "aria-label": name });
    const node = make("div", {}, make("dt", {}, name), make("dd", {}, value, bar));
    const update = ({ text, share }) => {
      setText(value, text);
      bar.hidden = share === null;
      bar.value = share ?? 0;
    };
    return { node, update };
  });
}
