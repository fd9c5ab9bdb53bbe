"""Layers of pretrained models as problems of approximation: `python -m benchmarks.layers.harvest` collects them."""
