// What the front end's parts have in common. Every file in this folder is loaded by ComfyUI; this one registers nothing.

export const PACK = "Skipstone"

/** Is it one of our nodes? Takes a node, or the definition of one. */
export const ours = (node) => String(node?.comfyClass ?? node?.type ?? node?.name ?? "").startsWith(PACK)
