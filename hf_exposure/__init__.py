"""How much has a language model memorized? Canaries, exposure and extraction for Transformers."""
