"""The analyses of the DPPO paper as programs; docs/studies.md describes them."""
