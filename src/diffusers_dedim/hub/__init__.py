"""Publish the networks, their cards and the Space on the Hugging Face Hub (docs/hub.md).

Modules:
    kinds: what can be published.
    cards: the card of each, and a card's results in the Hub's two forms.
    staging: a folder that holds exactly what the repository will hold.
    upload: compare that folder with the repository, upload it, and say what went wrong.
"""
