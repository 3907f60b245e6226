"""What waits for a GPU, in stages of minutes, the most telling first: `make gpu-check` (docs/reports/gpu.md)."""
