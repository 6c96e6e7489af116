// Shorthands for the DOM.

export const get = (id) => document.getElementById(id)

/** Create an element with properties and children; strings become text nodes and are never parsed as HTML. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children)
  return made
}
