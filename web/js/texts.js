// The texts that the front end's part says, in one place: on nodes, in the sidebar, in messages and menus. English stands here; other
// languages come from the server (locales/, which `make help-pages` writes by this file), and what one of them lacks is said in English.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { wrong } from "./shared.js"

/** Plain strings in nested tables, read by tools/help.py too. {name} is replaced by a value. */
const ENGLISH = {
  list: {
    comma: ", ",
    stop: ". ",
    end: ".",
  },
  values: {
    show: "Show values",
    hide: "Hide values",
  },
  timeline: {
    label: "Timeline of the last run",
    none: "No run yet",
    empty: "Queue to see which steps were skipped, and the time saved.",
    emptyCalibrates: "The first run with a model is a calibration run: no step is skipped.",
    keys: "The arrow keys tell each step.",
    earlier: "Earlier run",
    later: "Later run",
    run: "Run {number} of {count} of this prompt",
    by: "by {sampler} (#{id})",
    computedCount: "{count} computed",
    skippedCount: "{count} skipped",
    computedOf: "{count} of {total} computed",
    allComputed: "All {total} computed",
    at: "Step {step} of {steps}",
    atCalibration: "Calibration run: step {step} of {steps}",
    atSkipped: "Step {step} of {steps}, {count} skipped",
    calibrated: "Calibration run: all {total} computed",
    stopped: "Stopped: {step} of {steps} steps run",
    stoppedFirst: "Stopped before the first step",
    faster: "{times}x",
    saved: ", about {time} saved",
    method: "Method: {name}",
    costs: "Costs of skipping: {costs}",
    evaluations: "{count} evaluations",
    each: "{count} evaluations, each",
    and: "then",
    computed: "computed",
    skipped: "skipped",
    change: "change {held}, threshold {limit}",
    sigma: "Sigma {sigma}.",
    notReached: "Step {step} of {steps}: not reached",
    toCome: "Step {step} of {steps}: to come",
    toBeComputed: "Step {step} of {steps}: to be computed",
    toBeSkipped: "Step {step} of {steps}: to be skipped",
    toCalibrate: "for the calibration",
    spoken: "{steps} steps, {computed} computed, {skipped} skipped.",
    spokenEvaluations: "{steps} steps, {evaluations} evaluations, {computed} computed, {skipped} skipped.",
    spokenRunning: "Running.",
    spokenStopped: "Stopped after step {step}.",
  },
  reasons: {
    computed: {
      warmup: "the first steps are always computed",
      "last step": "the last step is always computed",
      schedule: "on the schedule",
      threshold: "the threshold was reached",
      ratio: "the threshold was reached",
      interval: "on the interval",
      mask: "set by the Step Mask",
      window: "outside start_percent to end_percent",
      cap: "max_skips in a row were skipped",
      total: "max_cached steps were skipped",
      "conditioning change": "a prompt, ControlNet, hook or patch begins or ends here",
      "quality target": "a quality target does not work with this sampler",
      calibration: "to measure what skipping costs",
      memory: "skipping ran out of memory here",
      "model changed": "the model did not run as expected",
      "new conditioning": "a new conditioning",
      history: "too few computed steps to predict from",
      "not finite": "the measured change was not a finite number",
      "no place on the schedule": "its sigma is not on the schedule",
      "noise that the output follows": "the sampler adds noise that the model's output follows",
      "unknown part of the latent": "the model was run on an unknown part of the latent",
    },
    skipped: {
      schedule: "not on the schedule",
      threshold: "below the threshold",
      ratio: "below the threshold",
      interval: "within the interval",
      mask: "set by the Step Mask",
    },
  },
  commands: {
    "Skipstone.AddStepCaches": "Skipstone: add Step Cache before every sampler",
    "Skipstone.RemoveStepCaches": "Skipstone: remove every step cache",
  },
  caches: {
    title: "Skipstone",
    added: "Step Cache (Auto) added: {count}. Can be undone.",
    inside: "Of these inside subgraphs: {count}.",
    removed: "Step caches removed: {count}. Can be undone.",
    already: "Every sampler has a step cache already.",
    noSampler: "No sampler with a model was found in this workflow.",
    noCache: "There is no step cache of Skipstone in this workflow.",
  },
  compare: {
    empty: "Queue to compare all presets.",
    without: "without",
    slider: "Without the step cache on the left, {preset} on the right",
    preset: "preset",
    computed: "computed",
    speedup: "speed-up",
    psnr: "PSNR",
    ssim: "SSIM",
    of: "{computed} of {evaluations}",
    identical: "identical",
    scale: "30 dB: visible. 40: hard to see. 50: invisible.",
    copy: "Copy table",
    copied: "Copied",
  },
  panel: {
    title: "Encode cache",
    tooltip: "Skipstone encode cache",
    refresh: "Refresh",
    settings: "Settings",
    clearEverything: "Clear everything",
    clearing: "Clearing …",
    removed: "{place}: {entries} removed, {size}",
    notRemoved: "{place}: does not answer",
    off: "The encode cache is switched off in the settings (Skipstone, Encode cache) or by SKIPSTONE_MEMO.",
    clear: "Clear",
    clearAll: "Clear all",
    clearLabel: "Clear {what} from {place}",
    allEntries: "all entries",
    confirmTitle: "Clear the encode cache",
    confirmAll: "Delete everything in the cache ({places})? It will be recomputed when needed.",
    confirmTier: "Delete {entries} ({size}) from {place}? They will be recomputed when needed.",
    confirmKind: "Delete {entries} of {kind} ({size}) from {place}? They will be recomputed when needed.",
    shared: "All machines that share them lose them.",
    entry: "{count} entry",
    entries: "{count} entries",
    of: "of {size}",
    budget: "{place}: {share} of its budget is used",
    changed: "The settings have changed. Restart ComfyUI to apply them.",
    severalUsers: "Several users: only environment variables count, not settings.",
    environment: "Set by environment variables, not by the settings: {names}.",
    nothing:
      "Nothing cached yet. Add Cached VAE or Cached CLIP after your loaders, or use Cached VAE Encode and Cached Text Encode.",
    firstSaved: "{count} saved",
    firstSavedMore: "They are reused when inputs repeat, also after a restart.",
    hitRate: "hit rate",
    hitRateIs: "Hit rate {share}",
    reused: "{hits} of {all} reused, {misses} new (saved for next time)",
    saved: "{time} saved",
    spent: "· {time} spent computing since ComfyUI was started",
    hits: "Hits",
    misses: "Misses",
    rate: "Rate",
    savedColumn: "Saved",
    notKept: "Not cached, {count} times: {why}",
    notKeptOnce: "Not cached, once: {why}",
    trouble: "{place}: {text}.",
    troubles: "Errors and results that were not cached ({count})",
    noAnswer: "The server does not respond.",
    answers: "The server answers {status}.",
    places: {
      memory: "Memory",
      disk: "Disk",
      redis: "Redis",
      s3: "S3",
    },
    from: {
      memory: "memory",
      disk: "the disk",
      redis: "Redis",
      s3: "S3",
    },
    kinds: {
      latents: "latents",
      prompts: "prompts",
      pictures: "pictures",
      loaders: "loaders",
      "other nodes": "other nodes",
      "generated texts": "generated texts",
      "vision embeddings": "vision embeddings",
      "audio embeddings": "audio embeddings",
    },
    states: {
      on: "on",
      connected: "connected",
      away: "not responding",
      off: "off",
    },
    whyOff: {
      memory: "Its size is 0 in the settings.",
      disk: "Its size is 0 in the settings.",
      redis: "Shares entries between machines. Set its address in the settings or in SKIPSTONE_MEMO_REDIS.",
    },
  },
  calibration: {
    none: "Nothing recorded.",
    stored: "{setups} setups, {size}",
    one: "1 setup, {size}",
    forget: "Delete all",
    confirmTitle: "Delete the recordings",
    confirm: "Delete what was recorded of your models ({what})? The next runs skip by built-in costs and record again.",
  },
  fields: {
    password:
      "Not saved: it holds a password, and every page of this server can read the settings. Set SKIPSTONE_MEMO_REDIS instead.",
    address: "It begins with redis://, rediss:// (TLS) or unix://",
    test: "Test connection",
    asking: "Testing …",
  },
}

