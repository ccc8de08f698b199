// The timeline on a method's node: what its last runs computed and skipped. Told over the websocket as they go, and by the server's journal
// to a page that is loaded anew. Nothing of it is saved in the workflow.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import * as words from "./report.js"
import { el, find, graphs, guarded, isMethod, nodesOf, workflow } from "./shared.js"
import { t } from "./texts.js"

const WIDGET = "skipstone_timeline"
const HEIGHT = 110 // px, always: a run moves nothing
const MARGIN = 10
const KEPT = 256 // runs
const ENDS = ["execution_success", "execution_error", "execution_interrupted"]

const MARKS = { wait: "\u231b\ufe0e", warn: "!", learned: "\u2713" } // and an i
// The nodes that can be told to compute the first run with a model in full, with the widget and the value that say so
const CALIBRATES = { SkipstoneAuto: ["first_run", "calibrate"], SkipstoneMeanCache: ["calibration", "calibrate"] }

const runs = new Map() // number -> message of the server's, see nodes/reporting.py
const views = new WeakMap() // node -> View

const span = (className, ...children) => el("span", { className }, ...children)

const key = (className) => el("i", { className })

/** A node's runs in the last prompt in which it had any, oldest first. */
function runsOf(node) {
  const all = [...runs.values()].filter((run) => run.workflow === workflow() && find(run.node) === node)
  all.sort((a, b) => a.run - b.run)
  return all.filter((run) => run.prompt === all.at(-1).prompt)
}

class View {
  constructor(node) {
    this.node = node
    this.chosen = null // number of the run that was asked for, of `prompt`
    this.step = null // that is looked at
    this.build()
    this.show()
  }

  build() {
    this.count = span("count")
    this.gain = span("gain")
    this.earlier = this.button("\u2039", t("timeline.earlier"), -1)
    this.number = span("number")
    this.later = this.button("\u203a", t("timeline.later"), 1)
    this.pager = span("pager", this.earlier, this.number, this.later)
    this.chart = el("div", { className: "skipstone-chart", role: "img", tabIndex: 0 })
    this.say = el("div", { className: "skipstone-say" })
    this.element = el(
      "div",
      { className: "skipstone-timeline", role: "group", "aria-label": t("timeline.label") },
      el("div", { className: "skipstone-head" }, this.count, this.gain, this.pager),
      this.chart,
      this.say,
    )
    Object.assign(this.element.style, { height: `${HEIGHT}px`, minHeight: `${HEIGHT}px`, maxHeight: `${HEIGHT}px` })

    this.chart.addEventListener("pointermove", (e) => this.look(this.stepAt(e.clientX)))
    this.chart.addEventListener("pointerleave", () => this.look(null))
    this.chart.addEventListener("blur", () => this.look(null))
    this.chart.addEventListener("keydown", (e) => this.key(e))
    // the classic canvas lies under the element: what is meant for it is handed on
    this.element.addEventListener("wheel", (e) => this.classic() && app.canvas.processMouseWheel?.(e), {
      passive: false,
    })
    this.element.addEventListener("pointerdown", (e) => {
      if (e.button === 1 && this.classic()) app.canvas.processMouseDown?.(e)
    })
  }

  classic() {
    return !globalThis.LiteGraph?.vueNodesMode
  }

  button(text, label, by) {
    const button = el("button", { type: "button", "aria-label": label }, text)
    button.addEventListener("click", () => {
      const all = this.all
      this.chosen = all[all.indexOf(this.run) + by]?.run ?? null
      this.show()
    })
    return button
  }

  /** What is known of the node's runs. */
  show() {
    this.all = runsOf(this.node)
    this.run = this.all.find((run) => run.run === this.chosen) ?? this.all.at(-1) ?? null
    const { run } = this
    this.count.textContent = run ? words.headline(run) : t("timeline.none")
    const gain = run ? words.gain(run) : []
    this.gain.replaceChildren(...gain.map((part, i) => span(i ? "saved" : "", part)))
    this.gain.title = gain.join("")
    this.page()
    this.draw()
    this.chart.setAttribute("aria-label", run ? words.sentences(run) : `${t("timeline.none")}. ${this.empty}`)
    if (run) this.chart.setAttribute("aria-description", t("timeline.keys"))
    this.look(run && this.step < run.report.steps ? this.step : null)
  }

  /** What a node says before its first run. */
  get empty() {
    const [name, value] = CALIBRATES[this.node.comfyClass] ?? []
    const calibrates = name && this.node.widgets?.find((widget) => widget.name === name)?.value === value
    return t(calibrates ? "timeline.emptyCalibrates" : "timeline.empty")
  }

  page() {
    const { all, run } = this
    this.pager.hidden = all.length < 2
    this.element.classList.toggle("paged", !this.pager.hidden)
    if (this.pager.hidden) return
    const at = all.indexOf(run)
    const sampler = find(run.sampler)?.title
    this.number.textContent = `${at + 1}/${all.length}`
    const by = sampler ? [t("timeline.by", { sampler, id: run.sampler })] : []
    this.number.title = [t("timeline.run", { number: at + 1, count: all.length }), ...by].join(", ")
    this.earlier.disabled = at === 0
    this.later.disabled = at === all.length - 1
  }

