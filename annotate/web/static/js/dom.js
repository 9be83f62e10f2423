// Small help with building elements. Text goes in as text, never as markup.

/** An element with attributes, properties (class, text, data) and children. */
export function make(tag, { text, data = {}, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  Object.assign(node.dataset, data);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

export function button(text, onClick, attributes = {}) {
  const node = make("button", { type: "button", text, ...attributes });
  node.addEventListener("click", onClick);
  return node;
}
