"""The demo: a whole federated experiment on one machine, with nothing but this repository. Not for production."""
