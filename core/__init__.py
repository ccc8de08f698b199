"""Pure torch and Python: decides steps, predicts outputs, keeps content. Imports nothing of ComfyUI."""
