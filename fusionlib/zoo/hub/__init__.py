"""The published suites of the Hugging Face hub: which there are, fetching them, and loading them."""
