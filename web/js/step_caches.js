// Commands that put Step Cache (Auto) before every sampler of a workflow, and that take all step caches out, in subgraphs too. Both can be
// undone.

import { app } from "../../../scripts/app.js"
import { graphs, guarded, isMethod, nodesOf } from "./shared.js"
import { t } from "./texts.js"

const AUTO = "SkipstoneAuto"
const ADD = "Skipstone.AddStepCaches"
const REMOVE = "Skipstone.RemoveStepCaches"
const OTHERS = new Set(["EasyCache", "LazyCache"]) // ComfyUI's own step caches: two on one model are refused
const [TITLE, GAP] = [30, 20] // pixels: of a node's title, which is above its place, and between two nodes

const isModel = (slot) => slot?.type === "MODEL"
const isCache = (node) => isMethod(node) || OTHERS.has(node.comfyClass)

/** Does it sample with its MODEL, or guide a sampler with it? What does so in a subgraph is found there. */
const samples = (node) =>
  !node.subgraph &&
  !isCache(node) &&
  node.inputs?.some(isModel) &&
  node.outputs?.some(({ type }) => type === "GUIDER" || type === "LATENT")

/** Where a link begins: an output of a node, or an input of the subgraph. */
function sourceOf(graph, link) {
  if (graph.inputNode && `${link.origin_id}` === `${graph.inputNode.id}`)
    return { slot: graph.inputNode.slots[link.origin_slot] }
  const node = graph.getNodeById(link.origin_id)
  return { node, slot: node.outputs[link.origin_slot] }
}

/** An output of a node, or an input of a subgraph, goes to an input of a node. */
function join(graph, source, target, index) {
  if (source.node) return source.node.connectSlots(source.slot, target, target.inputs[index])
  const { connect } = source.slot
  return connect.call(source.slot, target.inputs[index], target)
}

/** The links that begin at an output of a node. */
const linksFrom = (graph, node, slot) =>
  [...graph.links.values()].filter((link) => `${link.origin_id}` === `${node.id}` && link.origin_slot === slot)

/** The link that ends at an input of a node. (`getInputLink` of a subgraph's node tells of one inside.) */
const linkInto = (graph, node, slot) =>
  [...graph.links.values()].find((link) => `${link.target_id}` === `${node.id}` && link.target_slot === slot)

/** The nodes of subgraphs that show this graph. */
const hosts = (graph) =>
  graphs()
    .flatMap(nodesOf)
    .filter((node) => node.subgraph === graph)

/** Is there a step cache on what comes over this link, on its way from the loader? */
function cached(graph, link, seen = new Set()) {
  if (!link || seen.has(link)) return false
  seen.add(link)
  const before = (node, index) => cached(node.graph, linkInto(node.graph, node, index), seen)
  const { node, slot } = sourceOf(graph, link)
  if (!node) {
    const index = graph.inputNode?.slots.indexOf(slot)
    return hosts(graph).some((host) => before(host, index))
  }
  if (isCache(node)) return true
  if (node.subgraph) {
    const inside = node.subgraph.outputNode.slots[link.origin_slot]
    const linked = (inside?.linkIds ?? []).map((id) => node.subgraph.links.get(id))
    return linked.some((one) => cached(node.subgraph, one, seen))
  }
  return (node.inputs ?? []).some((input, index) => isModel(input) && before(node, index))
}

/** A place above a node where nothing lies. */
function place(node, beside) {
  const [left, right] = [beside.pos[0], beside.pos[0] + node.size[0]]
  let bottom = beside.pos[1] - TITLE - GAP
  const over = (other) =>
    other !== node &&
    other.pos[0] < right + GAP &&
    other.pos[0] + other.size[0] > left - GAP &&
    other.pos[1] - TITLE < bottom + GAP &&
    other.pos[1] + other.size[1] > bottom - node.size[1] - TITLE - GAP
  for (let other = nodesOf(beside.graph).find(over); other; other = nodesOf(beside.graph).find(over)) {
    bottom = other.pos[1] - TITLE - GAP
  }
  node.pos = [left, bottom - node.size[1]]
}

