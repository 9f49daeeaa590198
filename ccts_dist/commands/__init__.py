"""Commands by name: options, and what is called with them. ``ccts``, ``launch/`` and ``shards/`` start them."""
