"""The one way to mmdet: its names, a stand-in for what it lacks, and patches for its faults."""
