"""``python -m tenp_edge``: the ``tenp-edge`` command."""

from tenp_edge.entry import main

main()
