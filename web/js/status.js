// The line of text on nodes that tell what they are doing: Compile Model+ and those of the encode cache. It comes with the first message
// (patch/comfy_server.py, show_text), stays after the run, and is not saved in the workflow.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { el, find, guarded, workflow } from "./shared.js"
import { capital, translated } from "./texts.js"

const WIDGET = "skipstone_status"
const [HEIGHT, MARGIN] = [60, 10] // px: three lines of text
const lines = new WeakMap() // node -> element

function lineOf(node) {
  if (lines.has(node)) return lines.get(node)
  const element = el("div", { className: "skipstone-status", role: "status" })
  const height = HEIGHT + 2 * MARGIN
  const widget = node.addDOMWidget(WIDGET, "skipstone.status", element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    margin: MARGIN,
    getMinHeight: () => height,
    getMaxHeight: () => height,
  })
  widget.serialize = false // in the file; the option above is for the prompt
  node.expandToFitContent?.()
  lines.set(node, element)
  return element
}

function show({ workflow: id, node: place, ...told }) {
  const node = id === workflow() ? find(place) : null
  if (!node?.addDOMWidget) return
  const line = lineOf(node)
  const text = told.key ? capital(translated(told)) : told.text
  line.replaceChildren(el("span", {}, text))
  line.title = text
}

app.registerExtension({
  name: "Skipstone.Status",

  setup() {
    api.addEventListener("skipstone.status", ({ detail }) => guarded(() => show(detail)))
  },
})
