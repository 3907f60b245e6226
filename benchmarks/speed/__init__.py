"""How fast and how small, against what people would run instead; `make bench` runs most of it."""
