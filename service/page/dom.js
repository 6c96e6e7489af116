// The document, in as few words as it takes.

export const get = (id) => document.getElementById(id)

/** A new element with properties and children; text is only ever text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children)
  return made
}
