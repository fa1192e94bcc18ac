"""The trainer as an extension of Kaapana: what runs in its pods, and what is installed at a site.

``python -m trainer.kaapana <step>`` is the pods' entry point, :mod:`trainer.kaapana.batch` turns a batch of Kaapana's
series into a dataset, :mod:`trainer.kaapana.build` makes chart and images. ``extension/`` and
``processing-containers/`` have the layout of Kaapana's own workflow extensions.
"""
