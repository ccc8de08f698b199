// Preset Table: the image without a step cache beside that of a preset, with a slider, and a table to choose the preset in. The images
// are ComfyUI's temporary files; nothing is saved in the workflow.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { el, guarded } from "./shared.js"
import { t, translated } from "./texts.js"

const TABLE = "SkipstonePresetTable"
const [WIDTH, HEIGHT] = [480, 620] // pixels, of a new node
const LEAST = 300 // px, of the widget
const STEP = 5 // percent that an arrow key moves the slider
const BEGIN = "Balanced"

const address = ({ filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)

/** The row's cells: preset, steps, speed-up, PSNR in dB, SSIM. */
const cells = ({ preset, computed, evaluations, speedup, psnr, ssim }) => [
  preset,
  t("compare.of", { computed, evaluations }),
  `${speedup.toFixed(1)}x`,
  psnr >= 150 ? t("compare.identical") : `${psnr.toFixed(1)} dB`,
  ssim,
]

/** Into the clipboard, also on a page that is not served over HTTPS. */
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text)
  const area = el("textarea", { value: text })
  document.body.append(area)
  area.select()
  document.execCommand("copy")
  area.remove()
}

class Comparison {
  constructor() {
    this.element = el("div", { className: "skipstone-compare" })
    this.empty(t("compare.empty"))
    this.element.addEventListener("wheel", (e) => !LiteGraph.vueNodesMode && app.canvas.processMouseWheel?.(e), {
      passive: false,
    })
  }

  empty(text) {
    this.element.replaceChildren(el("div", { className: "empty" }, text))
  }

  /** What the server says of a run: rows of the presets, the image without a step cache, a row of a Markdown table. */
  show(rows, reference, markdown) {
    this.rows = rows
    this.left = el("img", { className: "left", alt: t("compare.without"), src: address(reference), draggable: false })
    this.right = el("img", { alt: "", draggable: false })
    this.second = el("span", { className: "name second" })
    const first = el("span", { className: "name first" }, t("compare.without"))
    const handle = el("i", { className: "handle" })
    this.view = el(
      "div",
      { className: "view", role: "slider", tabIndex: 0, "aria-valuemin": 0, "aria-valuemax": 100 },
      this.right,
      this.left,
      handle,
      first,
      this.second,
    )
    this.view.addEventListener("pointermove", (e) => {
      const { left, width } = this.view.getBoundingClientRect()
      this.move((100 * (e.clientX - left)) / (width || 1))
    })
    this.view.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: -STEP, ArrowRight: STEP }[e.key]
      if (!by) return
      e.preventDefault()
      e.stopPropagation()
      this.move(this.at + by)
    })
    const head = ["preset", "computed", "speedup", "psnr", "ssim"].map((name) => el("th", {}, t(`compare.${name}`)))
    this.lines = rows.map((row, i) => {
      const line = el("tr", { tabIndex: 0 }, ...cells(row).map((text) => el("td", {}, text)))
      line.addEventListener("click", () => this.choose(i))
      line.addEventListener("keydown", (e) => {
        if (e.key !== "Enter" && e.key !== " ") return
        e.preventDefault()
        this.choose(i)
      })
      return line
    })
    const button = el("button", { type: "button" }, t("compare.copy"))
    button.addEventListener("click", async () => {
      await copied(markdown)
      button.textContent = t("compare.copied")
    })
    this.element.replaceChildren(
      this.view,
      el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...this.lines)),
      el("div", { className: "foot" }, el("span", {}, t("compare.scale")), button),
    )
    this.move(50)
    const chosen = rows.findIndex(({ preset }) => preset === (this.chosen ?? BEGIN))
    this.choose(Math.max(chosen, 0))
  }

  move(percent) {
    this.at = Math.min(Math.max(percent, 0), 100)
    this.view.style.setProperty("--at", `${this.at}%`)
    this.view.setAttribute("aria-valuenow", String(Math.round(this.at)))
  }

  choose(index) {
    const { preset, image } = this.rows[index]
    this.chosen = preset
    this.right.src = address(image)
    this.right.alt = this.second.textContent = preset
    this.view.setAttribute("aria-label", t("compare.slider", { preset }))
    for (const [i, line] of this.lines.entries()) line.setAttribute("aria-selected", String(i === index))
  }
}

function equip(node) {
  if (!node.addDOMWidget) return
  const comparison = new Comparison()
  const widget = node.addDOMWidget("skipstone_compare", "skipstone.compare", comparison.element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getMinHeight: () => LEAST,
  })
  widget.serialize = false // in the file; the option above is for the prompt
  node.setSize([Math.max(WIDTH, node.size[0]), Math.max(HEIGHT, node.size[1])]) // a file's own size comes later
  const executed = node.onExecuted
  node.onExecuted = function (output) {
    executed?.call(this, output)
    guarded(() => {
      const { skipstone_presets: rows, skipstone_reference: reference, skipstone_row: row } = output ?? {}
      const { skipstone_text: told, text } = output ?? {} // the sentence with its key and values; the same in English
      if (rows?.length && reference?.length) comparison.show(rows, reference[0], row[0])
      else if (told?.length) comparison.empty(translated(told[0]))
      else if (text) comparison.empty([text].flat().join("\n"))
    })
  }
}

app.registerExtension({
  name: "Skipstone.Compare",

  setup() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./compare.css", import.meta.url).href }))
  },

  nodeCreated(node) {
    if (node.comfyClass === TABLE) guarded(() => equip(node))
  },
})
