// Presets that move the widgets: choosing one shows its values, changing a value makes it Custom, and a widget without a meaning is hidden.
// Widgets that matter less, and with a preset all of its values, are folded away: Vue nodes have a button for them, the classic canvas gets
// one here. What a preset stands for and where a widget has a meaning comes with the node's definition (nodes/widgets.py), nothing of it is
// here. Only what is seen changes: the server takes a preset by its name, and hidden widgets keep their place in files and prompts.

import { app } from "../../../scripts/app.js"
import { guarded, ours } from "./shared.js"
import { t } from "./texts.js"

const UNFOLD = "skipstone_values" // the name of the button
const INPUT = 1 // LiteGraph.INPUT
let opening = false // a file in the API's format: its values are set one by one, with callbacks as if someone had typed them

const same = (a, b) => a === b || (typeof a === "number" && typeof b === "number" && Math.abs(a - b) < 1e-9)
const widgetOf = (node, name) => node.widgets?.find((w) => w.name === name)
const linked = (node, name) => {
  const slot = node.inputs?.findIndex((input) => input.widget?.name === name) ?? -1
  return slot >= 0 && node.isInputConnected(slot)
}
const vue = () => Boolean(window.LiteGraph?.vueNodesMode)
const dragged = () => Boolean(app.canvas?.linkConnector?.isConnecting)

/** Has someone made it higher than it has to be? */
const isLoose = (node) => node.size[1] - node.computeSize()[1] > 1

/** As high as it has to be; shrink: and no higher. Vue nodes see to their height themselves. */
const fit = (node, shrink) => {
  if (vue()) return
  const needed = node.computeSize()[1]
  if (needed > node.size[1] || (shrink && isLoose(node))) node.setSize([node.size[0], needed])
  node.setDirtyCanvas?.(true, true)
}

