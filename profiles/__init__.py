"""Device profiles: one TOML file per device, read by `tenp_edge.planning.options.devices`."""
