"""Step caches: when to run the model (policies), what to say instead (predictors), and what happened (report)."""
