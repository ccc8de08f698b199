// The setting of the step caches: what was recorded of the user's models, and a button that deletes it.

import { app } from "../../../scripts/app.js"
import { asked, confirmed, size } from "./memo.js"
import { action } from "./memo_settings.js"
import { t } from "./texts.js"

const STEPS = "Step caches"

const described = ({ setups, bytes }) =>
  setups
    ? t(setups === 1 ? "calibration.one" : "calibration.stored", { setups, size: size(bytes) })
    : t("calibration.none")

/** How much is recorded, and the button. */
function recordings() {
  let now = { setups: 0, bytes: 0 }
  const { element, button, say } = action(t("calibration.forget"), async () => {
    const question = t("calibration.confirm", { what: described(now) })
    if (await confirmed(question, t("calibration.confirmTitle"))) show(await asked("/skipstone/calibration/forget", {}))
    return !now.setups
  })
  const show = (found) => {
    now = found
    say(described(now))
    button.disabled = !now.setups
  }
  button.disabled = true
  asked("/skipstone/calibration").then(show, ({ message }) => say(message, true))
  return element
}

const SETTINGS = [
  {
    id: "Skipstone.Calibration",
    group: STEPS,
    name: "Recordings of your models",
    type: recordings,
    defaultValue: "",
    tooltip:
      "What skipping cost in earlier runs: Step Cache (Auto), MeanCache, TeaCache and MagCache choose steps by it. The files are " +
      "in user/skipstone/calibration.",
  },
]

app.registerExtension({
  name: "Skipstone.StepSettings",
  settings: SETTINGS.map(({ group, ...setting }) => ({
    ...setting,
    category: ["Skipstone", group, setting.id],
    sortOrder: 200, // above those of the encode cache
  })),
})
