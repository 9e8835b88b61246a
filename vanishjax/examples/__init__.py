"""Short scripts to read, run and change: `python -m vanishjax.examples` lists them."""
