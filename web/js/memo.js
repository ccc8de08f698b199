// The encode cache's tab in the sidebar: hits, time saved, sizes, and buttons to clear it. Ids keep its earlier name, memo.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { el, graphs, guarded, nodesOf, style } from "./shared.js"
import { capital, sentenceIn, t, translated } from "./texts.js"

const TAB = "skipstone-memo"
// the first tells of the queue, whoever runs something; the others reach the page that asked for the run
const ENDS = ["status", "execution_success", "execution_error", "execution_interrupted"]
// of each tier: what its state is called
const STATES = {
  on: { memory: "on", disk: "on", redis: "connected", s3: "connected" },
  away: { memory: "away", disk: "away", redis: "away", s3: "away" },
  off: { memory: "off", disk: "off", redis: "off", s3: "off" },
}
const SHARED = new Set(["redis", "s3"]) // tiers that other machines may use too
const SIDEBAR = "Skipstone.Sidebar" // the setting that says when the tab is there
export const USED = "used"
const LATER = 400 // ms
// The names of the settings' pages, in the dialogs of newer and older front ends
const SETTINGS_PAGES = "[data-nav-id='root/Skipstone'], .settings-sidebar li"
const PATIENCE = 3000 // ms, for the dialog to open

const STYLES = `
.skipstone-memo { display: flex; flex-direction: column; gap: 14px; padding: 12px 14px 24px; font-size: 13px; line-height: 1.4;
  color: var(--fg-color, var(--base-foreground, inherit)); overflow-wrap: anywhere; }
.skipstone-memo h2, .skipstone-memo h3, .skipstone-memo p, .skipstone-memo ul { margin: 0; padding: 0; }
.skipstone-memo h2 { font-size: 15px; font-weight: 600; }
.skipstone-memo h3 { font-size: 13px; font-weight: 600; }
.skipstone-memo ul { list-style: none; }
.skipstone-memo .row { display: flex; align-items: center; gap: 8px; }
.skipstone-memo .row > :first-child { flex: 1; min-width: 0; }
.skipstone-memo .faint { color: var(--descrip-text, #999); }
.skipstone-memo .big { font-size: 34px; line-height: 1.1; font-weight: 600; font-variant-numeric: tabular-nums; }
.skipstone-memo .hero { display: flex; flex-direction: column; gap: 6px; }
.skipstone-memo .card { display: flex; flex-direction: column; gap: 7px; padding: 10px 12px; border-radius: 8px;
  border: 1px solid var(--skipstone-line); }
.skipstone-memo .bar { height: 6px; border-radius: 3px; overflow: hidden; background: var(--skipstone-line); }
.skipstone-memo .bar > span { display: block; min-width: 2px; height: 100%; border-radius: 3px; background: var(--skipstone-accent); }
.skipstone-memo { --skipstone-accent: var(--primary-background, var(--p-primary-color, #3b82f6));
  --skipstone-line: color-mix(in srgb, currentColor 16%, transparent); }
.skipstone-memo .state { display: inline-flex; align-items: center; gap: 5px; font-size: 12px; color: var(--descrip-text, #999); }
.skipstone-memo .state::before { content: ""; width: 8px; height: 8px; border-radius: 50%; border: 1px solid currentColor; }
.skipstone-memo .state.on::before { background: var(--success-background, #22a06b); border-color: transparent; }
.skipstone-memo .state.away { color: var(--error-text, #e5484d); }
.skipstone-memo .state.away::before { background: currentColor; }
.skipstone-memo table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.skipstone-memo th { font-weight: 400; text-align: left; color: var(--descrip-text, #999); font-size: 12px; }
.skipstone-memo :is(th, td):not(:first-child) { text-align: right; }
.skipstone-memo :is(th, td) { padding: 3px 0 3px 8px; }
.skipstone-memo :is(th, td):first-child { padding-left: 0; }
.skipstone-memo button { font: inherit; font-size: 12px; padding: 3px 9px; border-radius: 6px; cursor: pointer; color: inherit;
  background: transparent; border: 1px solid var(--skipstone-line); }
.skipstone-memo button:hover:not(:disabled) { border-color: currentColor; }
.skipstone-memo button:focus-visible { outline: 2px solid var(--skipstone-accent); outline-offset: 1px; }
.skipstone-memo button:disabled { opacity: 0.45; cursor: default; }
.skipstone-memo .foot { display: flex; flex-wrap: wrap; gap: 8px; }
.skipstone-memo .foot button { padding: 5px 12px; }
.skipstone-memo .note { padding: 8px 10px; border-radius: 6px; border-left: 3px solid var(--skipstone-accent);
  background: color-mix(in srgb, var(--skipstone-accent) 10%, transparent); }
.skipstone-memo .note.bad { border-left-color: var(--error-text, #e5484d);
  background: color-mix(in srgb, var(--error-text, #e5484d) 10%, transparent); }
.skipstone-memo .said:empty { display: none; }
.skipstone-memo .said { white-space: pre-line; }
.skipstone-memo summary { cursor: pointer; }
.skipstone-memo ul { display: flex; flex-direction: column; gap: 4px; }
.skipstone-memo details ul { gap: 8px; margin-top: 8px; }
.skipstone-memo details li { padding-left: 10px; border-left: 3px solid var(--skipstone-line); }
.skipstone-memo details li.bad { border-left-color: var(--error-text, #e5484d); }
`

