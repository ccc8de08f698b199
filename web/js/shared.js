// What the front end's parts have in common. Every file in this folder is loaded by ComfyUI; this one registers nothing.

import { app } from "../../../scripts/app.js"

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

const root = () => app.rootGraph ?? app.graph

/** The workflow's id, which goes with its prompts. */
export const workflow = () => String(root()?.id ?? "")

/** The node of an id in the prompt: "12:5" is node 5 of the subgraph of node 12. */
export function find(id) {
  let graph = root()
  let node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(part)
    graph = node?.subgraph
  }
  return node ?? null
}

/** Every graph of the workflow: the root and its subgraphs, each once. */
export function graphs() {
  const found = []
  const add = (graph) => {
    if (!graph || found.includes(graph)) return
    found.push(graph)
    for (const node of nodesOf(graph)) add(node.subgraph)
  }
  add(root())
  return found
}

export const nodesOf = (graph) => graph.nodes ?? graph._nodes ?? []

/** Is it the node of a method? They give a MODEL, and say which node they are. */
export const isMethod = (node) => {
  const definition = ours(node) ? node.constructor.nodeData : null
  return Boolean(definition?.output?.includes("MODEL") && "unique_id" in (definition.input?.hidden ?? {}))
}
