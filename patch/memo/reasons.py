"""Why an encoding is not cached, where its encoder, the graph or how it was computed decides: as core/memo/reasons.py."""

from __future__ import annotations

from ...core.texts import Text

# encoders

VAE, CLIP, ENCODER = Text("a_vae", "a VAE"), Text("a_clip", "a CLIP"), Text("an_encoder", "an encoder")
OTHER_MODEL = Text("uncached_other_model", "{what} whose model is not its patcher's")
UNKNOWN_ENCODER = Text("uncached_unknown_encoder", "{what} that is not understood ({error})")
ENCODER_CLASS = Text("uncached_encoder_class", "an encoder of class {name}")
WEIGHTS_CLASS = Text("uncached_weights_class", "weights of class {name}")
HOOK_ON_ALL = Text("uncached_hook_on_all", "a hook on all modules")
HOOK_ON_MODULE = Text("uncached_hook_on_module", "a hook on a module of the encoder")
HOOKS = Text("uncached_hooks", "hooks on the CLIP")
INJECTED = Text("uncached_injected", "something injected into the encoder, such as a bypass LoRA")
ATTACHED = Text("uncached_attached", "another model attached to the encoder")
WRAPPED_WEIGHTS = Text("uncached_wrapped_weights", "wrapped weights")
WRAPPERS = Text("uncached_wrappers", "wrappers of the encoder")
CALLBACKS = Text("uncached_callbacks", "callbacks of the encoder")
PATCH_NESTED = Text("uncached_patch_nested", "a patch that is nested too deep")
PATCH_CLASS = Text("uncached_patch_class", "a patch of class {name}")
PATCHED_FUNCTION = Text("uncached_patched_function", "a function patched into the encoder")
CHANGED_IN_PLACE = Text("uncached_changed_in_place", "an encoder that another node changed in place")

# code and objects of other packs

NO_SOURCE = Text("uncached_no_source", "code without a source file")
SOURCE_CHANGED = Text("uncached_source_changed", "source code that changed since ComfyUI was started")
TOO_MANY_SOURCES = Text("uncached_too_many_sources", "code of a package with too many files")
NO_VERSION = Text("uncached_no_version", "code of a package without a version")
TOO_MUCH_BELONGS = Text("uncached_too_much_belongs", "too much that belongs to something of class {name}")
OPAQUE = Text("uncached_opaque", "something of class {name}, which cannot be looked into")
CODE_READS = Text("uncached_code_reads", "code of another pack that reads {name}")
CODE_IMPORTS = Text("uncached_code_imports", "code of another pack that imports more of it as it runs")
CODE_CALLS = Text("uncached_code_calls", "code of another pack that calls {name}")

# files and the graph

NO_FILE_NAME = Text("uncached_no_file_name", "a file name that is no string")
NO_FILE = Text("uncached_no_file", "a file that is not there")
UNREADABLE_FILE = Text("uncached_unreadable_file", "a file that cannot be looked at ({error})")
TOO_MANY_EMBEDDINGS = Text("uncached_too_many_embeddings", "too many embeddings")
FILES_CHANGED = Text("uncached_files_changed", "files or folders of models that changed since ComfyUI was started")
CHANGED_MEANWHILE = Text("uncached_changed_meanwhile", "files or code that changed while the node ran")
KNOWN_AFTER_RUN = Text("uncached_known_after_run", "what {node} loads is only known when it has run")
DEPENDS = Text("uncached_depends", "what {node} loads depends on another node")
TOO_MANY_NODES = Text("uncached_too_many_nodes", "too many nodes in a row")
NO_NODE = Text("uncached_no_node", "an encoder that comes from no node")
NOT_IN_GRAPH = Text("uncached_not_in_graph", "an encoder from a node that is not in the graph")
NOT_A_NODE = Text("uncached_not_a_node", "an encoder from something that is no node")

# results

OTHER_OUTPUTS = Text("uncached_other_outputs", "something else than the node's outputs, or with unknown keys")
OTHER_FORM = Text("uncached_other_form", "no value of the form that was asked for")
VAE_INPUT = Text("uncached_vae_input", "a VAE given something of class {name}")
NO_SEED = Text("uncached_no_seed", "a text that is generated without a seed")
RANDOM = Text("uncached_random", "computed with random numbers")
TILES = Text("uncached_tiles", "computed in tiles for want of memory")
DEVICE = Text("uncached_device", "a tensor on {device}")
NOT_UNDERSTOOD = Text("uncached_not_understood", "not understood ({error})")
