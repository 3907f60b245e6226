"""Diffusion super-resolution with binary networks: BI-DiffSR, ES-BI-DiffSR and their baselines."""