  draw() {
    const report = this.run?.report
    const steps = report ? words.bySteps(report) : Array.from({ length: 20 }, () => [])
    const planned = new Set(report?.planned)
    const cells = el("div", { className: "skipstone-cells" })
    cells.classList.toggle("many", steps.length > 60)
    cells.classList.toggle("crowd", steps.length > 160)
    steps.forEach((here, step) => {
      const computed = report && (!planned.size || report.learning || planned.has(step))
      cells.append(words.cell(here, computed, !here.length))
    })
    const line = report && words.line(steps)
    this.chart.replaceChildren(...(line ? [line] : []), cells)
    this.cells = cells
  }

  stepAt(x) {
    if (!this.run) return null
    const { left, width } = this.cells.getBoundingClientRect()
    const count = this.cells.children.length
    return Math.min(Math.max(Math.floor(((x - left) / (width || 1)) * count), 0), count - 1)
  }

  key(event) {
    if (!this.run) return
    const last = this.cells.children.length - 1
    const now = this.step
    const to = { ArrowRight: (now ?? -1) + 1, ArrowLeft: (now ?? last + 1) - 1, Home: 0, End: last, Escape: null }[
      event.key
    ]
    if (to === undefined) return
    event.preventDefault()
    event.stopPropagation() // the canvas would move the node
    this.say.setAttribute("aria-live", "polite")
    this.look(to === null ? null : Math.min(Math.max(to, 0), last))
  }

  /** Tell of a step; of the whole run: null. */
  look(step) {
    this.step = step
    for (const [i, cell] of [...this.cells.children].entries()) cell.classList.toggle("chosen", i === step)
    if (step === null) this.say.removeAttribute("aria-live")
    this.say.classList.toggle("told", step !== null)
    if (!this.run) return this.say.replaceChildren(this.empty)
    if (step !== null) {
      this.say.title = ""
      return this.say.replaceChildren(words.detail(this.run, step))
    }
    this.say.title = words.remarks(this.run).join("\n")
    const tone = words.tone(this.run)
    const said = words.message(this.run)
    if (said.length) {
      const mark = el("span", { className: `mark ${tone}`, "aria-hidden": "true" }, MARKS[tone] ?? "i")
      return this.say.replaceChildren(mark, said.join(t("list.stop")))
    }
    const { computed, skipped } = this.run.report
    const counts = [t("timeline.computedCount", { count: computed }), t("timeline.skippedCount", { count: skipped })]
    const by = span("by", words.settings(this.run))
    this.say.replaceChildren(key("key"), counts[0], key("key skipped"), counts[1], by)
  }
}

function equip(node) {
  if (!node.addDOMWidget || views.has(node)) return
  const view = new View(node)
  const height = HEIGHT + 2 * MARGIN
  const widget = node.addDOMWidget(WIDGET, "skipstone.timeline", view.element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // at the side there are values to set
    margin: MARGIN,
    getMinHeight: () => height,
    getMaxHeight: () => height,
    onDraw: () => view.element.classList.toggle("off", node.mode === 2 || node.mode === 4),
  })
  widget.serialize = false // in the file; the option above is for the prompt
  // as high as ComfyUI makes it when its file is opened: an undo would else find it changed, and lose what can be done again
  node.expandToFitContent?.()
  views.set(node, view)
}

function keep(run) {
  const known = runs.get(run.run)
  if (known && known.prompt === run.prompt && (!known.running || known.report.evaluations > run.report.evaluations))
    return
  runs.set(run.run, run)
  if (runs.size > KEPT) runs.delete(Math.min(...runs.keys()))
}

function showAll() {
  for (const node of graphs().flatMap(nodesOf)) views.get(node)?.show()
}

/** What a prompt came to on nodes that are not in sight, inside subgraphs: told in a corner, once, when it is done. */
const unseen = new Map() // number of a run -> the run

function note(run) {
  const node = find(run.node)
  if (!node || run.running) return
  if (node.graph && node.graph !== app.canvas?.graph) unseen.set(run.run, run)
}

const line = (run) => [words.headline(run), words.gain(run).join("")].filter(Boolean).join(", ")

function tellUnseen() {
  const told = [...unseen.values()].toSorted((a, b) => a.run - b.run)
  unseen.clear()
  if (!told.length) return
  const lines = told.map((run) => `${find(run.node)?.title ?? words.title(run)}: ${line(run)}`)
  app.extensionManager?.toast?.add({
    severity: "info",
    summary: t("caches.title"),
    detail: lines.join("\n"),
    life: 8000,
  })
}

async function fetched() {
  showAll()
  const id = workflow()
  if (
    !id ||
    !graphs()
      .flatMap(nodesOf)
      .some((node) => views.has(node))
  )
    return
  try {
    const answer = await api.fetchApi(`/skipstone/reports?workflow=${encodeURIComponent(id)}`)
    if (!answer.ok) return
    for (const run of await answer.json()) keep(run)
    showAll()
  } catch (error) {
    console.debug("Skipstone: the last runs could not be asked for", error)
  }
}

app.registerExtension({
  name: "Skipstone.Timeline",

  nodeCreated(node) {
    if (isMethod(node)) equip(node)
  },

  afterConfigureGraph() {
    fetched()
  },

  setup() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./timeline.css", import.meta.url).href }))
    api.addEventListener("skipstone.report", ({ detail: run }) => {
      keep(run)
      if (run.workflow !== workflow()) return
      views.get(find(run.node))?.show()
      guarded(() => note(run))
    })
    for (const end of ENDS) api.addEventListener(end, () => guarded(tellUnseen))
    api.addEventListener("reconnected", () => {
      runs.clear() // a server that was started anew counts its runs anew
      fetched()
    })
  },
})