/** What the Python side says of a node's widgets: see `preset`, `shown` and `custom` in nodes/widgets.py. */
class Rules {
  constructor(definition) {
    this.inputs = { ...definition.input?.required, ...definition.input?.optional }
    this.told = Object.fromEntries(
      Object.entries(this.inputs).map(([name, [, options]]) => [name, options?.skipstone ?? {}]),
    )
    this.preset = Object.keys(this.told).find((name) => this.told[name].presets)
    this.minor = new Set(Object.keys(this.inputs).filter((name) => this.inputs[name][1]?.advanced))
    this.empty = !this.minor.size && Object.values(this.told).every((told) => !Object.keys(told).length)
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

  /** The values of a file that gives them by their names too: a place may be another's in another version. */
  restore(node, named) {
    for (const widget of node.widgets ?? []) {
      if (widget.name in this.inputs && Object.hasOwn(named, widget.name)) widget.value = named[widget.name]
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

  /** Is it folded away until someone asks for it? */
  folded(node, name) {
    const minor = this.told[name].custom ? Object.keys(this.values(node)).length > 0 : this.minor.has(name)
    return minor && !linked(node, name)
  }

  /** How many values are to be folded away. */
  away(node) {
    return Object.keys(this.told).filter((name) => this.folded(node, name) && this.meant(node, name)).length
  }

  /** Show, hide and fold. shrink: also make the node smaller, where it is only as high as it had to be. */
  arrange(node, shrink) {
    const loose = isLoose(node)
    const folding = !vue() && !node.showAdvanced
    for (const widget of node.widgets ?? []) {
      if (!(widget.name in this.told)) continue
      const meant = this.meant(node, widget.name)
      const folded = this.folded(node, widget.name)
      // The classic canvas reads the widget, Vue nodes its options, and those of the state that they keep: it may be an earlier widget's of
      // this name. Only Vue nodes know folded widgets.
      for (const options of [(widget.options ??= {}), widget._state?.options].filter(Boolean)) {
        options.hidden = !meant
        options.advanced = folded
      }
      widget.hidden = !meant || (folding && folded)
    }
    const button = widgetOf(node, UNFOLD)
    if (button) {
      button.label = t(node.showAdvanced ? "values.hide" : "values.show")
      button.hidden = !this.away(node)
    }
    fit(node, shrink && !loose)
  }

  /** A node of a file that has room for all of its values, and for no more, is as high as the rest needs. */
  tighten(node) {
    const button = widgetOf(node, UNFOLD)
    if (vue() || !button || button.hidden || node.showAdvanced) return
    const row = LiteGraph.NODE_WIDGET_HEIGHT + 4
    const spare = node.size[1] - node.computeSize()[1]
    // older files are from before the button
    if (Math.abs(spare - (this.away(node) - 0.5) * row) <= row / 2 + 1)
      node.setSize([node.size[0], node.computeSize()[1]])
  }

  /** The classic canvas' button for what is folded away. */
  equip(node) {
    const press = () => {
      const loose = isLoose(node)
      node.showAdvanced = !node.showAdvanced
      this.arrange(node, false)
      fit(node, !loose)
    }
    const button = node.addWidget("button", UNFOLD, "", () => guarded(press), { serialize: false, canvasOnly: true })
    button.serialize = false // in the file; the option is for the prompt
    // below the values, and above what shows the last run
    node.widgets.splice(node.widgets.indexOf(button), 1)
    node.widgets.splice(node.widgets.findLastIndex((widget) => widget.name in this.inputs) + 1, 0, button)
  }
}

/** How high a Vue node has to be: ComfyUI counts what is folded away too, and makes a node that it loads as high as that. */
function sized(prototype) {
  const compute = prototype.computeSize
  prototype.computeSize = function (...given) {
    const away = vue() && !this.showAdvanced ? (this.widgets ?? []).filter((w) => w.options?.advanced && !w.hidden) : []
    for (const widget of away) widget.hidden = true
    try {
      return compute.apply(this, given)
    } finally {
      for (const widget of away) widget.hidden = false
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

/** After the other way of drawing nodes was chosen. */
function arrangeAll() {
  for (const node of app.graph?.nodes ?? []) node.constructor.skipstone?.arrange(node, true)
}

/** After a file in the API's format: its presets are what counts. */
function settle(prompt) {
  for (const [id, saved] of Object.entries(prompt)) {
    const node = app.graph.getNodeById(id) ?? app.graph.getNodeById(Number(id))
    const rules = node?.constructor.skipstone
    if (!rules) continue
    rules.fill(node, (widget) => !(widget.name in (saved.inputs ?? {})))
    rules.write(node)
    rules.arrange(node, true)
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
      if (Object.keys(rules.told).some((name) => rules.told[name].custom || rules.minor.has(name))) rules.equip(node)
      rules.write(node)
      rules.arrange(node, true)
      if (vue()) node.setSize([node.size[0], node.computeSize()[1]])
    })

    after(nodeType.prototype, "onAdded", (node) => rules.arrange(node, false))

    // a file, a copy, an undo: the values are set without callbacks
    after(nodeType.prototype, "onConfigure", (node, saved) => {
      const { widgets_values: given, widgets_values_named: named } = saved ?? {}
      if (named) {
        rules.restore(node, named)
        rules.fill(node, (widget) => !Object.hasOwn(named, widget.name))
      } else if (Array.isArray(given)) {
        const kept = node.widgets?.filter((w) => w.serialize !== false) ?? []
        rules.fill(node, (widget) => kept.indexOf(widget) >= given.length)
      }
      rules.write(node)
      rules.arrange(node, false)
      rules.tighten(node)
    })

    after(nodeType.prototype, "onConnectionsChange", (node, side, slot, connected) => {
      const name = side === INPUT && node.inputs?.[slot]?.widget?.name
      if (!name || !(name in rules.told)) return
      if (connected && dragged()) rules.check(node, name)
      rules.arrange(node, dragged())
    })
  },

  setup() {
    app.ui?.settings?.addEventListener?.("Comfy.VueNodes.Enabled.change", () => setTimeout(() => guarded(arrangeAll)))
    const open = app.loadApiJson
    if (typeof open !== "function") return
    app.loadApiJson = function (prompt, ...rest) {
      const done = () => {
        opening = false
        guarded(() => settle(prompt))
      }
      opening = true
      let result
      try {
        result = open.call(this, prompt, ...rest)
      } catch (error) {
        done()
        throw error
      }
      if (typeof result?.then === "function") return result.finally(done) // newer front ends go on by themselves
      done()
      return result
    }
  },
})