/** Before every sampler of one graph: samplers that take the same MODEL share a node. How many were put in, and how many have one. */
function addTo(graph, begin) {
  const made = new Map() // id of the link's origin, and its slot -> our node
  const found = { added: 0, there: 0 }
  const samplers = [...nodesOf(graph)].filter(samples)
  for (const node of samplers) {
    for (const [index, input] of node.inputs.entries()) {
      const link = isModel(input) ? linkInto(graph, node, index) : null
      if (!link) continue
      const key = `${link.origin_id}/${link.origin_slot}`
      if (!made.has(key)) {
        if (cached(graph, link)) {
          found.there++
          continue
        }
        begin()
        const cache = LiteGraph.createNode(AUTO)
        graph.add(cache)
        place(cache, node)
        join(graph, sourceOf(graph, link), cache, cache.inputs.findIndex(isModel))
        made.set(key, cache)
        found.added++
      }
      const cache = made.get(key)
      join(graph, { node: cache, slot: cache.outputs.find(isModel) }, node, index)
    }
  }
  return found
}

/** Our step caches out of one graph; what came into one goes where its output went. How many they were. */
function removeFrom(graph, begin) {
  const caches = [...nodesOf(graph)].filter(isMethod)
  for (const node of caches) {
    begin()
    const link = linkInto(graph, node, node.inputs.findIndex(isModel))
    const source = link && sourceOf(graph, link)
    const targets = linksFrom(graph, node, node.outputs.findIndex(isModel))
    if (source) {
      for (const { target_id, target_slot } of targets) {
        const target = graph.getNodeById(target_id)
        if (target) join(graph, source, target, target_slot)
        else if (source.node) {
          const output = graph.outputNode.slots[target_slot]
          const { connect } = output
          connect.call(output, source.slot, source.node)
        }
      }
    }
    graph.remove(node)
  }
  return caches.length
}

function say(severity, ...texts) {
  app.extensionManager?.toast?.add({
    severity,
    summary: t("caches.title"),
    detail: texts.filter(Boolean).join(" "),
    life: 6000,
  })
}

/** Keep the workflow as it is now, for undo. */
function capture() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
  ;(tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker)
}

/** Work on every graph, as one step that can be undone. `work(graph, begin)` calls begin before it changes anything. */
function everywhere(work) {
  let begun = false
  const begin = () => {
    if (!begun) capture() // what was changed before is not undone with it
    begun = true
  }
  const results = graphs().map((graph) => work(graph, begin))
  if (begun) capture()
  app.canvas?.setDirty(true, true)
  return results
}

function add() {
  const found = everywhere(addTo)
  const added = found.reduce((sum, one) => sum + one.added, 0)
  if (!added) return say("info", t(found.some((one) => one.there) ? "caches.already" : "caches.noSampler"))
  const inside = added - found[0].added // the first graph is the root
  say("success", t("caches.added", { count: added }), inside ? t("caches.inside", { count: inside }) : "")
}

function remove() {
  const count = everywhere(removeFrom).reduce((sum, one) => sum + one, 0)
  say(count ? "success" : "info", t(count ? "caches.removed" : "caches.noCache", { count }))
}

const COMMANDS = [
  { id: ADD, icon: "pi pi-forward", function: () => guarded(add) },
  { id: REMOVE, icon: "pi pi-times", function: () => guarded(remove) },
]

app.registerExtension({
  name: "Skipstone.StepCaches",
  commands: COMMANDS.map((command) => ({ ...command, label: t(["commands", command.id]) })),
  menuCommands: [{ path: ["Extensions", "Skipstone"], commands: [ADD, REMOVE] }],

  getCanvasMenuItems() {
    const items = COMMANDS.map((command) => ({ content: t(["commands", command.id]), callback: command.function }))
    return [null, ...items]
  },
})
