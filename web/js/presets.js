// Presets that move the widgets: choosing one shows its values, changing a value makes it Custom, and a widget without a meaning is hidden.
// What a preset stands for and where a widget has a meaning comes with the node's definition (nodes/widgets.py), nothing of it is here.
// Only what is seen changes: the server takes a preset by its name, and hidden widgets keep their place in files and prompts.

import { app } from "../../../scripts/app.js"
import { guarded, ours } from "./shared.js"

const INPUT = 1 // LiteGraph.INPUT
let opening = false // a file in the API's format: its values are set one by one, with callbacks as if someone had typed them

const same = (a, b) => a === b || (typeof a === "number" && typeof b === "number" && Math.abs(a - b) < 1e-9)
const widgetOf = (node, name) => node.widgets?.find((w) => w.name === name)
const linked = (node, name) => Boolean(node.inputs?.some((i) => i.widget?.name === name && i.link != null))
const vue = () => Boolean(window.LiteGraph?.vueNodesMode)
const dragged = () => Boolean(app.canvas?.linkConnector?.isConnecting)

/** What the Python side says of a node's widgets: see `preset`, `shown` and `custom` in nodes/widgets.py. */
class Rules {
  constructor(definition) {
    this.inputs = { ...definition.input?.required, ...definition.input?.optional }
    this.told = Object.fromEntries(
      Object.entries(this.inputs).map(([name, [, options]]) => [name, options?.skipstone ?? {}]),
    )
    this.preset = Object.keys(this.told).find((name) => this.told[name].presets)
    this.empty = Object.values(this.told).every((told) => !Object.keys(told).length)
  }

  /** The values that the chosen preset stands for; none with Custom, and where the preset comes over a link. */
  values(node) {
    if (!this.preset || linked(node, this.preset)) return {}
    return this.told[this.preset].presets[widgetOf(node, this.preset)?.value] ?? {}
  }

  write(node) {
    for (const [name, value] of Object.entries(this.values(node))) {
      const widget = widgetOf(node, name)
      if (widget && !same(widget.value, value)) widget.value = value
    }
  }

  /** A value was changed by someone: is it still the preset's? */
  check(node, name) {
    const values = this.values(node)
    if (!(name in values)) return
    if (linked(node, name) || !same(widgetOf(node, name)?.value, values[name])) {
      widgetOf(node, this.preset).value = this.told[this.preset].otherwise
    }
  }

  /** What a file of an older version says nothing of is what it was then, and not what the preset of a new node has put there. */
  fill(node, missing) {
    for (const widget of node.widgets ?? []) {
      const [type, options] = this.inputs[widget.name] ?? []
      const initial = options?.default ?? (Array.isArray(type) ? type[0] : undefined)
      if (initial !== undefined && missing(widget)) widget.value = initial
    }
  }

  /** Has it a meaning beside what the others say? Of one that comes over a link nothing is known. */
  meant(node, name) {
    const where = Object.entries(this.told[name].shown ?? {})
    return (
      linked(node, name) ||
      where.every(([other, values]) => linked(node, other) || values.some((v) => same(v, widgetOf(node, other)?.value)))
    )
  }

  /** Show and hide. shrink: also make the node smaller, where it is only as high as it had to be. Vue nodes see to their height. */
  arrange(node, shrink) {
    const height = node.computeSize()[1]
    const loose = node.size[1] - height > 1
    const folded = Object.keys(this.values(node)).length > 0
    for (const widget of node.widgets ?? []) {
      const told = this.told[widget.name]
      if (!told) continue
      // The classic canvas reads `hidden`, Vue nodes the options, and those of the state that they keep: it may be an earlier widget's
      // of this name. The classic canvas shows the advanced ones too.
      const options = [(widget.options ??= {}), widget._state?.options].filter(Boolean)
      if (told.shown) for (const seen of [widget, ...options]) seen.hidden = !this.meant(node, widget.name)
      if (told.custom) for (const seen of options) seen.advanced = folded
    }
    const needed = node.computeSize()[1]
    if (needed === height || vue()) return
    if (needed > node.size[1] || (shrink && !loose)) node.setSize([node.size[0], needed])
    node.setDirtyCanvas?.(true, true)
  }
}

/** How high a Vue node has to be: ComfyUI counts what is folded away too, and makes a node that it loads as high as that. */
function sized(prototype) {
  const compute = prototype.computeSize
  prototype.computeSize = function (...given) {
    const folded =
      vue() && !this.showAdvanced ? (this.widgets ?? []).filter((w) => w.options?.advanced && !w.hidden) : []
    for (const widget of folded) widget.hidden = true
    try {
      return compute.apply(this, given)
    } finally {
      for (const widget of folded) widget.hidden = false
    }
  }
}

/** `then` after what `target[name]` does. Nothing that goes wrong in it harms the page. */
const after = (target, name, then) => {
  const before = target[name]
  target[name] = function (...given) {
    const result = before?.apply(this, given)
    guarded(() => then(this, ...given))
    return result
  }
}

app.registerExtension({
  name: "Skipstone.Presets",

  beforeRegisterNodeDef(nodeType, definition) {
    if (!ours(definition)) return
    const rules = new Rules(definition)
    if (rules.empty) return
    nodeType.skipstone = rules
    sized(nodeType.prototype)

    after(nodeType.prototype, "onNodeCreated", (node) => {
      for (const widget of node.widgets ?? []) {
        if (!(widget.name in rules.told)) continue
        after(widget, "callback", () => {
          if (opening) return
          if (widget.name === rules.preset) rules.write(node)
          else if (!linked(node, widget.name)) rules.check(node, widget.name)
          rules.arrange(node, true)
        })
      }
      rules.write(node)
      rules.arrange(node, true)
      if (vue()) node.setSize([node.size[0], node.computeSize()[1]])
    })

    after(nodeType.prototype, "onAdded", (node) => rules.arrange(node, false))

    // a file, a copy, an undo: the values are set without callbacks
    after(nodeType.prototype, "onConfigure", (node, saved) => {
      const given = saved?.widgets_values
      if (Array.isArray(given)) {
        const kept = node.widgets?.filter((w) => w.serialize !== false) ?? []
        rules.fill(node, (widget) => kept.indexOf(widget) >= given.length)
      }
      rules.write(node)
      rules.arrange(node, false)
    })

    after(nodeType.prototype, "onConnectionsChange", (node, side, slot, connected) => {
      const name = side === INPUT && node.inputs?.[slot]?.widget?.name
      if (!name || !(name in rules.told)) return
      if (connected && dragged()) rules.check(node, name)
      rules.arrange(node, dragged())
    })
  },

  setup() {
    const open = app.loadApiJson
    if (typeof open !== "function") return
    app.loadApiJson = function (prompt, ...rest) {
      opening = true
      try {
        return open.call(this, prompt, ...rest)
      } finally {
        opening = false
        guarded(() => {
          for (const [id, saved] of Object.entries(prompt)) {
            const node = app.graph.getNodeById(id) ?? app.graph.getNodeById(Number(id))
            const rules = node?.constructor.skipstone
            if (!rules) continue
            rules.fill(node, (widget) => !(widget.name in (saved.inputs ?? {})))
            rules.write(node)
            rules.arrange(node, true)
          }
        })
      }
    }
  },
})
