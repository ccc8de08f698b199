// Nodes of earlier packs: ComfyUI's front end puts ours in their place when a person asks for it, and copies the values that it can. Here
// the others are converted, and those of older releases found: by the rules that the server tells (core/legacy_nodes.py), the same as it uses
// for prompts that come without a front end. The file is as it was until someone replaces a node.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { graphs, guarded, nodesOf, ours, wrong } from "./shared.js"

const [TITLE, GAP] = [30, 16] // pixels: of a node's title, which is above its place, and between two nodes
const DRAWN = 250 // ms
const known = {} // id of an old node -> {new, layouts, rules}
const mine = new Set() // ids of nodes that stand in for others

const loaded = async () => {
  const answer = await api.fetchApi("/node_replacements")
  for (const [old, [first]] of Object.entries(answer.ok ? await answer.json() : {})) {
    if (!first?.skipstone) continue
    known[old] = { new: first.new_node_id, ...first.skipstone }
    mine.add(first.new_node_id)
  }
}

/** The nodes that are missing and known, with what the file says of them. */
const missing = () =>
  graphs().flatMap((graph) =>
    nodesOf(graph)
      .filter((node) => known[node.last_serialization?.type] && !ours(node))
      .map((node) => ({ graph, id: node.id, saved: node.last_serialization })),
  )

/** What a file has of an old node's widgets, by their names: newer files name them. */
const named = ({ layouts }, { widgets_values: values, widgets_values_named: given }) => {
  if (given) return { ...given }
  if (!Array.isArray(values)) return {}
  const layout = layouts.find((one) => one.length === values.length) ?? layouts[0]
  return Object.fromEntries(layout.slice(0, values.length).map((name, i) => [name, values[i]]))
}

/** Our node's values from the old one's. As `Earlier.inputs` in core/legacy_nodes.py; links are not in `old`. */
const converted = ({ rules }, old) => {
  const found = {}
  for (const rule of rules) {
    const value = old[rule.old_id]
    if ("set_value" in rule) found[rule.new_id] = rule.set_value
    else if (!(rule.old_id in old)) continue
    else if ("less" in rule) found[rule.new_id] = Number((rule.less - value).toFixed(6))
    else if (!("values" in rule)) found[rule.new_id] = value
    else {
      const pair = rule.values.find(([one]) => one === value)
      if (pair || "otherwise" in rule) found[rule.new_id] = pair ? pair[1] : rule.otherwise
    }
  }
  return found
}

const adopt = (node, saved) => {
  const entry = known[saved.type]
  const old = named(entry, saved)
  for (const input of saved.inputs ?? []) if (input.link != null) delete old[input.widget?.name ?? input.name]
  for (const [name, value] of Object.entries(converted(entry, old))) {
    const widget = node.widgets?.find((w) => w.name === name)
    if (!widget) continue
    widget.value = value
    widget.callback?.(value)
  }
  // it is no longer of the pack that the file names
  for (const key of ["cnr_id", "aux_id", "ver"])
    if (saved.properties?.[key] === node.properties?.[key]) delete node.properties[key]
  const [width, height] = node.computeSize()
  node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])])
  const bottom = node.pos[1] + saved.size[1]
  makeRoom(node, bottom)
  node.setDirtyCanvas?.(true, true)
  // Vue nodes are measured once they are drawn
  setTimeout(() => guarded(() => node.graph && makeRoom(node, bottom)), DRAWN)
}

/** Ours has more widgets than the one before it, whose lower end was at `bottom`: what lies below goes down, so that nothing is covered. */
const makeRoom = (node, bottom) => {
  const [left, right] = [node.pos[0], node.pos[0] + node.size[0]]
  const below = nodesOf(node.graph).filter(
    (other) =>
      other !== node && other.pos[1] - TITLE >= bottom && other.pos[0] < right && other.pos[0] + other.size[0] > left,
  )
  const top = Math.min(...below.map((other) => other.pos[1] - TITLE))
  const lower = node.pos[1] + node.size[1] + GAP - top
  if (lower > 0) for (const other of below) other.pos = [other.pos[0], other.pos[1] + lower]
}

app.registerExtension({
  name: "Skipstone.Replacements",

  async setup() {
    await loaded().catch(wrong)
  },

  nodeCreated(node) {
    if (!mine.has(node.comfyClass)) return
    guarded(() => {
      const before = missing()
      if (!before.length) return
      // by then it has the place and the id of the node that it was made for, if it was
      queueMicrotask(() =>
        guarded(() => {
          const found = before.find((old) => old.graph === node.graph && old.id === node.id)
          if (found && known[found.saved.type].new === node.comfyClass) adopt(node, found.saved)
        }),
      )
    })
  },
})
