// The encode cache's settings. The ids are those that patch/memo/instance.py reads on the server, at its start.

import { app } from "../../../scripts/app.js"
import { USED, asked, changed, showTab } from "./memo.js"
import { el, guarded, style } from "./shared.js"
import { capital, t, translated } from "./texts.js"

const RESTART = "Restart ComfyUI to apply."
const OWNER = "With several users (--multi-user) only environment variables count."
const LIMIT = "Largest size; the entries unused for longest are deleted first."
const SIDE = "Encode cache: sidebar"
const MEMO = "Encode cache (restart ComfyUI to apply)"
const PLACES = "Encode cache: memory and disk"
const REDIS = "Encode cache: Redis, shared by machines"

const STYLES = `
.skipstone-field { display: flex; flex-direction: column; align-items: flex-end; gap: 6px; max-width: 24rem; }
.skipstone-field :is(input, button) { padding: 6px 12px; min-height: 2.35rem; font: inherit; font-size: 1rem;
  color: var(--p-inputtext-color, var(--input-text, inherit)); border-radius: var(--p-inputtext-border-radius, 6px);
  background: var(--p-inputtext-background, var(--comfy-input-bg, transparent));
  border: 1px solid var(--p-inputtext-border-color, var(--border-color, #8884)); }
.skipstone-field input { width: 18rem; max-width: 100%; }
.skipstone-field input::placeholder { color: var(--p-inputtext-placeholder-color, var(--descrip-text, #999)); opacity: 1; }
.skipstone-field button { cursor: pointer; }
.skipstone-field :is(input, button):hover:not(:disabled) { border-color: var(--p-inputtext-hover-border-color, currentColor); }
.skipstone-field :is(input, button):focus-visible { outline: 2px solid var(--primary-background, #3b82f6); outline-offset: 1px; }
.skipstone-field button:disabled { opacity: 0.5; cursor: default; }
.skipstone-field p { margin: 0; font-size: 0.8rem; text-align: right; color: var(--descrip-text, #999); overflow-wrap: anywhere; }
.skipstone-field p:empty { display: none; }
.skipstone-field p.bad { color: var(--error-text, #e5484d); }
`

const framed = (...parts) => {
  style("skipstone-field-style", STYLES)
  return el("div", { className: "skipstone-field" }, ...parts)
}

const status = () => el("p", { role: "status", "aria-live": "polite" })

/** A line of text that is taken when it is whole. wrong: what is wrong with it, or "". */
const line = (placeholder, wrong) => (name, set, value) => {
  const said = status()
  const input = el("input", { type: "text", value: value ?? "", placeholder, spellcheck: false, "aria-label": name })
  input.addEventListener("change", () => {
    const text = input.value.trim()
    const trouble = wrong(text)
    said.textContent = trouble
    said.className = trouble ? "bad" : ""
    input.setAttribute("aria-invalid", String(Boolean(trouble)))
    if (!trouble) set(text)
  })
  return framed(input, said)
}

