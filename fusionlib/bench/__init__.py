"""Evaluate, run, sweep and tune; the records this leaves; the tables and figures that read them."""
