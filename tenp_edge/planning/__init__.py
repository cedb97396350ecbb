"""From a checkpoint, a device and a RAM number to a CompressionPlan.

what is asked        settings (declaring options), spec (the plan's), devices, target (all resolved)
what a method is     methods (the table), allocators and allocation (widths), score_tables
the search           planner, budget, pricing, memory_table, tensor_types, alternatives
what was measured    trials, probes, type_costs, kl_law
what a plan says     describe
"""
