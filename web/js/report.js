// A run's report (core/step/report/report.py, Report.as_dict) in words, and as a strip of cells. Knows nothing of ComfyUI.

import { el } from "./shared.js"

const REASONS = {
  // reason: [why it was computed, why it was skipped]
  warmup: ["the first steps are always computed"],
  "last step": ["the last step is always computed"],
  schedule: ["on the schedule", "not on the schedule"],
  threshold: ["the threshold was reached", "below the threshold"],
  ratio: ["the threshold was reached", "below the threshold"],
  interval: ["on the interval", "within the interval"],
  mask: ["set by the Step Mask", "set by the Step Mask"],
  window: ["outside start_percent to end_percent"],
  cap: ["max_skips in a row were skipped"],
  total: ["max_cached steps were skipped"],
  "conditioning change": ["a prompt, ControlNet or hook begins or ends here"],
  "quality target": ["a quality target does not work with this sampler"],
  calibration: ["to learn what skipping costs"],
  memory: ["skipping ran out of memory here"],
  "model changed": ["the model did not run as expected"],
  "new conditioning": ["a new conditioning"],
  history: ["too few computed steps to predict from"],
  "not finite": ["the measured change was not a finite number"],
  "no place on the schedule": ["its sigma is not on the schedule"],
}

/** A sentence's first letter; Python's sentences are made for log lines. */
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1)

const short = (value) => String(Number(value.toPrecision(value < 1000 ? 3 : 4)))

