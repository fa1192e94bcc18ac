"""The names of Kaapana that its workflow extensions import, for the double and for import tests."""
