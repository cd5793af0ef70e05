// Elements, made without markup: every text is a text node.

const SVG = "http://www.w3.org/2000/svg";

export const find = (selector, within = document) => within.querySelector(selector);

/** An element with attributes and children; true: an attribute without a value, false: none. */
export function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function makeSvg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Sets a text only if it is another one, so that selections and screen readers are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Keeps a container's children to a list of items. create(item) returns {node, update(item)}. The node of an item that
 * stays is kept, with the focus in it.
 */
export function listIn(container, keyOf, create) {
  let parts = new Map();
  return (items) => {
    const kept = new Map();
    let before = null;
    for (const item of items) {
      const key = keyOf(item);
      const part = parts.get(key) ?? create(item);
      part.update(item);
      const place = before ? before.nextSibling : container.firstChild;
      if (part.node !== place) container.insertBefore(part.node, place);
      before = part.node;
      kept.set(key, part);
    }
    for (const [key, part] of parts) if (!kept.has(key)) part.node.remove();
    parts = kept;
  };
}

/** A table whose columns are {title, value(item), className}; returns a function that shows items. */
export function tableIn(section, keyOf, columns, nothing) {
  const cell = (name, { className }, ...children) => make(name, { class: className ?? false }, ...children);
  const titles = columns.map((column) => cell("th", column, column.title));
  titles.forEach((title) => title.setAttribute("scope", "col"));
  find("thead", section).replaceChildren(make("tr", {}, ...titles));
  const show = listIn(find("tbody", section), keyOf, () => {
    const cells = columns.map((column) => cell("td", column));
    const update = (item) => columns.forEach((column, i) => setText(cells[i], column.value(item)));
    return { node: make("tr", {}, ...cells), update };
  });
  return (items) => {
    show(items);
    showEmpty(section, items.length ? "" : nothing);
  };
}

/** Shows a text in the place of a table without rows. */
export function showEmpty(section, text) {
  find("table", section).hidden = Boolean(text);
  const empty = find(".empty", section);
  empty.hidden = !text;
  setText(empty, text);
}
