"""Backbones: frozen text-to-image models behind the one interface of `actors.contracts.Backbone`.

`loading.load_backbone` makes one from the options in `config.BackboneConfig`. Importing this package, or
its options, imports no model library.
"""
