"""How the embedded image suite's base model and text heads were made: a maintainer's job, not a user's.

Nothing in the library imports this package. ``README.md`` beside this file says what it needs and what it
guarantees.
"""