export function seconds(value) {
  if (value >= 90) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`
  return `${value >= 10 ? Math.round(value) : value >= 0.1 ? value.toFixed(1) : value.toFixed(2)} s`
}

/** The evaluations by step: [[evaluation, ...], ...], as many lists as the run has steps; empty ones are still to come. */
export function bySteps(report) {
  const steps = Array.from({ length: Math.max(report.steps, 1) }, () => [])
  for (const e of report.timeline) steps[Math.min(Math.max(e.step, 0), steps.length - 1)].push(e)
  return steps
}

const done = (report) => (report.timeline.length ? Math.max(...report.timeline.map((e) => e.step)) + 1 : 0)

/** What happened, in a few words. */
export function headline({ running, report }) {
  const total = report.evaluations
  const count = report.skipped ? `${report.computed} of ${total} computed` : `all ${total} computed`
  if (running) {
    const now = `${done(report)} of ${report.steps}`
    if (report.learning) return `Learning run: step ${now}`
    return report.skipped ? `Step ${now}, ${report.skipped} skipped` : `Step ${now}`
  }
  if (!report.finished)
    return total ? `Stopped: ${done(report)} of ${report.steps} steps run` : "Stopped before the first step"
  return report.learning ? `Learning run: ${count}` : capital(count)
}

/** What it gained, an estimate from the time of what was computed: ["2.4x", ", about 3.1 s saved"]. Empty where nothing was skipped. */
export function gain({ running, report }) {
  if (running || !report.skipped || !(report.speedup > 0)) return []
  return [`${report.speedup.toFixed(1)}x`, `, about ${seconds(report.saved)} saved`]
}

/** Which tone the message has: "warn", "wait" (a learning run at work), "learn" (one that has learned), "hint" or "". */
export function tone({ running, report }) {
  if (report.risk) return "warn"
  if (report.learning && running) return "wait"
  if (report.learning && report.finished) return "learn"
  return report.advice ? "hint" : ""
}

/** Sentences beside the count: advice first. Notes that repeat the advice are left out, and those of a learning run with advice. */
export function remarks({ report }) {
  const { advice, chosen, outlook, notes } = report
  const rest = notes.filter((note) => !advice || !note.includes(advice) || note.length > 2 * advice.length + 80)
  return [advice, chosen, outlook, ...(report.learning && advice ? [] : rest)].filter(Boolean).map(capital)
}

/** Which settings it ran with, and how many evaluations those of a sampler with several a step were. */
export function settings({ report }) {
  const evaluations = report.evaluations > done(report) ? `${report.evaluations} evaluations` : ""
  return [report.variant, evaluations].filter(Boolean).join(", ")
}

export const title = ({ report }) => `${report.method} ${report.variant}`.trim()

function why(e, report) {
  if (report.learning && e.computed) return "to learn"
  return REASONS[e.reason]?.[e.computed ? 0 : 1] ?? e.reason
}

/** One step, in words. */
export function detail({ report, running }, step) {
  const here = bySteps(report)[step]
  const place = `Step ${step + 1} of ${report.steps}`
  if (!here.length) {
    if (!running) return `${place}: not reached`
    const planned = report.planned.length && !report.learning
    return planned ? `${place}: to be ${report.planned.includes(step) ? "computed" : "skipped"}` : `${place}: to come`
  }
  const said = here.map((e) => {
    const parts = [`${e.computed ? "computed" : "skipped"}, ${why(e, report)}`]
    if (e.score != null && e.threshold != null) parts.push(`change ${short(e.score)}, threshold ${short(e.threshold)}`)
    return parts.join("; ")
  })
  const same = said.length > 1 && new Set(said).size === 1
  const many = said.length > 1 ? `${said.length} evaluations, ${same ? "each " : ""}` : ""
  return `${place}: ${many}${same ? said[0] : said.join("; then ")}. Sigma ${short(here[0].sigma)}.`
}

/** All of it in sentences, for those who do not see the picture. */
export function sentences(run) {
  const { report, running } = run
  const evaluations = report.evaluations === report.steps ? "" : ` ${report.evaluations} evaluations,`
  const count = `${report.steps} steps,${evaluations} ${report.computed} computed, ${report.skipped} skipped`
  const state = running ? "Running. " : report.finished ? "" : `Stopped after step ${done(report)}. `
  const gained = gain(run).join("")
  return [`${title(run)}: ${state}${count}.`, gained && `${capital(gained)}.`, ...remarks(run).map((r) => `${r}.`)]
    .filter(Boolean)
    .join(" ")
    .replaceAll("..", ".")
}

// the picture

const SVG = "http://www.w3.org/2000/svg"

const bar = (kind) => el("div", { className: `skipstone-bar ${kind}` })

/** What a step looks like. `pending`: it is still to come, drawn as it is planned. */
export function cell(here, planned, pending) {
  const element = el("div", { className: "skipstone-cell" })
  if (pending) element.append(bar(`pending ${planned ? "computed" : "skipped"}`))
  for (const e of here) element.append(bar(e.computed ? "computed" : "skipped"))
  return element
}

/** The indicator as a line, and its threshold, which is always half way up: twice the threshold is as far from the top as half of it from the
 * bottom, and nothing is ever out of the picture. null where no indicator was asked. */
export function line(steps) {
  const points = steps.flatMap((here, step) =>
    here.map((e, i) => [
      ((step + (i + 0.5) / here.length) / steps.length) * 100,
      e.score != null && e.threshold != null ? (100 * e.threshold ** 2) / (e.score ** 2 + e.threshold ** 2 || 1) : null,
    ]),
  )
  if (!points.some(([, y]) => y !== null)) return null
  const svg = document.createElementNS(SVG, "svg")
  svg.setAttribute("viewBox", "0 0 100 100")
  svg.setAttribute("preserveAspectRatio", "none")
  svg.setAttribute("class", "skipstone-line")
  svg.setAttribute("aria-hidden", "true")
  const draw = (name, d) => {
    const path = document.createElementNS(SVG, "path")
    path.setAttribute("class", name)
    path.setAttribute("d", d)
    path.setAttribute("vector-effect", "non-scaling-stroke")
    svg.append(path)
  }
  let [curve, dots, on] = ["", "", false]
  for (const [x, y] of points) {
    if (y !== null) {
      const at = `${x.toFixed(2)} ${(4 + 0.92 * y).toFixed(2)}`
      curve += `${on ? "L" : "M"}${at}`
      dots += `M${at}h0`
    }
    on = y !== null
  }
  draw("threshold", "M0 50H100")
  draw("curve", curve)
  draw("dots", dots)
  return svg
}
