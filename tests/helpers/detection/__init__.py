"""Small detectors and images with boxes for them."""
