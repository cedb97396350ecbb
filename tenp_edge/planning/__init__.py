"""From a checkpoint, a device and a RAM number to a CompressionPlan.

the road             planner; describe says how a plan was made and what it predicts
what is asked        options/: spec and methods, devices, target (all of it resolved)
what can be chosen   space
what a plan takes    memory/: pricing, table
what is known        measured/ (trials, costs of types, the law of KL), scores/
what is chosen       budget/ (widths), joint/ (widths and types at once)
"""
