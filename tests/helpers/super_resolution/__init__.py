"""Small networks of super-resolution and images for them."""
