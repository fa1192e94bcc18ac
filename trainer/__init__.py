"""The trainer: what runs at a site. It knows no Django and no portal, only :mod:`trainer.contract`."""