/** 1234567 as 1.2 MB; a GB is 2**30 bytes, as in the settings. */
export const size = (n) => {
  const units = ["bytes", "kB", "MB", "GB"]
  let [number, unit] = [n, 0]
  for (; number >= 1024 && unit < 3; unit++) number /= 1024
  return `${number < 100 ? Number(number.toFixed(1)) : Math.round(number)} ${units[unit]}`
}

const time = (seconds) => {
  if (seconds < 100) return `${seconds.toFixed(1)} s`
  const minutes = Math.round(seconds / 60)
  return minutes < 100 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`
}

const saved = (counts) => t("panel.saved", { time: time(counts.saved_seconds) })
const entries = (used) => t(used.entries === 1 ? "panel.entry" : "panel.entries", { count: used.entries })
const placeOf = (tier) => t(`panel.places.${tier}`) ?? tier
const from = (tier) => t(`panel.from.${tier}`) ?? tier
const kindName = (kind) => t(`panel.kinds.${kind}`) ?? kind
const gone = ([tier, used]) =>
  used
    ? t("panel.removed", { place: placeOf(tier), entries: entries(used), size: size(used.bytes) })
    : t("panel.notRemoved", { place: placeOf(tier) })
const percent = (share) => `${Math.round(100 * share)}%`

/** The panel: one element that stays, its content made anew from what the server says. */
class Panel {
  constructor() {
    this.said = el("p", { className: "said note", role: "status", "aria-live": "polite" })
    this.body = el("div", { className: "skipstone-memo-body", style: "display: contents" })
    const refresh = el(
      "button",
      { type: "button", title: t("panel.refresh"), "aria-label": t("panel.refresh") },
      el("i", { className: "pi pi-refresh", "aria-hidden": "true" }),
    )
    refresh.addEventListener("click", () => this.refresh())
    this.root = el(
      "section",
      { className: "skipstone-memo", "aria-label": t("panel.title") },
      el("div", { className: "row" }, el("h2", {}, t("panel.title")), refresh),
      this.said,
      this.body,
    )
    this.shown = ""
    this.asked = 0
  }

  show(container) {
    style("skipstone-memo-style", STYLES)
    if (this.root.parentNode !== container) container.replaceChildren(this.root)
    this.refresh()
  }

  hide() {
    this.root.remove()
    this.say("")
  }

  get visible() {
    return this.root.isConnected
  }

  later() {
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.visible && this.refresh(), LATER)
  }

  say(text, bad = false) {
    this.said.textContent = text
    this.said.classList.toggle("bad", bad)
  }

  async refresh() {
    const turn = ++this.asked
    const told = await asked("/skipstone/memo").catch(({ message }) => ({ state: "unknown", text: message }))
    if (turn !== this.asked) return // a later answer is on its way
    const now = JSON.stringify(told)
    if (now === this.shown) return
    this.shown = now
    const focused = this.root.contains(document.activeElement) ? document.activeElement.dataset.key : undefined
    const open = this.body.querySelector("details")?.open ?? Boolean(told.troubles?.length)
    guarded(() => this.body.replaceChildren(...this.parts(told, open).filter(Boolean)))
    if (focused) this.body.querySelector(`[data-key="${CSS.escape(focused)}"]:not(:disabled)`)?.focus()
  }

  parts(told, open) {
    if (told.state !== "on") {
      const off = told.state === "off"
      const why = el("p", { className: off ? "" : "note bad" }, off ? t("panel.off") : told.text)
      return [...notes(told), why, origin(told), this.foot(null)]
    }
    const tiers = told.tiers.map((tier) => this.tier(tier))
    return [...notes(told), hero(told), kinds(told), ...tiers, aside(told, open), origin(told), this.foot(told)]
  }

  tier(tier) {
    const name = placeOf(tier.name)
    const heading = el("h3", { id: `${TAB}-${tier.name}` }, name)
    const called = t(`panel.states.${STATES[tier.state]?.[tier.name]}`) ?? tier.state
    const state = el("span", { className: `state ${tier.state}` }, called)
    const card = el(
      "div",
      { className: "card", role: "group", "aria-labelledby": heading.id },
      el("div", { className: "row" }, heading, state),
    )
    if (tier.entries !== undefined) card.append(...this.holding(tier, name))
    else if (tier.state === "off") card.append(el("p", { className: "faint" }, t(`panel.whyOff.${tier.name}`) ?? ""))
    return card
  }

  holding(tier, name) {
    const most = tier.budget ? ` ${t("panel.of", { size: size(tier.budget) })}` : ""
    const held = el("span", { className: "faint" }, `${entries(tier)}, ${size(tier.bytes)}${most}`)
    const parts = [el("div", { className: "row" }, held, this.clearing(tier, "all", tier))]
    if (tier.budget) {
      const share = tier.bytes / tier.budget
      parts.unshift(bar(share, t("panel.budget", { place: name, share: percent(share) })))
    }
    const rows = Object.entries(tier.kinds).map(([kind, used]) => {
      const about = el("span", { className: "faint" }, `${used.entries} · ${size(used.bytes)}`)
      return el("li", { className: "row" }, el("span", {}, kindName(kind), " ", about), this.clearing(tier, kind, used))
    })
    return rows.length ? [...parts, el("ul", {}, ...rows)] : parts
  }

  clearing(tier, kind, used) {
    const all = kind === "all"
    const values = { entries: entries(used), size: size(used.bytes), place: from(tier.name), kind: kindName(kind) }
    const question = [t(all ? "panel.confirmTier" : "panel.confirmKind", values)]
    if (SHARED.has(tier.name)) question.push(t("panel.shared"))
    const press = () => this.clear(tier.name, kind, question.join(" "))
    return this.button(t(all ? "panel.clearAll" : "panel.clear"), `${tier.name}/${kind}`, press, {
      disabled: !used.entries,
      "aria-label": t("panel.clearLabel", {
        what: all ? t("panel.allEntries") : kindName(kind),
        place: from(tier.name),
      }),
    })
  }

  foot(told) {
    const settings = this.button(t("panel.settings"), "settings", openSettings)
    if (!told) return el("div", { className: "foot" }, settings)
    const there = told.tiers.filter((tier) => tier.state !== "off").map((tier) => tier.name)
    const question = [t("panel.confirmAll", { places: there.map(from).join(", ") })]
    if (there.some((name) => SHARED.has(name))) question.push(t("panel.shared"))
    const press = () => this.clear("all", "all", question.join(" "))
    const clear = this.button(t("panel.clearEverything"), "all/all", press, {
      disabled: !told.tiers.some((tier) => tier.entries),
    })
    return el("div", { className: "foot" }, clear, settings)
  }

  button(label, key, press, props = {}) {
    const button = el("button", { type: "button", ...props }, label)
    button.dataset.key = key // so that the focus stays on it when the numbers change
    button.addEventListener("click", () => guarded(press))
    return button
  }

  async clear(tier, kind, question) {
    if (!(await confirmed(question))) return
    this.say(t("panel.clearing"))
    try {
      const { removed } = await asked("/skipstone/memo/clear", { tier, kind })
      this.say(Object.entries(removed).map(gone).join("\n"))
    } catch (error) {
      this.say(error.message, true)
    }
    await this.refresh()
  }
}

function notes(told) {
  return told.changed ? [el("p", { className: "note" }, t("panel.changed"))] : []
}

/** Why a setting may not count. */
function origin(told) {
  const names = (told.environment ?? []).map((id) => id.replace(/^Skipstone\.(Memo\.)?/, ""))
  if (told.several_users) return el("p", { className: "faint" }, t("panel.severalUsers"))
  if (!names.length) return null
  return el("p", { className: "faint" }, t("panel.environment", { names: names.join(", ") }))
}

const faint = (text) => el("span", { className: "faint" }, text)
const big = (text) => el("span", { className: "big" }, text)

function hero(told) {
  const { hits, misses } = told
  const parts = []
  if (!hits && !misses) parts.push(el("p", {}, t("panel.nothing")))
  else if (!hits) {
    // a rate of 0% after a first success would look like a failure
    parts.push(el("div", {}, big(t("panel.firstSaved", { count: misses }))), el("p", {}, t("panel.firstSavedMore")))
  } else {
    const share = percent(told.hit_rate)
    parts.push(
      el("div", {}, big(share), " ", faint(t("panel.hitRate"))),
      bar(told.hit_rate, t("panel.hitRateIs", { share })),
      el("p", {}, t("panel.reused", { hits, all: hits + misses, misses })),
      el("p", {}, el("strong", {}, saved(told)), " ", faint(t("panel.spent", { time: time(told.spent_seconds) }))),
    )
  }
  return el("div", { className: "hero" }, ...parts)
}

const row = (tag, texts) => el("tr", {}, ...texts.map((text) => el(tag, tag === "th" ? { scope: "col" } : {}, text)))

function kinds(told) {
  const rows = Object.entries(told.kinds).map(([kind, n]) =>
    row("td", [
      kindName(kind),
      `${n.hits}`,
      `${n.misses}`,
      n.hit_rate === null ? "–" : percent(n.hit_rate),
      time(n.saved_seconds),
    ]),
  )
  const head = row("th", ["", ...["hits", "misses", "rate", "savedColumn"].map((key) => t(`panel.${key}`))])
  return rows.length ? el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)) : null
}

const trouble = (place, text) =>
  text.includes(place) ? `${capital(text)}${t("list.end")}` : t("panel.trouble", { place, text })

const notKept = (count, why) => t(count === 1 ? "panel.notKeptOnce" : "panel.notKept", { count, why })

function aside(told, open) {
  const lines = [
    ...told.troubles.map(({ tier, text }) =>
      el("li", { className: "bad" }, trouble(placeOf(tier), sentenceIn(told, text))),
    ),
    ...Object.entries(told.not_kept).map(([why, n]) => el("li", {}, notKept(n, sentenceIn(told, why)))),
  ]
  if (!lines.length) return null
  const list = el("ul", {}, ...lines)
  return el("details", { open }, el("summary", {}, t("panel.troubles", { count: lines.length })), list)
}

function bar(share, label) {
  const full = Math.min(Math.max(share, 0), 1)
  const filled = full && el("span", { style: `width: ${(100 * full).toFixed(1)}%` })
  return el("div", { className: "bar", role: "img", "aria-label": label }, filled || null)
}

/** The server's answer; throws an Error with a sentence. */
export async function asked(path, body) {
  const json = { "Content-Type": "application/json" }
  const how = body === undefined ? {} : { method: "POST", headers: json, body: JSON.stringify(body) }
  let answer
  try {
    answer = await api.fetchApi(path, how)
  } catch {
    throw new Error(t("panel.noAnswer"))
  }
  const told = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Error(told.told ? translated(told.told) : t("panel.answers", { status: answer.status }))
  return told
}

export async function confirmed(message, title = t("panel.confirmTitle")) {
  const dialog = app.extensionManager?.dialog
  if (!dialog?.confirm) return window.confirm(message)
  return (await dialog.confirm({ title, message, type: "delete" })) === true
}

/** ComfyUI's settings, at our page. The front end's command opens them at its own first page: ours is then chosen as a person would. */
function openSettings() {
  app.extensionManager.command.execute("Comfy.ShowSettingsDialog")
  const before = performance.now()
  const choose = () => {
    const found = [...document.querySelectorAll(SETTINGS_PAGES)].find((one) => one.textContent.trim() === "Skipstone")
    if (found) found.click()
    else if (performance.now() - before < PATIENCE) requestAnimationFrame(choose)
  }
  choose()
}

// the sidebar

let panel = null
let shown = false
let ready = false // the front end reports the setting's value before the texts are loaded

function tab() {
  panel ??= new Panel()
  return {
    id: TAB,
    icon: "pi pi-database",
    title: t("panel.title"),
    tooltip: t("panel.tooltip"),
    label: t("panel.title"),
    type: "custom",
    render: (container) => guarded(() => panel.show(container)),
    destroy: () => guarded(() => panel.hide()),
  }
}

const uses = (node) => /^Skipstone(Memo|Cached)/.test(node.comfyClass ?? "")

/** The tab is there when the setting says so. By itself it comes with the first node that uses the cache, and stays until the page is left. */
export function showTab() {
  const { extensionManager } = app
  if (!ready || !extensionManager?.registerSidebarTab) return
  const when = extensionManager.setting.get(SIDEBAR) ?? USED
  const wanted = when === "always" || (when === USED && (shown || graphs().some((graph) => nodesOf(graph).some(uses))))
  if (wanted === shown) return
  shown = wanted
  if (wanted) extensionManager.registerSidebarTab(tab())
  else extensionManager.unregisterSidebarTab(TAB)
}

/** Something changed that the panel may show. */
export const changed = () => panel?.later()

app.registerExtension({
  name: "Skipstone.Memo",

  nodeCreated(node) {
    if (uses(node)) queueMicrotask(() => guarded(showTab)) // by then it is in its graph
  },

  afterConfigureGraph() {
    guarded(showTab)
  },

  setup() {
    ready = true
    guarded(showTab)
    for (const end of ENDS) api.addEventListener(end, changed)
  },
})
