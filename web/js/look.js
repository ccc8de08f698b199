// Nodes to look with are as large as what they show, before they show it: no jump at the end of the first run.

import { app } from "../../../scripts/app.js"
import { guarded } from "./shared.js"

const SIZES = { SkipstoneStepReport: [520, 350], SkipstoneCompareImages: [520, 480] } // pixels, as they are dropped

app.registerExtension({
  name: "Skipstone.Look",

  nodeCreated(node) {
    const size = SIZES[node.comfyClass]
    if (size) guarded(() => node.setSize([0, 1].map((i) => Math.max(size[i], node.size[i])))) // a file's own size comes later
  },
})