function wrongAddress(text) {
  if (!text) return ""
  if (!/^(rediss?(\+(sentinel|cluster))?|unix):\/\//.test(text)) return t("fields.address")
  const [place, query = ""] = text.split("?", 2)
  if (/:\/\/[^@]*:.*@/.test(place) || /(^|&)password=/.test(query)) return t("fields.password")
  return ""
}

/** A button with a line of text below it. work(say): what a click does; `say(text, bad)` sets the line. An error is said there. */
export function action(label, work) {
  const said = status()
  const say = (text, bad = false) => {
    said.textContent = text
    said.className = bad ? "bad" : ""
  }
  const button = el("button", { type: "button" }, label)
  button.addEventListener("click", async () => {
    button.disabled = true
    const off = await work(say).catch(({ message }) => say(`✗ ${message}`, true))
    button.disabled = off === true
    button.focus()
    said.scrollIntoView({ block: "nearest" })
  })
  return { element: framed(button, said), button, say }
}

/** Tries the server that ComfyUI was started with, whatever stands in the field. */
const trial = () =>
  action(t("fields.test"), async (say) => {
    say(t("fields.asking"))
    const { ok, texts } = await asked("/skipstone/memo/test", {})
    const sentences = texts.map((told) => capital(translated(told)).replace(/[.。]$/, ""))
    say(`${ok ? "✓" : "✗"} ${sentences.join(t("list.stop"))}${t("list.end")}`, !ok)
  }).element

const amount = (max, step, digits = 1) => ({ min: 0, max, step, maxFractionDigits: digits, showButtons: true })

const SETTINGS = [
  {
    id: "Skipstone.Sidebar",
    group: SIDE,
    name: "Show the encode cache in the sidebar",
    type: "combo",
    options: [
      { text: "When a workflow uses it", value: USED },
      { text: "Always", value: "always" },
      { text: "Never", value: "never" },
    ],
    defaultValue: USED,
    onChange: () => guarded(showTab),
    tooltip: "By default the tab is there once a workflow has a node that uses the cache.",
  },
  {
    id: "Skipstone.Memo",
    group: MEMO,
    name: "Cache encoded images and prompts",
    type: "boolean",
    defaultValue: true,
    tooltip: `Switches the whole encode cache, used by Cached VAE, Cached CLIP and the Cached Encode nodes. ${RESTART} ${OWNER}`,
  },
  {
    id: "Skipstone.Provider",
    group: MEMO,
    name: "Cache ComfyUI's own encode nodes too",
    type: "boolean",
    defaultValue: false,
    tooltip: `Keeps latents and conditionings of ComfyUI's own nodes across restarts, without changes to the graph. ${RESTART} ${OWNER}`,
  },
  {
    id: "Skipstone.Memo.Memory",
    group: PLACES,
    name: "Memory (GB)",
    type: "number",
    defaultValue: null,
    attrs: { ...amount(1024, 0.5, 2), placeholder: "10% of RAM" },
    tooltip: `${LIMIT} Empty: 10% of RAM (auto). 0: nothing is kept in memory. ${RESTART}`,
  },
  {
    id: "Skipstone.Memo.Disk",
    group: PLACES,
    name: "Disk (GB)",
    type: "number",
    defaultValue: 10,
    attrs: amount(100_000, 1),
    tooltip: `${LIMIT} 0: nothing is kept on disk, nor across restarts. ${RESTART}`,
  },
  {
    id: "Skipstone.Memo.Days",
    group: PLACES,
    name: "Disk: delete after days unused",
    type: "number",
    defaultValue: 30,
    attrs: amount(3650, 1),
    tooltip: `Entries unused for this many days are deleted from the disk. ${RESTART}`,
  },
  {
    id: "Skipstone.Memo.Folder",
    group: PLACES,
    name: "Folder on disk",
    type: line("user/skipstone/memo", () => ""),
    defaultValue: "",
    tooltip:
      "A folder on the server's machine; several ComfyUIs may share it. Empty: skipstone/memo in ComfyUI's user folder. " +
      `On a server that others reach, set SKIPSTONE_MEMO_FOLDER instead, which overrides this. ${RESTART} ${OWNER}`,
  },
  {
    id: "Skipstone.Memo.Redis",
    group: REDIS,
    name: "Address",
    type: line("redis://host:6379", wrongAddress),
    defaultValue: "",
    tooltip:
      "A Redis or Valkey that several machines share: redis://, rediss:// (TLS) or unix://. Empty: none. Enter no password " +
      "here, because every page of this server can read the settings; set SKIPSTONE_MEMO_REDIS instead, which overrides " +
      `this. ${RESTART} ${OWNER}`,
  },
  {
    id: "Skipstone.Memo.RedisTest",
    group: REDIS,
    name: "Connection",
    type: trial,
    defaultValue: "",
    tooltip:
      "Writes a value to the Redis that ComfyUI was started with, and reads it back. A new address can be tested after a " +
      "restart.",
  },
  {
    id: "Skipstone.Memo.RedisDays",
    group: REDIS,
    name: "Redis: delete after days unused",
    type: "number",
    defaultValue: 14,
    attrs: amount(3650, 1),
    tooltip: `Redis deletes entries unused for this many days (their time to live). ${RESTART}`,
  },
  {
    id: "Skipstone.Memo.RedisMB",
    group: REDIS,
    name: "Redis: skip entries larger than (MB)",
    type: "number",
    defaultValue: 64,
    attrs: amount(512, 1),
    tooltip: `Larger entries stay on this machine. ${RESTART}`,
  },
]

app.registerExtension({
  name: "Skipstone.MemoSettings",
  // the front end sorts them by sortOrder, the largest first
  settings: SETTINGS.map(({ group, ...setting }, i) => ({
    onChange: changed,
    ...setting,
    category: ["Skipstone", group, setting.id],
    sortOrder: 100 - i,
  })),
})
