"""Measuring models against the one they were made of.

the measure          divergence (scores of tokens), verdict (what they say)
a written file       validation, attribution (which stage lost how much)
many variants        variants, evaluator (in one pass), measured_variants (by domain)
what uses them       refine, type_sensitivity, rounding, comparison/ (equal neurons),
                     matched/ (equal bytes)
what is possible     rate_distortion
"""
