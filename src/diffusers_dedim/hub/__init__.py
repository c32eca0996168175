"""Publish the networks, their cards and the Space on the Hugging Face Hub (docs/hub.md).

Modules:
    kinds: what can be published, and which files make it up.
    cards: the model card of a repository, and its results in the Hub's two forms.
    staging: a folder that holds exactly what the repository will hold.
    remote: compare that folder with the repository and upload what differs.
    failures: what went wrong on the way to the Hub, and what to do.
    cli: the commands ``dedim publish`` and ``dedim publish-space``.
"""
