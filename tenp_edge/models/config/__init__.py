"""config.json -> `ModelConfig`: one file for each thing that it says."""
