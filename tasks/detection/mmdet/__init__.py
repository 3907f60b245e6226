"""mmdet as this task uses it: the one door to it, what it lacks, what it gets wrong, our names in its registries."""