let chosen = {} // the same tables, in the language that the person chose

const at = (table, path) => path.reduce((found, part) => found?.[part], table)

/** The text of a key: `t("timeline.saved", { time: "3 s" })`. The key may be a list, for parts that have dots. undefined without a text. */
export function t(key, values = {}) {
  const path = Array.isArray(key) ? key : key.split(".")
  const text = at(chosen, path) ?? at(ENGLISH, path)
  return text?.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
}

/** With a capital letter at the beginning; the server's sentences are made for log lines. */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1)

/** A sentence of the server's. `told`: its English text, key and values (Text.as_dict in core/texts.py). A value is a word, a number,
 * such a sentence, or a list of them. */
export function translated(told) {
  const inWords = (value) => {
    if (Array.isArray(value)) return value.map(inWords).join(t("list.comma"))
    return value?.key ? translated(value) : value
  }
  const values = Object.entries(told.values ?? {}).map(([name, value]) => [name, inWords(value)])
  return t(["messages", told.key], Object.fromEntries(values)) ?? told.text
}

/** One of the server's sentences, which stands in `texts` with its key, in the language that the person chose. */
export function sentenceIn({ texts }, sentence) {
  const told = texts?.find(({ text }) => text === sentence)
  return told ? translated(told) : (sentence ?? "")
}

async function loaded() {
  const language = app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en"
  if (language === "en") return
  const answer = await api.fetchApi("/i18n")
  if (answer.ok) chosen = (await answer.json())[language]?.skipstone ?? {}
}

app.registerExtension({
  name: "Skipstone.Texts",

  async init() {
    await loaded().catch(wrong)
  },
})
