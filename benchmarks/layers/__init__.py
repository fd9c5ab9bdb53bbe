"""Layers of pretrained models: `harvest` collects them, `measure` approximates and times them one by one."""
