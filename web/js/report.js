// A run's report (core/step/report/report.py, Report.as_dict) in words, and as a strip of cells. Knows nothing of ComfyUI.

import { el } from "./shared.js"
import { capital, sentenceIn, t } from "./texts.js"

const said = (report, sentence) => capital(sentenceIn(report, sentence))

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
  const { steps, evaluations: total, skipped, computed } = report
  const step = done(report)
  if (running) {
    if (report.learning) return t("timeline.atCalibration", { step, steps })
    return skipped ? t("timeline.atSkipped", { step, steps, count: skipped }) : t("timeline.at", { step, steps })
  }
  const all = t("timeline.allComputed", { total })
  const count = skipped ? t("timeline.computedOf", { count: computed, total }) : all
  if (report.finished) return report.learning ? t("timeline.calibrated", { total }) : count
  return total ? t("timeline.stopped", { step, steps }) : t("timeline.stoppedFirst")
}

/** What it gained, an estimate from the time of what was computed: ["2.4x", ", about 3.1 s saved"]. Empty where nothing was skipped. */
export function gain({ running, report }) {
  if (running || !report.skipped || !(report.speedup > 0)) return []
  const times = report.speedup.toFixed(1)
  return [t("timeline.faster", { times }), t("timeline.saved", { time: seconds(report.saved) })]
}

/** Which tone the message has: "wait", "warn", "learned", "hint" or "". */
export function tone({ running, report }) {
  if (report.risk) return "warn"
  if (report.learning && running) return "wait"
  if (report.learning && report.finished) return "learned"
  return report.advice || report.learning ? "hint" : ""
}

/** What is to be said of a run beside the count: sentences without a full stop. */
export function message({ running, report }) {
  const { advice, chosen, notes, outlook } = report
  if (advice) return [said(report, advice)]
  // the joint count of samplers that share a trajectory
  const together = report.texts?.find(({ key }) => key === "together")?.text
  if (together) return [said(report, together)]
  // the predicted difference comes first; the node has no room for the reasons of the method as well
  if (outlook && !running) {
    return [said(report, outlook), ...(chosen ? [t("timeline.method", { name: report.method })] : [])]
  }
  return [chosen || notes[0]].filter(Boolean).map((sentence) => said(report, sentence))
}

const plain = (text) => text.toLowerCase().replace(/[.!。！]$/, "")

/** All that is to be said, the message first; nothing twice, in whatever words. */
export function remarks(run) {
  const { report } = run
  const { advice, chosen, outlook, notes } = report
  const found = message(run)
  // only a plan has a predicted error, and costs behind it
  const costs = report.error != null && report.costs ? t("timeline.costs", { costs: said(report, report.costs) }) : ""
  const rest = [advice, chosen, outlook].map((sentence) => said(report, sentence))
  for (const text of [...rest, costs, ...notes.map((sentence) => said(report, sentence))]) {
    if (text && !found.some((one) => plain(one).includes(plain(text)))) found.push(text)
  }
  return found
}

/** Which settings it ran with, and how many evaluations those of a sampler with several a step were. */
export function settings({ report }) {
  const several = report.evaluations > done(report)
  const evaluations = several ? t("timeline.evaluations", { count: report.evaluations }) : ""
  return [report.variant, evaluations].filter(Boolean).join(", ")
}

export const title = ({ report }) => `${report.method} ${report.variant}`.trim()

function why(e, report) {
  if (report.learning && e.computed) return t("timeline.toCalibrate")
  return t(["reasons", e.computed ? "computed" : "skipped", e.reason]) ?? e.reason
}

/** One step, in words. */
export function detail({ report, running }, index) {
  const here = bySteps(report)[index]
  const { steps, planned, learning } = report
  const place = { step: index + 1, steps }
  if (!here.length) {
    if (!running) return t("timeline.notReached", place)
    if (!planned.length || learning) return t("timeline.toCome", place)
    return t(planned.includes(index) ? "timeline.toBeComputed" : "timeline.toBeSkipped", place)
  }
  const each = here.map((e) => {
    const parts = [`${t(e.computed ? "timeline.computed" : "timeline.skipped")}, ${why(e, report)}`]
    const held = e.score != null && e.threshold != null
    if (held) parts.push(t("timeline.change", { held: short(e.score), limit: short(e.threshold) }))
    return parts.join("; ")
  })
  const same = new Set(each).size === 1
  const count = each.length
  const many = count > 1 ? `${t(`timeline.${same ? "each" : "evaluations"}`, { count })} ` : ""
  const all = same ? each[0] : each.join(`; ${t("timeline.and")} `)
  return `${t("timeline.at", place)}: ${many}${all}. ${t("timeline.sigma", { sigma: short(here[0].sigma) })}`
}

/** All of it in sentences, for those who do not see the picture. */
export function sentences(run) {
  const { report, running } = run
  const { steps, evaluations, computed, skipped } = report
  const key = evaluations === steps ? "timeline.spoken" : "timeline.spokenEvaluations"
  const count = t(key, { steps, evaluations, computed, skipped })
  const stopped = !running && !report.finished
  const state = running
    ? t("timeline.spokenRunning")
    : stopped
      ? t("timeline.spokenStopped", { step: done(report) })
      : ""
  const gained = gain(run).join("")
  const rest = [gained && capital(gained), ...remarks(run)]
    .filter(Boolean)
    .map((text) => text.replace(/[.。]?$/, t("list.end")))
  return [`${title(run)}:`, state, count, ...rest].filter(Boolean).join(" ")
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
