"""``python -m tenp_edge``: the ``tenp-edge`` command."""

from tenp_edge.cli.entry import main

main()
