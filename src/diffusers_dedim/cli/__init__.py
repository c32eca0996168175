"""The command ``dedim``: one file a command."""
