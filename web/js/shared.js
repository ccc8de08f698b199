// What the front end's parts have in common. Every file in this folder is loaded by ComfyUI; this one registers nothing.

export const PACK = "Skipstone"

/** Is it one of our nodes? Takes a node, or the definition of one. */
export const ours = (node) => String(node?.comfyClass ?? node?.type ?? node?.name ?? "").startsWith(PACK)

/** What went wrong is told in the console. */
export const wrong = (error) => console.error(`[${PACK}]`, error)

/** Do it; what goes wrong in it harms nobody else. */
export const guarded = (work) => {
  try {
    return work()
  } catch (error) {
    wrong(error)
  }
}

/** An element: `el("p", { className: "note" }, "text", child)`. Text stays text. Names with a dash are attributes. */
export const el = (tag, props = {}, ...children) => {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(props)) {
    if (name === "role" || name.includes("-")) made.setAttribute(name, value)
    else made[name] = value
  }
  made.append(...children.filter((child) => child !== null && child !== undefined))
  return made
}

/** Styles of one part, once a page. */
export const style = (id, text) => {
  if (!document.getElementById(id)) document.head.append(el("style", { id, textContent: text }))
}
