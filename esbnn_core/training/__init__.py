"""What only training needs, without Lightning: the latent clip, distillation losses, training on bits."""
