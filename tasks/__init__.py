"""The Lightning tasks; each knows esbnn_core and its own files, never another task."""
