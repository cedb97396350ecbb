"""The routes of the server, API by API. Every one is there with and without /v1."""
