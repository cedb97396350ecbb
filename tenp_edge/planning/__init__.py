"""From a checkpoint, a device and a RAM number to a CompressionPlan."""
