"""The only folder that touches ComfyUI's internals."""
