"""The demo: the whole main job on one machine, with nothing but this repository. Never for production."""
